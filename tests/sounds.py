"""Measures what is heard: when a burst begins, and how high a tone is. Waves float32 [S] or [2, S] at 16 kHz."""

import numpy as np
from numpy.typing import NDArray

RATE = 16_000


def burst_seconds(waves: NDArray[np.float32], *, slowed: float = 1.0) -> float:
    """When the loudest 5 ms above 2 kHz begin; of a tape that runs slowed by a factor, what they have become."""
    wave = np.atleast_2d(waves)[0].astype(np.float64)
    spectrum = np.fft.rfft(wave)
    spectrum[np.fft.rfftfreq(len(wave), 1 / RATE) < 2000 / slowed] = 0
    power = np.square(np.fft.irfft(spectrum, len(wave)))
    energy = np.convolve(power, np.ones(round(0.005 * slowed * RATE)), "valid")
    return float(np.argmax(energy)) / RATE


def pitch(wave: NDArray[np.float32]) -> float:
    """Hertz of the loudest tone, between the steps of the spectrum."""
    windowed = wave * np.hanning(len(wave))
    spectrum = np.log(np.abs(np.fft.rfft(windowed)) + 1e-12)
    peak = int(np.argmax(spectrum[1:-1])) + 1
    before, at, after = spectrum[peak - 1 : peak + 2]
    return float((peak + 0.5 * (before - after) / (before - 2 * at + after)) * RATE / len(wave))
