"""Media cases through the services: fitted with fit_only, and what the job's settings decide of them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, Sample
from ltxtrain.v1.work_pb2 import Outcome, ReportLine

from ltxtrain_trainer.data.encoded import load_clip
from ltxtrain_trainer.media.video_file import LosslessClip
from tests import cards
from tests.cases.reasons import NOT_OURS, PREPROCESS_ERRORS, PREPROCESS_LINES
from tests.cases_table import FOLDER, cases, media
from tests.services.preprocess.running import Ended, Preprocess, settings
from tests.sounds import burst_seconds, pitch

FRAMES, FRAME_RATE, SIDE = 89, 24.0, 256
MEDIA = cases("media")
ACCEPTED = [case for case in MEDIA if case["expect"]["action"] == "accept"]
OURS = [case for case in MEDIA if case["expect"].get("reason") in NOT_OURS]
SCENIC = [case for case in MEDIA if "scenes" in case["expect"]]
CONTROLS = {False: FOLDER / "media" / "ctl_plain.mp4", True: FOLDER / "media" / "ctl_av.mp4"}


def fit_only(*, with_audio: bool = False, **changes: Any) -> PreprocessSettings:
    """The manifest's defaults, in a square that shows the whole card."""
    training = {"width": SIDE, "height": SIDE, "frameCount": FRAMES}
    audio = {"audio": {"preservePitch": True}} if with_audio else {}
    return settings(**({"fitOnly": True, "training": training} | audio | changes))


def with_audio(case: dict[str, Any]) -> bool:
    return bool(case["expect"].get("request", {}).get("with_audio") or case["expect"].get("has_audio"))


@dataclass
class Fitted:
    """Training sets of all accepted cases together, made once: one for each way of asking."""

    preprocess: Preprocess
    ended: dict[tuple[bool, bool], Ended] = field(default_factory=dict)

    async def sample(self, case: dict[str, Any]) -> tuple[Sample, ReportLine]:
        key = with_audio(case), bool(case["expect"].get("auto_scale_only"))
        if key not in self.ended:
            alike = [media(one) for one in ACCEPTED if self._key(one) == key]
            dataset = await self.preprocess.dataset({path.name: path for path in alike})
            chosen = fit_only(with_audio=key[0], autoScaleInput=key[1])
            self.ended[key] = await self.preprocess.run(dataset, chosen)
            assert self.ended[key].state == "SUCCEEDED", self.ended[key].training_set.lifecycle.error
            assert len(self.ended[key].samples) == len(alike)
        # Nothing is skipped and nothing is split: samples are in the order of the lines.
        places = [line.path for line in self.ended[key].lines]
        place = places.index(media(case).name)
        return self.ended[key].samples[place], self.ended[key].lines[place]

    @staticmethod
    def _key(case: dict[str, Any]) -> tuple[bool, bool]:
        return with_audio(case), bool(case["expect"].get("auto_scale_only"))


@pytest.fixture(scope="session")
def fitted(preprocess: Preprocess) -> Fitted:
    return Fitted(preprocess)


@pytest.mark.parametrize("case", ACCEPTED, ids=lambda case: case["id"])
async def test_accepted(case: dict[str, Any], fitted: Fitted) -> None:
    expect = case["expect"]
    sample, line = await fitted.sample(case)
    assert line.outcome in (Outcome.OUTCOME_KEPT, Outcome.OUTCOME_KEPT_CHANGED)
    numbers = line.numbers
    assert [numbers.width, numbers.height] == expect.get("display", [numbers.width, numbers.height])
    assert numbers.source_frame_rate == pytest.approx(expect.get("fps", numbers.source_frame_rate), rel=1e-4)
    clip = await fitted.preprocess.fetch_clip(sample.clip_preview)
    assert clip.frames.shape == (FRAMES, SIDE, SIDE, 3)
    if expect.get("card_readable", True):
        check_pictures(clip, expect)
    if "audio" in expect:
        check_sound(clip, expect)
    else:
        assert clip.audio is None


