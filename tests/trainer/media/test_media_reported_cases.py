"""Clips made after public reports (tests/data/cases/open2/media.json), each with the numbers that are right for it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltxtrain_trainer.errors import ClipDamaged, ClipError, PresentationUnsupported
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.cases_table import FOLDER
from tests.clips import Waves
from tests.sounds import RATE, burst_seconds

OPEN2 = FOLDER / "open2"
CASES: list[dict[str, Any]] = json.loads((OPEN2 / "media.json").read_text())["cases"]
# Where a case allows a clip to be left out with a true reason, and we do so.
LEFT_OUT: dict[str, tuple[type[ClipError], str]] = {
    "dolby_vision_profile5": (PresentationUnsupported, r"Dolby Vision profile 5"),
    "h264_bad_key_frame": (ClipDamaged, r"damaged .*: frame 24 \(1\.000 s\) .* 24 frames, 89 needed before it"),
    "mjpeg_bad_frame": (ClipDamaged, r"damaged .*: frame 40 \(1\.667 s\) .* 40 frames, 88 needed before it"),
}
KEPT = [case for case in CASES if case["id"] not in LEFT_OUT]


def fit(case: dict[str, Any], frames: int, *, auto_scale: bool = False) -> FittedClip:
    settings = FitSettings(
        geometry=Geometry(width=256, height=144, frame_count=frames, frame_rate=24),
        auto_scale=auto_scale,
        with_audio=case["request"].get("with_audio", False),
        normalize_audio=False,
        preserve_pitch=True,
    )
    return fit_clip(OPEN2 / case["file"], settings)


def frame_numbers(fitted: FittedClip) -> list[int]:
    return [cards.frame_number(picture) for picture in fitted.frames]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case["id"])
def test_every_frame_is_kept_as_it_was_meant(case: dict[str, Any]) -> None:
    expect, found = case["expect"], probe(OPEN2 / case["file"])
    assert (found.frame_count, found.damage) == (expect["frames"], None)
    assert found.frame_rate == pytest.approx(expect.get("fps", 24.0), rel=1e-6)
    assert found.variable_frame_rate == expect.get("variable", False)
    assert [found.width, found.height] == expect.get("display", [256, 144])
    first, step = expect["numbers"]
    fitted = fit(case, expect["frames"])
    assert frame_numbers(fitted) == [first + step * index for index in range(expect["frames"])]
    looked_at = fitted.frames if expect.get("every_frame") else fitted.frames[:: expect["frames"] - 1]
    assert max(max(cards.colour_errors(picture).values()) for picture in looked_at) <= expect.get("colour_tol", 22)


@pytest.mark.parametrize(
    "case", [case for case in CASES if "auto_numbers" in case["expect"]], ids=lambda case: case["id"]
)
def test_resampling_loses_no_frame(case: dict[str, Any]) -> None:
    first, step = case["expect"]["auto_numbers"]
    count = case["expect"]["frames"]
    assert frame_numbers(fit(case, count, auto_scale=True)) == [first + step * index for index in range(count)]


@pytest.mark.parametrize("case", [case for case in KEPT if "bursts" in case["expect"]], ids=lambda case: case["id"])
def test_sound_stays_with_its_frames(case: dict[str, Any]) -> None:
    audio = fit(case, case["expect"]["frames"]).audio
    assert audio is not None
    for burst in case["expect"]["bursts"]:
        start = round((burst - 0.3) * RATE)
        heard = start / RATE + burst_seconds(audio[:, start : start + round(0.6 * RATE)])
        assert heard == pytest.approx(burst, abs=case["expect"]["burst_tol"])


@pytest.mark.parametrize("case", [case for case in KEPT if "tones" in case["expect"]], ids=lambda case: case["id"])
def test_left_and_right_stay_apart(case: dict[str, Any]) -> None:
    audio = fit(case, 89).audio
    assert audio is not None
    left, right = case["expect"]["tones"]
    for channel, own, other in ((audio[0], left, right), (audio[1], right, left)):
        assert decibels(channel, own) - decibels(channel, other) >= case["expect"]["separation_db"]


def decibels(wave: Waves, hertz: float) -> float:
    """How loud a tone is in a wave [S]."""
    middle = wave[RATE // 2 : 5 * RATE // 2]
    turns = 2 * np.pi * hertz * np.arange(len(middle)) / RATE
    return float(20 * np.log10(abs((middle * np.exp(-1j * turns)).mean()) + 1e-9))


@pytest.mark.parametrize("case", [case for case in CASES if case["id"] in LEFT_OUT], ids=lambda case: case["id"])
def test_what_cannot_be_used_says_why(case: dict[str, Any]) -> None:
    assert case["expect"]["or_skip"]
    kind, text = LEFT_OUT[case["id"]]
    with pytest.raises(kind, match=text):
        fit(case, case["expect"].get("need", 89))


@pytest.mark.parametrize("case", [case for case in CASES if case["id"] in LEFT_OUT], ids=lambda case: case["id"])
def test_frames_before_the_damage_are_kept(case: dict[str, Any]) -> None:
    if LEFT_OUT[case["id"]][0] is not ClipDamaged:
        return
    known = probe(OPEN2 / case["file"])
    assert known.damage is not None and not known.cut_off
    for frames in (17, known.frame_count):
        fitted = fit(case, frames)
        assert frame_numbers(fitted) == list(range(frames))
        assert max(max(cards.colour_errors(picture).values()) for picture in fitted.frames) <= 22


def test_every_case_has_its_file() -> None:
    files = {path.name for path in OPEN2.iterdir() if path.suffix != ".json"}
    assert {Path(case["file"]).name for case in CASES} == files
