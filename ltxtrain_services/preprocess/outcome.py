"""Fitting a clip as plain facts: the task that actors are given, and the outcome that the cache and the report keep."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from ltxtrain.v1.work_pb2 import ReportReason

from ltxtrain_trainer.media.frame_schedule import FitSettings

SERVICE = "preprocess"
SAFETENSORS = "application/vnd.safetensors"


class SampleFile(StrEnum):
    """A file of a sample."""

    LATENTS = "latents"
    # The fitted clip, and the prefix of a validation clip; both lossless.
    PREVIEW = "preview"
    PREFIX = "prefix"
    SHEET = "sheet"


@dataclass(frozen=True, kw_only=True)
class FitTask:
    """One clip, and how it is to be fitted."""

    # Its bytes in the object store.
    key: str
    sha256: str
    settings: FitSettings
    # As its probe found it.
    frame_count: int
    duration_seconds: float
    # The damage that its last frame is followed by; empty: none.
    damage: str = ""
    # Cut at scene changes.
    split: bool = False
    # Only the opening is wanted: settings.geometry has its length and rate.
    prefix: bool = False


class Skip(StrEnum):
    """Why a scene was left out: names of ReportReason without their prefix."""

    CLIP_TOO_SHORT = "CLIP_TOO_SHORT"
    SCENE_TOO_SHORT = "SCENE_TOO_SHORT"
    VALIDATION_CLIP_TOO_SHORT = "VALIDATION_CLIP_TOO_SHORT"
    CLIP_DAMAGED = "CLIP_DAMAGED"
    UNDECODABLE = "UNDECODABLE"
    PRESENTATION_UNSUPPORTED = "PRESENTATION_UNSUPPORTED"
    IMAGE_NOT_ALLOWED = "IMAGE_NOT_ALLOWED"
    NO_VIDEO_TRACK = "NO_VIDEO_TRACK"
    AUDIO_TRACK_MISSING = "AUDIO_TRACK_MISSING"
    AUDIO_UNDECODABLE = "AUDIO_UNDECODABLE"
    ACTOR_KILLED = "ACTOR_KILLED"

    @property
    def for_length(self) -> bool:
        """Whether another number_of_frames could keep it."""
        return self in (Skip.CLIP_TOO_SHORT, Skip.SCENE_TOO_SHORT, Skip.VALIDATION_CLIP_TOO_SHORT)


@dataclass(frozen=True, kw_only=True)
class SceneOutcome:
    """One scene of a clip, or the whole of a clip that was not split: fitted, or left out for a reason."""

    # In frames of the clip.
    start_frame: int = 0
    source_frames: int = 0
    # The fitted clip.
    frame_count: int = 0
    frame_rate: float = 0.0
    # Duration after over before.
    stretch: float = 1.0
    unused_frames: int = 0
    crop_loss_percent: float = 0.0
    silent: bool = False
    # For how long the track has no sound beside the frames in use.
    audio_missing_seconds: float = 0.0
    # The cut that the scene begins with.
    cut_seconds: float = 0.0
    cut_score: float = 0.0
    # Set when the scene was left out.
    skipped: Skip | None = None
    description: str = ""
    # Set when it is too short: its frames at the rate that counts, and how many are needed.
    have_frames: int | None = None
    needed_frames: int | None = None

    @property
    def reason(self) -> "ReportReason":
        """The contract's reason of a scene that was left out."""
        return ReportReason.Value(f"REPORT_REASON_{self.skipped}")  # type: ignore[return-value] # typed as int


@dataclass(frozen=True, kw_only=True)
class FitOutcome:
    """All scenes of one clip, in their order; more than one, or one with a cut, only of a clip that was split."""

    scenes: Sequence[SceneOutcome] = field(default_factory=tuple)

    @property
    def kept(self) -> dict[int, SceneOutcome]:
        """Scenes that became samples, by their index."""
        return {index: scene for index, scene in enumerate(self.scenes) if not scene.skipped}

    @property
    def killed(self) -> bool:
        """Left out for what it does to workers, which another day may not: never kept in the cache."""
        return any(scene.skipped is Skip.ACTOR_KILLED for scene in self.scenes)

    def dump(self) -> dict[str, Any]:
        return {"scenes": [asdict(scene) for scene in self.scenes]}

    @classmethod
    def load(cls, facts: dict[str, Any]) -> "FitOutcome | None":
        """The outcome in a cache's facts; None for one with other fields than there are now."""
        try:
            return cls(scenes=tuple(_scene(**scene) for scene in facts["scenes"]))
        except (KeyError, TypeError, ValueError):
            return None


def _scene(*, skipped: str | None, **facts: Any) -> SceneOutcome:
    return SceneOutcome(skipped=None if skipped is None else Skip(skipped), **facts)
