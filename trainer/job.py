"""One whole training: model, adapter, steps, checkpoints, previews, audit and the files that a job leaves behind."""

import importlib.metadata
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from trainer.data.dataset import SampleFolder
from trainer.errors import TrainerError
from trainer.lora_file.audit import audit_lora
from trainer.lora_file.export import lora_metadata, lora_tensors, video_only, write_lora
from trainer.model.folder import ModelFolder, resolve_model
from trainer.model.loading import load_report, load_transformer, transformer_weight_count
from trainer.model.precision import Precision, PrecisionChoice, choose_precision
from trainer.plan import JobPlan
from trainer.preview.previewer import Previewer
from trainer.reports import (
    Checkpointed,
    FileKind,
    Finished,
    Loaded,
    MadeFile,
    Report,
    Step,
    TrainingFacts,
    Warned,
)
from trainer.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from trainer.training.distributed import Worker
from trainer.training.loop import ALONE, CheckpointDue, PreviewDue, train
from trainer.training.lora import adapter, add_lora
from trainer.training.losses import suggested_stop
from trainer.training.preflight import preflight
from trainer.training.step_log import StepLog

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "torchao", "av", "numpy")
# Components that training and previews load; text encoder and VAE encoders belong to the preparation.
COMPONENTS = ("transformer", "vae", "audio_vae", "vocoder", "scheduler")


def run_job(plan: JobPlan, *, device: torch.device, worker: Worker = ALONE) -> Iterator[Report]:
    """Everything from loading to the audited LoRA. Every worker runs it; only the first makes files and previews.

    Stop by not asking again. Raises TrainerError of every kind; a preview that fails is only warned of.
    """
    job = _Job(plan, device, worker)
    yield from job.load()
    yield from job.train()
    if worker.rank == 0:
        yield job.finish()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that numbers depend on, as far as they are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_name(device: torch.device) -> str:
    """The name of the card, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


class _Job:
    def __init__(self, plan: JobPlan, device: torch.device, worker: Worker) -> None:
        self._plan = plan
        self._device = device
        self._worker = worker
        self._folder: ModelFolder = resolve_model(plan.model, plan.revision, COMPONENTS)
        self._resume = read_checkpoint(plan.checkpoint) if plan.checkpoint else None
        self._log = StepLog.read(plan.metrics, self._resume.step) if plan.metrics and self._resume else StepLog()
        self._transformer: Any = None
        self._previewer: Previewer | None = None

    def load(self) -> Iterator[Report]:
        settings = self._plan.settings
        choice = self._choose_precision()
        self._transformer = load_transformer(self._folder, self._device, choice.precision)
        report = load_report(self._transformer)
        add_lora(self._transformer, rank=settings.rank, with_audio=settings.with_audio, seed=settings.seed)
        yield Loaded(
            facts=self._facts(choice.precision),
            reason=choice.reason,
            seconds=report.seconds,
            size_bytes=report.size_bytes,
        )
        if self._resume is None:
            yield preflight(self._transformer, SampleFolder(self._plan.samples), settings)
        if self._plan.previews is not None and self._worker.rank == 0:
            self._previewer = Previewer(
                folder=self._folder,
                transformer=self._transformer,
                settings=self._plan.previews,
                seed=settings.seed,
                work_dir=self._plan.work_dir,
            )

    def train(self) -> Iterator[Report]:
        reports = train(
            self._transformer,
            SampleFolder(self._plan.samples),
            self._plan.settings,
            identity=self._plan.identity,
            worker=self._worker,
            resume=self._resume,
        )
        for report in reports:
            match report:
                case Step():
                    self._log.add(report)
                    yield report
                case CheckpointDue(step, checkpoint) if self._worker.rank == 0:
                    yield self._checkpointed(step, checkpoint)
                case PreviewDue(step) if self._previewer is not None:
                    yield from self._previews(self._previewer, step)
        if stop := suggested_stop(self._log.series("held_out_loss")):
            yield Warned(f"The held-out loss was lowest at step {stop}; later steps may be overfitting.")

    def _facts(self, precision: str) -> TrainingFacts:
        return TrainingFacts(
            device=device_name(self._device),
            precision=precision,
            model=self._folder.reference,
            model_revision=self._folder.revision,
            model_digests=self._folder.digests,
            layer_count=self._folder.layer_count,
            clip_count=len(self._plan.samples),
            libraries=library_versions(),
            python=platform.python_version(),
        )

    def _choose_precision(self) -> PrecisionChoice:
        if self._plan.precision != "auto":
            if self._device.type == "cpu" and self._plan.precision == "bf16":
                return PrecisionChoice(Precision.BF16, "asked for; slower than fp32 on a CPU")
            return PrecisionChoice(Precision(self._plan.precision), "asked for")
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else None
        return choose_precision(transformer_weight_count(self._folder), free)

    def _checkpointed(self, step: int, checkpoint: Checkpoint) -> Checkpointed:
        work_dir = self._plan.work_dir
        state = work_dir / f"checkpoint-{step:06}.safetensors"
        write_checkpoint(checkpoint, state)
        lora = self._write_lora(work_dir / f"lora-{step:06}.safetensors")
        metrics = work_dir / f"metrics-{step:06}.parquet"
        self._log.write(metrics)
        return Checkpointed(
            step=step,
            files=(
                MadeFile(kind=FileKind.CHECKPOINT, path=state, step=step),
                MadeFile(kind=FileKind.LORA, path=lora, step=step),
                MadeFile(kind=FileKind.METRICS, path=metrics, step=step),
            ),
        )

    def _previews(self, previewer: Previewer, step: int) -> Iterator[Report]:
        try:
            yield from previewer.run(step)
        except (TrainerError, RuntimeError, OSError) as error:
            # The training is worth more than its previews.
            text = str(error) if isinstance(error, TrainerError) else type(error).__name__
            yield Warned(f"The preview of step {step} failed; the training continues: {text}")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def finish(self) -> Finished:
        """Write the outputs. Raises AuditFailed when the LoRA is not what was asked for."""
        plan, work_dir = self._plan, self._plan.work_dir
        lora = self._write_lora(work_dir / "lora.safetensors")
        audit = audit_lora(lora, self._folder, with_audio=plan.settings.with_audio)
        files = [MadeFile(kind=FileKind.LORA, path=lora, step=plan.settings.steps)]
        if plan.settings.with_audio:
            part = self._write_lora(work_dir / "lora-video-only.safetensors", video_part=True)
            audit_lora(part, self._folder, with_audio=False)
            files.append(MadeFile(kind=FileKind.LORA_VIDEO_ONLY, path=part, step=plan.settings.steps))
        metrics = work_dir / "metrics.parquet"
        self._log.write(metrics)
        files.append(MadeFile(kind=FileKind.METRICS, path=metrics))
        if self._previewer is not None and self._previewer.complete:
            reel = work_dir / "reel.mp4"
            self._previewer.write_reel(reel)
            files.append(MadeFile(kind=FileKind.VALIDATION_REEL, path=reel, content_type="video/mp4"))
        return Finished(files=tuple(files), audit=asdict(audit))

    def _write_lora(self, path: Path, *, video_part: bool = False) -> Path:
        tensors = lora_tensors(adapter(self._transformer))
        metadata = lora_metadata(
            base_model=self._folder.reference,
            revision=self._folder.revision,
            trigger_phrase=self._plan.trigger_phrase,
            settings=self._plan.settings,
            step=self._log.rows[-1]["step"],
        )
        write_lora(video_only(tensors) if video_part else tensors, metadata, path)
        return path
