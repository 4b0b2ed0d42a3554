"""Measure the frame rate, and whether it is even, from the times at which frames appear."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Cameras and editors use these; a measured rate that fits one of them on every frame is that one.
COMMON_RATES = (8, 10, 12, 12.5, 15, 16, 18, 20, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 120)
# Containers count in ticks as coarse as a millisecond; two of them may be rounded apart.
TICK_SECONDS = 0.0021
EXACT_SECONDS = 1e-6


@dataclass(frozen=True)
class Rate:
    """frames_per_second is the average; of even frames, the exact rate behind rounded time stamps."""

    frames_per_second: float
    variable: bool


def measure_rate(
    times: Sequence[float],
    end: float,
    nominal: float | None,
    *,
    declared: float | None = None,
    tick_seconds: float = 0.0,
) -> Rate:
    """Measure the rate of frames.

    times: of each frame, ascending from 0; end: of the last one; nominal: the container's claim, if it has one;
    declared: by the duration of one frame, which holds where the times agree with it within their tick.
    """
    starts = np.asarray(times, dtype=np.float64)
    average = len(starts) / end
    if len(starts) < 2:
        return Rate(declared or nominal or average, False)
    places = np.arange(len(starts))

    def deviation(rate: float) -> float:
        """Return the greatest distance of a frame from its place at an even rate, in seconds."""
        return float(np.abs(starts - starts[0] - places / rate).max())

    if declared and deviation(declared) <= tick_seconds * 1.01:
        return Rate(declared, False)
    gaps = np.diff(starts)
    typical = float(np.median(gaps))
    if float(gaps.max() - gaps.min()) > max(0.2 * typical, TICK_SECONDS):
        return Rate(average, True)
    measured = (len(starts) - 1) / float(starts[-1] - starts[0])
    candidates = [*([nominal] if nominal else []), *COMMON_RATES]
    fitting = [rate for rate in candidates if deviation(rate) < TICK_SECONDS / 2]
    # FFmpeg's average of rounded times is no better than a rate of which they are the roundings.
    exact = {rate for rate in fitting if deviation(rate) <= (tick_seconds if rate in COMMON_RATES else EXACT_SECONDS)}
    best = min(fitting, key=lambda rate: (rate not in exact, abs(rate - measured)), default=measured)
    return Rate(float(best), False)
