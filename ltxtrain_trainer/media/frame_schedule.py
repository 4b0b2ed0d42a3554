"""Choose the frame of a clip that is shown at each moment of the fitted clip (P11). No decoder is imported."""

import math
from dataclasses import dataclass
from typing import Protocol

from ltxtrain_trainer.errors import ClipTooShort
from ltxtrain_trainer.geometry import Geometry

MAX_STRETCH = 4.0
# Time stamps are rounded and jitter; a frame that is due this share of a frame later is due now.
EARLY = 0.1


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Shape and sound of fitted clips; preserve_pitch counts where sound is stretched."""

    geometry: Geometry
    auto_scale: bool
    with_audio: bool
    normalize_audio: bool
    preserve_pitch: bool


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames start_frame up to, not including, end_frame; seconds after the clip's first frame appears.

    score: mean change of a pixel at the cut that begins it, 0..48; 0 at the start of the clip.
    """

    start_frame: int
    end_frame: int
    start_seconds: float
    end_seconds: float
    score: float

    @property
    def frame_count(self) -> int:
        return self.end_frame - self.start_frame

    @property
    def seconds(self) -> float:
        return self.end_seconds - self.start_seconds


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
