"""Slowed sound: in tune, at its level, every click once and in its place."""

import numpy as np
import pytest

from ltxtrain_trainer.media.stretch import find_onsets, stretch
from tests.clips import (
    add_burst,
    tones,
)
from tests.sounds import RATE, pitch

PITCH_KEPT = 0.012


@pytest.mark.parametrize("factor", [1.05, 1.3, 1.48, 2.0, 3.1, 4.0])
@pytest.mark.parametrize("hertz", [110, 440, 1500])
def test_pitch_and_level_survive_stretching(factor: float, hertz: float) -> None:
    wave = tones(2, rate=RATE, hertz=(hertz, hertz), level=0.5)
    slow = stretch(wave, round(wave.shape[1] * factor), preserve_pitch=True)
    middle = slow[0, RATE // 4 : -RATE // 4]
    assert slow.shape == (2, round(wave.shape[1] * factor))
    assert pitch(middle) == pytest.approx(hertz, rel=5e-3)
    # Windows that were laid on top of each other out of step would beat.
    levels = np.sqrt(np.mean(np.square(middle[: len(middle) // 800 * 800].reshape(-1, 800)), axis=1))
    assert np.all(np.abs(levels / (0.5 / np.sqrt(2)) - 1) < 0.1)


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.5, 4.0])
def test_every_click_is_heard_once_and_in_place(factor: float) -> None:
    times = [0.2, 0.5, 0.61, 1.0, 1.42, 1.8]
    wave = tones(2, rate=RATE, level=0.05)
    for time in times:
        wave = add_burst(wave, time, rate=RATE)
    slow = stretch(wave, round(wave.shape[1] * factor), preserve_pitch=True)
    power = np.square(np.diff(slow[0], n=2))
    energy = np.convolve(power, np.ones(80), "same")
    loud = energy > energy.max() / 8
    starts = np.flatnonzero(np.diff(loud.astype(int)) == 1) / RATE
    assert len(starts) == len(times)
    assert starts == pytest.approx(np.array(times) * factor, abs=PITCH_KEPT / 2)


def test_onsets_are_sudden_beginnings() -> None:
    wave = add_burst(tones(1, rate=RATE, level=0.05), 0.5, rate=RATE)
    (onset,) = find_onsets(wave)
    assert onset / RATE == pytest.approx(0.5, abs=0.003)
    assert find_onsets(np.zeros((2, RATE), np.float32)) == []
    assert find_onsets(np.zeros((2, 100), np.float32)) == []


@pytest.mark.parametrize("preserve_pitch", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_stretching_copes_with_next_to_nothing(size: int, preserve_pitch: bool) -> None:
    slow = stretch(np.full((2, size), 0.25, np.float32), 3 * size + 7, preserve_pitch=preserve_pitch)
    assert slow.shape == (2, 3 * size + 7)
    assert np.isfinite(slow).all()


def test_noise_keeps_its_level_when_stretched() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2 * RATE)).astype(np.float32)
    slow = stretch(noise, 3 * RATE, preserve_pitch=True)
    assert np.std(slow) == pytest.approx(0.1, rel=0.2)
