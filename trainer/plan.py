"""A job as the trainer sees it: files of this machine and resolved settings in, reports out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.encoded import EncodedClip, PromptEmbedding, load_clip, load_prompt
from trainer.geometry import Geometry
from trainer.pages.job_page import ReportRow
from trainer.preview.metrics import PreviewMetrics
from trainer.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class SampleFiles:
    """An encoded clip and the embedding of its prompt, as Preprocess made them."""

    latents: Path
    prompt: Path

    def read(self) -> tuple[EncodedClip, PromptEmbedding]:
        return load_clip(self.latents.read_bytes()), load_prompt(self.prompt.read_bytes())


@dataclass(frozen=True)
class SampleFolder:
    """The samples of a training, each read when it is asked for."""

    files: tuple[SampleFiles, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[EncodedClip, PromptEmbedding]:
        return self.files[index].read()


@dataclass(frozen=True, kw_only=True)
class PreviewInput:
    """One validation entry: its prefix encoded and as lossless frames, its prompt embedded and as text."""

    index: int
    prompt: str
    prefix: SampleFiles
    prefix_frames: Path


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """Of every preview: frames of the whole output, and what guides it."""

    frame_count: int
    stg_scale: float
    negative: Path
    inputs: tuple[PreviewInput, ...]


@dataclass(frozen=True, kw_only=True)
class EarlierPreview:
    """A plain preview of the LoRA that an earlier start of the job made."""

    step: int
    index: int
    path: Path


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """Everything that one training job needs; the same on every worker.

    model, revision: as resolve_model takes them. precision: "auto" or one of trainer.model.precision. geometry: of the
    training clips. spec: the resolved sheet as JSON, for the config file. manifest: what else the caller knows of where
    the data came from. report: what became of every clip. work_dir: where files are made. checkpoint, metrics,
    earlier_previews: of the step to go on from, and before it.
    """

    model: str
    revision: str | None
    precision: str
    settings: TrainSettings
    samples: tuple[SampleFiles, ...]
    previews: PreviewSettings | None
    identity: Mapping[str, str]
    geometry: Geometry
    spec: Mapping[str, Any]
    manifest: Mapping[str, Any]
    report: tuple[ReportRow, ...]
    billing: Mapping[str, Any]
    work_dir: Path
    checkpoint: Path | None = None
    metrics: Path | None = None
    earlier_previews: tuple[EarlierPreview, ...] = ()

    @property
    def trigger_phrase(self) -> str:
        return str(self.spec["trigger_phrase"])


@dataclass(frozen=True, kw_only=True)
class MadeFile:
    """A file in the work directory. kind: name of an Artifact.Kind without its prefix, e.g. LORA."""

    kind: str
    path: Path
    content_type: str = "application/octet-stream"
    step: int | None = None
    validation_index: int | None = None


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The base model is on its device."""

    precision: str
    reason: str
    seconds: float
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Checkpointed:
    """All of a step's files are made: what a restart goes on from, and the LoRA so far."""

    step: int
    files: tuple[MadeFile, ...]


@dataclass(frozen=True, kw_only=True)
class Previewing:
    """How far sampling is, over all previews of a step."""

    completed: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Previewed:
    """One validation entry was continued, by the LoRA or by the base model, and measured."""

    step: int
    index: int
    base_model: bool
    metrics: PreviewMetrics
    files: tuple[MadeFile, ...]


@dataclass(frozen=True)
class Warned:
    """Something a person should know that ends nothing."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The LoRA passed its audit; these are the job's outputs."""

    files: tuple[MadeFile, ...]
    audit: Mapping[str, Any] = field(default_factory=dict)
