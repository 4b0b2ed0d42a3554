"""Input of one training: files on this machine and resolved settings. No tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
