"""Where a long clip is cut into scenes (P12)."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames start_frame up to, not including, end_frame; seconds after the clip's first frame.

    score: how sharp the cut at its start is; 0 at the start of the clip.
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
