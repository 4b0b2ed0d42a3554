"""Input of one training, or of a use of its LoRA: files on this machine and resolved settings. No tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltxtrain_trainer.preview.recipe import AUDIO_TEXT_GUIDANCE, STEPS, VIDEO_TEXT_GUIDANCE
from ltxtrain_trainer.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """An encoded clip and the embedding of its prompt, as Preprocess made them."""

    latents: Path
    prompt: Path


@dataclass(frozen=True, kw_only=True)
class PreviewInput:
    """One validation entry: its prefix encoded and as lossless frames, its prompt embedded and as text."""

    index: int
    prompt: str
    prefix: SampleFiles
    prefix_frames: Path


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Settings of every preview: frames of the whole output, prefix included, and guidance."""

    frame_count: int
    stg_scale: float
    schedule_tokens: int  # video tokens that the noise schedule is made for; 0: the preview's own
    negative: Path
    inputs: tuple[PreviewInput, ...]
    text_guidance: float = VIDEO_TEXT_GUIDANCE
    audio_text_guidance: float = AUDIO_TEXT_GUIDANCE
    step_count: int = STEPS
    base_model: bool = True  # also without the LoRA


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that one training job needs; the same on every worker."""

    model: str  # as resolve_model takes it, with its revision
    revision: str | None
    precision: str  # "auto" or one of ltxtrain_trainer.model.precision
    settings: TrainSettings
    trigger_phrase: str
    samples: tuple[SampleFiles, ...]
    previews: PreviewSettings | None
    # Must be equal in a checkpoint and the training that resumes from it: model revision, digest of the samples.
    identity: Mapping[str, str]
    work_dir: Path  # where files are made
    # Files of the step to resume from.
    checkpoint: Path | None = None
    metrics: Path | None = None
    # LoRA whose weights the adapter begins with, as long as there is no checkpoint.
    initial_lora: Path | None = None
    # At least as many of the base's blocks stay in host memory: after a start that found the device full.
    streamed_blocks: int = 0


@dataclass(frozen=True, kw_only=True)
class ContinuationPlan:
    """Everything that continuing clips with a LoRA needs."""

    model: str  # as resolve_model takes it, with its revision
    revision: str | None
    precision: str  # "auto" or one of ltxtrain_trainer.model.precision
    lora: Path
    lora_step: int  # of its training
    with_audio: bool
    seed: int
    clips: PreviewSettings
    work_dir: Path  # where files are made
    # At least as many of the base's blocks stay in host memory: after a start that found the device full.
    streamed_blocks: int = 0
