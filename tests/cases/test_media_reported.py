"""Clips made after public reports, through the services: what datasets and training sets report of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.work_pb2 import Outcome

from tests.cases.test_media_cases_service import CONTROLS, fit_only
from tests.cases_table import FOLDER
from tests.clips import write_zip
from tests.services.ingest.running import Ingest
from tests.services.ingest.running import Outcome as Ingested
from tests.services.preprocess.running import Preprocess

OPEN2 = FOLDER / "open2"
CASES: list[dict[str, Any]] = json.loads((OPEN2 / "media.json").read_text())["cases"]
REASONS = {
    "dolby_vision_profile5": ["PRESENTATION_UNSUPPORTED"],
    "h264_bad_key_frame": ["CLIP_DAMAGED"],
    "mjpeg_bad_frame": ["CLIP_DAMAGED"],
    "begins_mid_gop_mpeg4": ["LEADING_FRAMES_UNUSED"],
}
# Frames before the damage.
WHOLE_FRAMES = {"h264_bad_key_frame": 24, "mjpeg_bad_frame": 40}


@pytest.fixture(scope="module")
async def together(ingest: Ingest, tmp_path_factory: pytest.TempPathFactory) -> Ingested:
    files: dict[str, bytes | Path | str] = {case["file"]: OPEN2 / case["file"] for case in CASES}
    files |= {f"{Path(case['file']).stem}.txt": "a card" for case in CASES}
    return await ingest.upload(write_zip(tmp_path_factory.mktemp("reported") / "clips.zip", files))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
async def test_ingested(case: dict[str, Any], together: Ingested) -> None:
    (line,) = (line for line in together.lines if line.path == case["file"])
    assert together.reasons(case["file"]) == REASONS.get(case["id"], [])
    if case["id"] == "dolby_vision_profile5":
        assert line.outcome == Outcome.OUTCOME_SKIPPED and "Dolby Vision profile 5" in line.description
        return
    (clip,) = (clip for clip in together.clips if clip.path == case["file"])
    changed = case["id"] in REASONS
    assert line.outcome == (Outcome.OUTCOME_KEPT_CHANGED if changed else Outcome.OUTCOME_KEPT)
    assert clip.frame_count == WHOLE_FRAMES.get(case["id"], case["expect"]["frames"])
    assert [clip.width, clip.height] == case["expect"].get("display", [256, 144])
    if case["id"] in WHOLE_FRAMES:
        assert f"frame {clip.frame_count} (" in line.description and clip.probe.damage in line.description
    if case["id"] == "begins_mid_gop_mpeg4":
        assert clip.probe.leading_frames == 17 and "17 frames" in line.description
    assert not any(word in line.description for word in case["expect"].get("untrue", []))


async def test_damage_is_the_reason_where_too_little_is_left(preprocess: Preprocess) -> None:
    files = [OPEN2 / "bad_key.mp4", OPEN2 / "one_bad.avi"]
    dataset = await preprocess.dataset({path.name: path for path in [*files, CONTROLS[False]]})
    ended = await preprocess.run(dataset, fit_only())
    assert ended.state == "SUCCEEDED" and len(ended.samples) == 1
    for path, whole, seconds in zip(files, (24, 40), ("1.000", "1.667"), strict=True):
        (line,) = (line for line in ended.lines if line.path == path.name)
        assert ended.reasons(path.name) == ["CLIP_DAMAGED", "CLIP_TOO_SHORT"]
        assert (line.frame_count, line.needed_frames) == (whole, 89)
        assert f"frame {whole} ({seconds} s)" in line.description
        assert f"{whole} frames, 89 needed before it" in line.description
    alone = await preprocess.run(await preprocess.dataset({path.name: path for path in files}), fit_only())
    assert alone.reason == "NO_USABLE_CLIPS" and "2 damaged" in alone.message


async def test_frames_before_the_damage_are_trained_on_with_a_line(preprocess: Preprocess) -> None:
    files = [OPEN2 / "bad_key.mp4", OPEN2 / "one_bad.avi", OPEN2 / "cut_mpeg4.mkv"]
    dataset = await preprocess.dataset({path.name: path for path in files})
    ended = await preprocess.run(dataset, fit_only(training={"width": 256, "height": 256, "frameCount": 17}))
    assert len(ended.samples) == 3
    for path in files:
        (line,) = (line for line in ended.lines if line.path == path.name)
        assert line.outcome == Outcome.OUTCOME_KEPT_CHANGED
        lost = "LEADING_FRAMES_UNUSED" if path.suffix == ".mkv" else "CLIP_DAMAGED"
        assert lost in ended.reasons(path.name)


async def test_missing_sound_is_told(preprocess: Preprocess) -> None:
    short, whole = FOLDER / "media" / "ashort.mp4", CONTROLS[True]
    dataset = await preprocess.dataset({short.name: short, whole.name: whole})
    ended = await preprocess.run(dataset, fit_only(with_audio=True))
    assert len(ended.samples) == 2
    assert "AUDIO_INCOMPLETE" not in ended.reasons(whole.name)
    assert "AUDIO_INCOMPLETE" in ended.reasons(short.name)
    (line,) = (line for line in ended.lines if line.path == short.name)
    assert line.numbers.audio_missing_seconds == pytest.approx(89 / 24 - 2.5, abs=0.05)
    assert f"{line.numbers.audio_missing_seconds:.2f} s" in line.description