def check_pictures(clip: LosslessClip, expect: dict[str, Any]) -> None:
    numbers = [cards.frame_number(picture) for picture in clip.frames]
    if expect.get("auto_scale_only"):
        assert numbers == [index // 2 for index in range(FRAMES)]
    elif "index_rule" in expect:
        assert all(number in (2 * index, 2 * index + 1) for index, number in enumerate(numbers))
    else:
        assert numbers == [expect["first_number"] + expect["step"] * index for index in range(FRAMES)]
    for picture in (clip.frames[0], clip.frames[-1]):
        if "hdr" in expect:
            white = cards.cell(picture, *cards.PATCHES["left_white"][0])
            red = cards.cell(picture, *cards.PATCHES["tl_red"][0])
            assert white.min() >= expect["hdr"]["white_min"]
            assert red[0] - red[1] >= expect["hdr"]["red_minus_green_min"]
            continue
        errors = cards.colour_errors(picture)
        errors.pop(expect.get("alpha_patch", {}).get("name", ""), None)
        assert max(errors.values()) <= expect["colour_tol"], errors


def check_sound(clip: LosslessClip, expect: dict[str, Any]) -> None:
    sound = expect["audio"]
    assert clip.audio is not None and clip.audio.shape[0] == 2 and np.isfinite(clip.audio).all()
    assert clip.audio.shape[1] == round(FRAMES / clip.frame_rate * 16_000)
    if sound["burst_s"] is not None:
        assert burst_seconds(clip.audio) == pytest.approx(sound["burst_s"], abs=sound["burst_tol_s"])
    for channel, hertz in zip(clip.audio, sound["tones_hz"], strict=False):
        assert pitch(channel[8000:24_000]) == pytest.approx(hertz, rel=5e-3)
    assert bool(clip.audio.any()) == (sound["peak"] > 0)


@pytest.mark.parametrize("case", OURS, ids=lambda case: case["id"])
async def test_not_accepted(case: dict[str, Any], preprocess: Preprocess) -> None:
    """Beside a good clip, a clip that is too short is skipped and one without sound fails the request."""
    reason, file = case["expect"]["reason"], media(case)
    control = CONTROLS[with_audio(case)]
    dataset = await preprocess.dataset({file.name: file, control.name: control})
    ended = await preprocess.run(dataset, fit_only(with_audio=with_audio(case)))
    assert set(ended.reasons(file.name)) & PREPROCESS_LINES[reason]
    if case["expect"]["action"] == "skip":
        assert ended.state == "SUCCEEDED" and len(ended.samples) == 1
    else:
        assert ended.reason in PREPROCESS_ERRORS[reason] and set(ended.subjects) == {file.name}


@pytest.mark.parametrize(
    "case", [case for case in OURS if case["expect"]["action"] == "skip"], ids=lambda case: case["id"]
)
async def test_alone(case: dict[str, Any], preprocess: Preprocess) -> None:
    dataset = await preprocess.dataset({media(case).name: media(case)})
    ended = await preprocess.run(dataset, fit_only(with_audio=with_audio(case)))
    assert ended.reason in PREPROCESS_ERRORS[case["expect"]["reason"]]


@pytest.mark.parametrize(
    "case", [case for case in MEDIA if "with_auto_scale" in case["expect"]], ids=lambda case: case["id"]
)
async def test_with_auto_scale(case: dict[str, Any], preprocess: Preprocess) -> None:
    dataset = await preprocess.dataset({media(case).name: media(case)})
    ended = await preprocess.run(dataset, fit_only(autoScaleInput=True))
    (sample,) = ended.samples
    clip = await preprocess.fetch_clip(sample.clip_preview)
    numbers = [cards.frame_number(picture) for picture in clip.frames]
    assert len(numbers) == case["expect"]["with_auto_scale"]["frames_out"] and numbers == sorted(numbers)


@pytest.mark.parametrize("case", SCENIC, ids=lambda case: case["id"])
async def test_scenes(case: dict[str, Any], preprocess: Preprocess) -> None:
    scenes = case["expect"]["scenes"]
    dataset = await preprocess.dataset({media(case).name: media(case), "cap.txt": "unused"})
    chosen = fit_only(training={"width": 128, "height": 128, "frameCount": 25}, splitAboveSeconds=30.0)
    ended = await preprocess.run(dataset, chosen)
    assert [sample.start_frame for sample in ended.samples] == [start for start, _ in scenes]
    for sample, (start, _) in zip(ended.samples, scenes, strict=True):
        clip = await preprocess.fetch_clip(sample.clip_preview)
        assert [cards.number(picture) for picture in clip.frames] == list(range(start, start + 25))
    if len(scenes) > 1:
        parent, *lines = ended.lines
        assert ended.reasons(parent.path) == ["SPLIT"]
        assert [cut.frame for cut in parent.numbers.scene_cuts] == [start for start, _ in scenes[1:]]
        assert all(cut.score > 0 for cut in parent.numbers.scene_cuts)
        assert [cut.time_seconds for line in lines[1:] for cut in line.numbers.scene_cuts] == [
            pytest.approx(start / 24) for start, _ in scenes[1:]
        ]
        assert [line.frame_count for line in lines] == [end - start for start, end in scenes]
        assert ended.training_set.report.scenes == len(scenes)


async def test_encoded(preprocess: Preprocess, tiny_model: Path) -> None:
    """The stored sample is the encoding of the frames and the sound that were kept."""
    from ltxtrain_trainer.data.encode import ClipEncoder
    from ltxtrain_trainer.model.folder import resolve_model

    dataset = await preprocess.dataset({CONTROLS[True].name: CONTROLS[True]})
    ended = await preprocess.run(dataset, settings(exportArchive=True, audio={"normalize": True}))
    (sample,) = ended.samples
    encoded = load_clip(await preprocess.fetch(sample.latents))
    assert tuple(encoded.video.shape) == (128, 3, 9, 16)
    clip = await preprocess.fetch_clip(sample.clip_preview)
    encoder = ClipEncoder(resolve_model(str(tiny_model)), "cpu", with_audio=True)
    expected = encoder.encode(clip.frames, clip.frame_rate, clip.audio)
    assert encoded.video.equal(expected.video)
    assert encoded.audio is not None and expected.audio is not None
    assert encoded.audio.equal(expected.audio)
    assert len(encoded.audio) == round(17 / 24 * 25)
