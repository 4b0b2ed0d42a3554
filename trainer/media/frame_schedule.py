"""How fast the frames of a clip follow each other, and which is shown at each moment of the fitted clip (P11)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from trainer.errors import ClipTooShort
from trainer.geometry import Geometry

MAX_STRETCH = 4.0
# Time stamps are rounded and jitter; a frame that is due this share of a frame later is due now.
EARLY = 0.1
# Cameras and editors use these; a measured rate that fits one of them on every frame is that one.
COMMON_RATES = (8, 10, 12, 12.5, 15, 16, 18, 20, 24000 / 1001, 24, 25, 30000 / 1001, 30, 48, 50, 60000 / 1001, 60, 120)
# Containers count in ticks as coarse as a millisecond; two of them may be rounded apart.
TICK_SECONDS = 0.0021


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
    return Rate(float(min(fitting, key=lambda rate: abs(rate - measured), default=measured)), False)


class Length(Protocol):
    """The length of a clip or a scene."""

    @property
    def frame_count(self) -> int: ...

    @property
    def seconds(self) -> float: ...


@dataclass(frozen=True)
class Schedule:
    """The way in which a clip, or a scene of it, becomes frame_count frames.

    frame_rate None: its frames one by one, as they are. Else at that rate, the clip made `stretch` times as long.
    planned: its length was known, and is enough.
    """

    frame_count: int
    frame_rate: float | None = None
    stretch: float = 1.0
    planned: bool = False

    def repeats(self, shown: int, seconds: float, end_seconds: float, last: bool) -> int:
        """Return how often a frame that is there from seconds to end_seconds is shown, after `shown` frames."""
        left = self.frame_count - shown
        if self.frame_rate is None:
            return min(left, 1)
        if last:
            due = frames_at(self.frame_rate * self.stretch, end_seconds)
            # A plan rests on times that were rounded otherwise; a frame more or less is no surprise.
            due += math.ceil(self.stretch) if self.planned else 0
            return min(left, max(due - shown, 0))
        step = 1 / (self.frame_rate * self.stretch)
        early = EARLY * min(step, end_seconds - seconds)
        count = 0
        while count < left and (shown + count) * step + early < end_seconds:
            count += 1
        return count


def plan(geometry: Geometry, auto_scale: bool, length: Length | None) -> Schedule:
    """Plan how a clip of this length is fitted; None: not known, so long enough.

    With auto_scale it is resampled to the geometry's rate, slowed down if that leaves too few frames, and cut if too
    many. Raises ClipTooShort.
    """
    needed = geometry.frame_count
    if not auto_scale:
        if length and length.frame_count < needed:
            text = f"{length.frame_count} frames, {needed} needed"
            raise ClipTooShort(text, frame_count=length.frame_count, needed_frames=needed)
        return Schedule(needed)
    available = frames_at(geometry.frame_rate, length.seconds) if length else needed
    if available >= needed:
        return Schedule(needed, geometry.frame_rate, planned=length is not None)
    if available * MAX_STRETCH < needed:
        text = (
            f"{available} frames at {geometry.frame_rate:g} fps, {needed} needed, and no clip is slowed down more than "
            f"{MAX_STRETCH:g} times"
        )
        raise ClipTooShort(text, frame_count=available, needed_frames=needed)
    return Schedule(needed, geometry.frame_rate, needed / available, planned=True)


def plan_prefix(geometry: Geometry, length: Length | None = None) -> Schedule:
    """Plan how the first frames of a validation clip are taken: at the geometry's rate, and never slowed down.

    Raises ClipTooShort, with the clip's frames at that rate, when it has fewer.
    """
    needed = geometry.frame_count
    available = frames_at(geometry.frame_rate, length.seconds) if length else needed
    if available < needed:
        text = f"{available} frames at {geometry.frame_rate:g} fps, {needed} needed for the prefix"
        raise ClipTooShort(text, frame_count=available, needed_frames=needed)
    return Schedule(needed, geometry.frame_rate)


def frames_at(frame_rate: float, seconds: float) -> int:
    """Count the frames of so many seconds at a constant rate; the last one counts when half of it is there."""
    return max(int(seconds * frame_rate + 0.5 + 1e-6), 1)
