"""How fast frames follow each other, and whether evenly, from the times at which they appear."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# What cameras and editors use; a measured rate that fits one of them on every frame is that one.
COMMON_RATES = (8, 10, 12, 12.5, 15, 16, 18, 20, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 120)
# Containers count in ticks as coarse as a millisecond; two of them may be rounded apart.
TICK_SECONDS = 0.0021


@dataclass(frozen=True)
class Rate:
    """frames_per_second is the average; of even frames, the exact rate behind rounded time stamps."""

    frames_per_second: float
    variable: bool


def measure_rate(times: Sequence[float], end: float, nominal: float | None) -> Rate:
    """times: of each frame, ascending from 0; end: of the last one; nominal: the container's claim, if it has one."""
    starts = np.asarray(times, dtype=np.float64)
    average = len(starts) / end
    if len(starts) < 2:
        return Rate(nominal or average, False)
    gaps = np.diff(starts)
    typical = float(np.median(gaps))
    if float(gaps.max() - gaps.min()) > max(0.2 * typical, TICK_SECONDS):
        return Rate(average, True)
    measured = (len(starts) - 1) / float(starts[-1] - starts[0])
    places = np.arange(len(starts))
    candidates = [*([nominal] if nominal else []), *COMMON_RATES]
    fitting = [
        rate for rate in candidates if float(np.abs(starts - starts[0] - places / rate).max()) < TICK_SECONDS / 2
    ]
    return Rate(float(min(fitting, key=lambda rate: abs(rate - measured), default=measured)), False)
