"""Every media case of the manifest, ingested: what Ingest decides of it, and the numbers of its probe."""

from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.ingest_pb2 import Clip

from tests.cases.reasons import ERRORS, LINES, NOT_OURS
from tests.cases_table import FOLDER, cases, media
from tests.clips import write_zip
from tests.services.ingest.running import Ingest, Outcome

CONTROL = FOLDER / "media" / "ctl_plain.mp4"
CASES = cases("media", "validation")


def check_numbers(clip: Clip, expect: dict[str, Any]) -> None:
    if "frames" in expect:
        assert clip.frame_count == expect["frames"]
    if "display" in expect:
        assert [clip.width, clip.height] == expect["display"]
    if "fps" in expect:
        assert clip.frame_rate == pytest.approx(expect["fps"], rel=1e-4)
    if "duration_s" in expect:
        assert clip.probe.duration_seconds == pytest.approx(expect["duration_s"], abs=0.002)
    if "interlaced" in expect:
        assert clip.probe.interlaced == expect["interlaced"]
    if "has_audio" in expect:
        assert clip.HasField("audio_sample_rate") == expect["has_audio"]
    if "hdr" in expect:
        assert clip.probe.hdr
    if sound := expect.get("audio"):
        assert clip.audio_sample_rate == clip.probe.audio.sample_rate == sound["rate"]
        assert clip.probe.audio.channels == sound["channels"]
        assert (clip.probe.audio.silence_share == 1) == (sound["peak"] == 0)
        if "duration_s" in sound:
            assert clip.probe.audio.duration_seconds == pytest.approx(sound["duration_s"], abs=0.03)


def is_kept(case: dict[str, Any]) -> bool:
    return case["expect"]["action"] == "accept" or case["expect"].get("reason") in NOT_OURS


def is_image(case: dict[str, Any]) -> bool:
    return bool(case["expect"].get("reason") == "image_entry")


def entry(case: dict[str, Any]) -> str:
    return f"{case['id']}/{media(case).name}"


@pytest.fixture(scope="session")
async def together(ingest: Ingest, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """All of them in one archive, but the images, which would refuse it: each actor is worth several clips."""
    files = {entry(case): media(case) for case in CASES if not is_image(case)}
    return await ingest.upload(write_zip(tmp_path_factory.mktemp("cases") / "clips.zip", files))


@pytest.mark.parametrize("case", [case for case in CASES if is_kept(case)], ids=lambda case: case["id"])
async def test_kept(case: dict[str, Any], together: Outcome) -> None:
    assert together.state == "SUCCEEDED", together.dataset.lifecycle.error
    (clip,) = (clip for clip in together.clips if clip.path == entry(case))
    check_numbers(clip, case["expect"])
    assert ("AUDIO_SILENT" in together.reasons(entry(case))) == (clip.probe.audio.silence_share == 1)


# Where the request may fail or the clip be skipped, a broken clip is skipped (D14) and an image is not (D5).
@pytest.mark.parametrize(
    "case", [case for case in CASES if not is_kept(case) and not is_image(case)], ids=lambda case: case["id"]
)
async def test_skipped(case: dict[str, Any], together: Outcome) -> None:
    assert set(together.reasons(entry(case))) & LINES[case["expect"]["reason"]]
    assert entry(case) not in {clip.path for clip in together.clips}


@pytest.mark.parametrize("case", [case for case in CASES if is_image(case)], ids=lambda case: case["id"])
async def test_images(case: dict[str, Any], ingest: Ingest, tmp_path: Path) -> None:
    file = media(case)
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", {file.name: file, "control.mp4": CONTROL}))
    assert ended.reason in ERRORS["image_entry"]
    assert set(ended.reasons(file.name)) & LINES["image_entry"]


@pytest.mark.parametrize("case", [case for case in CASES if not is_kept(case)], ids=lambda case: case["id"])
async def test_alone(case: dict[str, Any], ingest: Ingest, tmp_path: Path) -> None:
    """A clip that is skipped beside a good one fails the request when it is alone."""
    reason, file = case["expect"]["reason"], media(case)
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", {file.name: file}))
    assert ended.reason in ERRORS[reason]
    assert file.name in ended.dataset.lifecycle.error.SerializeToString().decode("utf-8", "replace")
    assert set(ended.reasons(file.name)) & LINES[reason]


async def test_a_playlist_opens_nothing(ingest: Ingest, tmp_path: Path) -> None:
    """Both in one archive, for a demuxer that follows the playlist would find the clip."""
    playlist = next(media(case) for case in CASES if case["id"] == "hls_in_avi")
    ended = await ingest.upload(write_zip(tmp_path / "clips.zip", {"list.avi": playlist, "ctl_plain.mp4": CONTROL}))
    assert [clip.path for clip in ended.clips] == ["ctl_plain.mp4"]
    assert not ingest.web.requests["/list"]
