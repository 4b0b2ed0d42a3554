"""Each metric on a synthetic clip whose answer is known before it is measured."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from ltxtrain.v1 import work_pb2
from numpy.typing import NDArray

from ltxtrain_trainer.preview import metrics
from ltxtrain_trainer.preview.metrics import Preview, frame_statistics
from ltxtrain_trainer.reports import PreviewMetrics

HEIGHT, WIDTH = 64, 96
PREFIX, TOTAL, RATE = 25, 73, 24


def panning(
    speeds: NDArray[np.float64], *, gain: NDArray[np.float64] | None = None, offset: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """A smooth colour pattern that moves by speeds[t] pixels at frame t; per-frame gain around grey and RGB offset."""
    position = np.cumsum(speeds)
    x = np.arange(WIDTH)[None, :, None]
    y = np.arange(HEIGHT)[:, None, None]
    phase = np.array([0.0, 2.0, 4.0])
    frames = []
    for t, shift in enumerate(position):
        wave = np.sin(2 * np.pi * (x + shift) / 48 + phase) + np.cos(2 * np.pi * y / 32 + phase)
        value = 128 + 25 * wave * (1 if gain is None else gain[t]) + (0 if offset is None else offset[t])
        frames.append(np.clip(np.rint(value), 0, 255).astype(np.uint8))
    return np.stack(frames)


def steady(**changes: Any) -> NDArray[np.uint8]:
    return panning(np.full(TOTAL, 0.7), **changes)


def step_at_join(value: float) -> NDArray[np.float64]:
    return np.where(np.arange(TOTAL) >= PREFIX, value, 0.0)


def measure(frames: NDArray[np.uint8], prefix: NDArray[np.uint8] | None = None) -> PreviewMetrics:
    source = frames[:PREFIX] if prefix is None else prefix
    return metrics.measure(Preview(frames=frames, source_prefix=source, frame_rate=RATE))


def test_a_clip_that_goes_on_as_it_was_shows_nothing() -> None:
    result = measure(steady())
    assert result.join_colour_jump <= 1.5
    assert result.join_contrast_jump <= 1.5
    assert result.join_luminance_jump <= 1.5
    assert result.join_motion_break == pytest.approx(1.0, abs=0.3)
    assert result.colour_drift == pytest.approx(0, abs=0.1)
    assert result.contrast_drift == pytest.approx(0, abs=0.1)
    assert result.first_second_motion == pytest.approx(1.0, rel=0.05)
    assert result.loudness_step_db is None


def test_a_colour_jump_is_counted_in_usual_changes() -> None:
    result = measure(steady(offset=step_at_join(1.0)[:, None, None, None] * np.array([8.0, 0.0, -8.0])))
    # The pattern's own mean hardly moves, so the usual change is the floor of 0.1 levels.
    assert result.join_colour_jump == pytest.approx(math.hypot(8, 8) / 0.1, rel=0.02)
    assert result.join_luminance_jump == pytest.approx(8 * (0.2126 - 0.0722) / 0.1, rel=0.02)
    assert result.join_contrast_jump < 2


def test_a_jump_of_a_clip_that_flickers_anyway_is_no_jump() -> None:
    flicker = np.where(np.arange(TOTAL) % 2, 5.0, 0.0)[:, None, None, None]
    assert measure(steady(offset=flicker)).join_luminance_jump == pytest.approx(1.0, abs=0.05)


def test_a_contrast_jump_is_not_a_colour_jump() -> None:
    gain = np.where(np.arange(TOTAL) >= PREFIX, 0.6, 1.0)
    result = measure(steady(gain=gain))
    deviation = 25.0  # of one channel: two waves of amplitude 25
    assert result.join_contrast_jump == pytest.approx(0.4 * deviation * math.sqrt(3) / 0.1, rel=0.05)
    assert result.join_colour_jump < 2


@pytest.mark.parametrize(
    ("speed_after", "broken"), [(0.7, False), (0.0, True), (-0.7, True)], ids=["goes on", "stops", "turns back"]
)
def test_motion_that_stops_or_turns_back_breaks(speed_after: float, broken: bool) -> None:
    speeds = np.where(np.arange(TOTAL) >= PREFIX, speed_after, 0.7)
    assert (measure(panning(speeds)).join_motion_break > 4) is broken


def test_a_cut_breaks_motion_most() -> None:
    speeds = np.full(TOTAL, 0.7)
    speeds[PREFIX] = 20
    assert measure(panning(speeds)).join_motion_break > 30


def test_a_break_elsewhere_is_not_at_the_join() -> None:
    speeds = np.full(TOTAL, 0.7)
    speeds[PREFIX + 10] = 20
    assert measure(panning(speeds)).join_motion_break < 2


def test_drift_is_a_slope_in_levels_a_second() -> None:
    seconds = np.maximum(np.arange(TOTAL) - PREFIX, 0) / RATE
    offset = seconds[:, None, None, None] * np.array([6.0, 0.0, 8.0])
    assert measure(steady(offset=offset)).colour_drift == pytest.approx(10, rel=0.02)


def test_a_fading_picture_has_a_negative_contrast_slope() -> None:
    seconds = np.maximum(np.arange(TOTAL) - PREFIX, 0) / RATE
    result = measure(steady(gain=1 - 0.2 * seconds))
    full = frame_statistics(steady()).contrast[0]
    assert result.contrast_drift == pytest.approx(-0.2 * full, rel=0.03)
    assert result.colour_drift == pytest.approx(0, abs=0.1)


def test_drift_of_the_prefix_does_not_count() -> None:
    seconds = np.minimum(np.arange(TOTAL), PREFIX) / RATE
    assert measure(steady(offset=seconds[:, None, None, None] * 10)).colour_drift == pytest.approx(0, abs=0.1)


def test_a_frozen_second_has_no_motion() -> None:
    speeds = np.full(TOTAL, 0.7)
    speeds[PREFIX + 1 : PREFIX + RATE] = 0
    assert measure(panning(speeds)).first_second_motion == 0


def test_only_the_first_second_counts() -> None:
    speeds = np.full(TOTAL, 0.7)
    speeds[PREFIX + RATE :] = 0
    assert measure(panning(speeds)).first_second_motion == pytest.approx(1.0, rel=0.05)


def test_motion_out_of_a_still_prefix_stays_finite() -> None:
    speeds = np.where(np.arange(TOTAL) >= PREFIX, 0.7, 0.0)
    assert 1 < measure(panning(speeds)).first_second_motion < 100


@pytest.mark.parametrize(("error", "decibel"), [(0, 100.0), (1, 48.1308), (16, 24.0485)])
def test_psnr_of_a_constant_error(error: int, decibel: float) -> None:
    frames = steady()
    assert measure(frames, frames[:PREFIX] + np.uint8(error)).prefix_psnr_db == pytest.approx(decibel, abs=1e-3)


def test_latents_are_equal_only_bit_for_bit() -> None:
    given = np.array([[0.0, 1.0], [2.0, 3.0]], np.float32)
    frames = steady()

    def equal(*made: NDArray[np.float32]) -> bool:
        preview = Preview(
            frames=frames,
            source_prefix=frames[:PREFIX],
            frame_rate=RATE,
            given_latents=[given] * len(made),
            made_latents=made,
        )
        return metrics.measure(preview).prefix_latents_equal

    assert equal(given.copy()) and equal(given.copy(), given.copy())
    assert not equal(np.where(given == 0, np.float32(-0.0), given))
    assert not equal(given[:1])
    assert not equal(np.nextafter(given, np.float32(9)))
    assert not equal(given, np.nextafter(given, np.float32(9))), "each modality counts"


def sound(
    before: float, after: float, *, rate: int = 48_000, join: float = PREFIX / RATE, seconds: float = 3.0
) -> NDArray[np.float32]:
    t = np.arange(round(seconds * rate)) / rate
    level = np.where(t < join, before, after)
    return np.stack([level * np.sin(2 * np.pi * 440 * t)] * 2).astype(np.float32)


def loudness_step(audio: NDArray[np.float32], prefix: int = PREFIX, rate: float = RATE) -> float | None:
    frames = np.zeros((prefix + 8, 2, 2, 3), np.uint8)
    return metrics.loudness_step_db(Preview(frames=frames, source_prefix=frames[:prefix], frame_rate=rate, audio=audio))


@pytest.mark.parametrize(("before", "after", "decibel"), [(0.1, 0.1, 0), (0.1, 0.2, 6.02), (0.5, 0.05, -20)])
def test_a_loudness_step_is_in_decibel(before: float, after: float, decibel: float) -> None:
    assert loudness_step(sound(before, after)) == pytest.approx(decibel, abs=0.05)


def test_falling_silent_is_a_finite_step() -> None:
    full_scale = 10 * math.log10(0.5)
    assert loudness_step(sound(1.0, 0.0)) == pytest.approx(-70 - full_scale, abs=0.05)


def test_a_prefix_shorter_than_the_window_is_measured_whole() -> None:
    assert loudness_step(sound(0.1, 0.2, join=0.2), prefix=5, rate=25) == pytest.approx(6.02, abs=0.05)


def test_shortest_prefix_and_shortest_continuation_have_all_numbers() -> None:
    frames = steady()
    for prefix, total in ((9, 17), (65, 73)):
        audio = sound(0.1, 0.2, join=prefix / RATE)[:, : total * 2000]
        preview = Preview(frames=frames[:total], source_prefix=frames[:prefix], frame_rate=RATE, audio=audio)
        result = metrics.measure(preview)
        assert all(math.isfinite(getattr(result, field.name)) for field in fields(result))
        assert result.loudness_step_db == pytest.approx(6.02, abs=0.05)


def test_every_metric_has_a_measure_a_formula_and_a_field_of_the_contract() -> None:
    names = [field.name for field in fields(PreviewMetrics)]
    assert list(metrics.MEASURES) == list(metrics.formulas()) == names
    told = {field.name for field in work_pb2.PreviewMetrics.DESCRIPTOR.fields}
    assert told - {"step", "validation_index", "base_model"} == set(names)
    assert all(len(formula) > 40 for formula in metrics.formulas().values())
