"""Reports of one training, as the trainer yields them and the service records them. No tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

# Equal parts of the noise levels 0..1 whose losses are reported separately.
QUARTERS = 4
# Suffix of previews that show base model and LoRA side by side, with labels drawn on them.
LABELLED = "-beside-base.mp4"


class FileKind(StrEnum):
    """Kinds of files that a training makes: names of Artifact.Kind without their prefix."""

    LORA = "LORA"
    LORA_VIDEO_ONLY = "LORA_VIDEO_ONLY"
    CHECKPOINT = "CHECKPOINT"
    METRICS = "METRICS"
    VALIDATION_VIDEO = "VALIDATION_VIDEO"
    BASE_VIDEO = "BASE_VIDEO"
    CONTINUED_VIDEO = "CONTINUED_VIDEO"
    VALIDATION_REEL = "VALIDATION_REEL"


@dataclass(frozen=True, kw_only=True)
class MadeFile:
    """A file in the work directory."""

    kind: FileKind
    path: Path
    content_type: str = "application/octet-stream"
    step: int | None = None
    validation_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """Machine, model and libraries of a training, for config.json and the job's page."""

    device: str
    precision: str  # of the frozen base model
    memory: Mapping[str, Any]  # the memory plan (ltxtrain_trainer.memory_plan), bytes by what they are for
    model: str
    model_revision: str
    model_digests: Mapping[str, str]
    layer_count: int
    clip_count: int
    libraries: Mapping[str, str]
    python: str


@dataclass(frozen=True)
class Loading:
    """Bytes of the base model that are downloaded, or on their device, of all."""

    completed_bytes: int
    total_bytes: int


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The base model is on its device."""

    facts: TrainingFacts
    reason: str  # for the memory plan
    seconds: float
    size_bytes: int


@dataclass(frozen=True)
class Preflight:
    """The cost of one clip: seconds of a forward and backward pass, tokens, and the device's peak (0 on a CPU)."""

    seconds: float
    tokens: int
    peak_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step is done: means over the clips of the global batch.

    quarter_losses: video loss of the clips whose video noise level fell into each quarter of 0..1, None for none.
    gradient_norm: before clipping. seconds: without the caller's own time and without evaluation, the wait for data
    included. held_out_loss: after this step, where it was measured.
    """

    step: int
    loss: float
    video_loss: float
    audio_loss: float | None
    quarter_losses: tuple[float | None, ...]
    gradient_norm: float
    learning_rate: float
    seconds: float
    tokens_per_second: float
    data_wait_seconds: float
    held_out_loss: float | None


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """All files of a step are made: those that a restart resumes from, and the LoRA so far."""

    step: int
    files: tuple[MadeFile, ...]
    requested: bool = False


@dataclass(frozen=True, kw_only=True)
class Previewing:
    """Sampling steps done, over all previews of a training step."""

    completed: int
    total: int


@dataclass(frozen=True, kw_only=True)
class PreviewMetrics:
    """One preview, measured; loudness_step_db is None without audio."""

    prefix_latents_equal: bool
    prefix_psnr_db: float
    join_colour_jump: float
    join_contrast_jump: float
    join_luminance_jump: float
    join_motion_break: float
    colour_drift: float
    contrast_drift: float
    first_second_motion: float
    loudness_step_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """One validation entry was continued, by the LoRA or by the base model, and measured."""

    step: int
    index: int
    base_model: bool
    metrics: PreviewMetrics
    files: tuple[MadeFile, ...]


@dataclass(frozen=True)
class RequestedPreviewsDone:
    """The previews that somebody asked for are made, or failed with a warning."""

    step: int


@dataclass(frozen=True)
class Warned:
    """A fact that a person should know and that ends nothing."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The LoRA passed its audit; these are the training's files and the audit's numbers."""

    files: tuple[MadeFile, ...]
    audit: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stopped:
    """The training ended where it was asked to; the checkpoint of this step came before."""

    step: int


Report = (
    Loading
    | Loaded
    | Preflight
    | Step
    | Checkpointed
    | Previewing
    | Previewed
    | RequestedPreviewsDone
    | Warned
    | Finished
    | Stopped
)
