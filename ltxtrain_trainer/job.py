"""One whole training: model, adapter, steps, checkpoints, previews, audit and the files that a job leaves behind."""

import importlib.metadata
import platform
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from ltxtrain_trainer.data.dataset import SampleFolder
from ltxtrain_trainer.errors import TrainerError
from ltxtrain_trainer.lora_file.audit import audit_lora, check_lora
from ltxtrain_trainer.lora_file.export import lora_metadata, lora_tensors, read_lora, video_only, write_lora
from ltxtrain_trainer.model.device import memory_for
from ltxtrain_trainer.model.folder import ModelFolder, fetching_model
from ltxtrain_trainer.model.loading import load_report, loading_transformer
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.plan import JobPlan
from ltxtrain_trainer.preview.previewer import Previewer
from ltxtrain_trainer.reports import (
    Checkpointed,
    FileKind,
    Finished,
    Loaded,
    Loading,
    MadeFile,
    Report,
    RequestedPreviewsDone,
    Step,
    Stopped,
    TrainingFacts,
    Warned,
)
from ltxtrain_trainer.training.beside import Beside
from ltxtrain_trainer.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from ltxtrain_trainer.training.distributed import ALONE, Worker
from ltxtrain_trainer.training.fit import Fit, fit_to_device
from ltxtrain_trainer.training.loop import CheckpointDue, PreviewDue, train
from ltxtrain_trainer.training.lora import adapter, add_lora, fill_adapter
from ltxtrain_trainer.training.losses import suggested_stop
from ltxtrain_trainer.training.preflight import preflight
from ltxtrain_trainer.training.requests import Requests
from ltxtrain_trainer.training.settings import TrainSettings
from ltxtrain_trainer.training.step_log import StepLog

# No config tells the two apart.
DISTILLED = (
    "By its name the base model is a distilled one, which is made for a few steps without guidance: previews are "
    "sampled as of the full model, and do not show what the LoRA does. Train on diffusers/LTX-2.3-Diffusers; its LoRA "
    "can be used with a distilled model."
)
Found = TypeVar("Found")

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "torchao", "av", "numpy")
# Components that training and previews load; text encoder and VAE encoders belong to the preparation.
COMPONENTS = ("transformer", "vae", "audio_vae", "vocoder", "scheduler")


def run_job(
    plan: JobPlan, *, device: torch.device, worker: Worker = ALONE, requests: Requests | None = None
) -> Iterator[Report]:
    """Everything from loading to the audited LoRA. Every worker runs it; only the first makes files and previews.

    Stop by not asking again, or by a request, which leaves a checkpoint. Raises TrainerError of every kind; a preview
    that fails is only warned of.
    """
    job = _Job(plan, device, worker, requests or Requests())
    yield from job.load()
    with Beside[Checkpointed]("checkpoints") as writer:
        try:
            for report in job.train(writer):
                yield report
                yield from writer.ready()
        except TrainerError:
            # The checkpoint before the error is the last good one.
            yield from writer.rest()
            raise
        yield from writer.rest()
    if worker.rank == 0:
        yield job.finish() if job.complete else Stopped(job.step)


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


def reported(fetching: Generator[tuple[int, int], None, Found]) -> Generator[Loading, None, Found]:
    """The bytes of what is fetched or loaded as reports, and at last the thing itself."""
    while True:
        try:
            yield Loading(*next(fetching))
        except StopIteration as done:
            found: Found = done.value
            return found


def facts_of(folder: ModelFolder, fit: Fit, device: torch.device, clip_count: int) -> TrainingFacts:
    """Machine, model and libraries of work on so many clips."""
    return TrainingFacts(
        device=device_name(device),
        precision=fit.plan.precision,
        memory=fit.plan.as_dict(),
        model=folder.reference,
        model_revision=folder.revision,
        model_digests=folder.digests,
        layer_count=folder.layer_count,
        clip_count=clip_count,
        libraries=library_versions(),
        python=platform.python_version(),
    )


class _Job:
    def __init__(self, plan: JobPlan, device: torch.device, worker: Worker, requests: Requests) -> None:
        self._plan = plan
        self._device = device
        self._worker = worker
        self._requests = requests
        self._folder: ModelFolder
        self._resume = read_checkpoint(plan.checkpoint) if plan.checkpoint else None
        self._log = StepLog.read(plan.metrics, self._resume.step) if plan.metrics and self._resume else StepLog()
        self.step = self._resume.step if self._resume else 0
        self._fit: Fit
        self._held: TrainSettings  # as the fit has it
        self._transformer: Any = None
        self._previewer: Previewer | None = None

    @property
    def complete(self) -> bool:
        """Whether every step is done."""
        return self.step == self._plan.settings.steps

    def load(self) -> Iterator[Report]:
        plan, settings = self._plan, self._plan.settings
        self._folder = yield from reported(fetching_model(plan.model, plan.revision, COMPONENTS))
        fit = self._fit = fit_to_device(self._plan, self._folder, self._device, self._worker, self._resume)
        self._held = replace(settings, kept_blocks=fit.plan.kept_blocks)
        with fit.memory_for("loading the base model"):
            loading = loading_transformer(
                self._folder,
                self._device,
                Precision(fit.plan.precision),
                video_only=not settings.with_audio,
                streamed_blocks=fit.plan.streamed_blocks,
            )
            self._transformer = yield from reported(loading)
            add_lora(self._transformer, rank=settings.rank, with_audio=settings.with_audio, seed=settings.seed)
            if self._plan.initial_lora is not None and self._resume is None:
                fill_adapter(self._transformer, read_lora(self._plan.initial_lora))
        report = load_report(self._transformer)
        facts = facts_of(self._folder, fit, self._device, len(self._plan.samples))
        yield Loaded(facts=facts, reason=fit.reason, seconds=report.seconds, size_bytes=report.size_bytes)
        if "distilled" in self._folder.reference.lower():
            yield Warned(DISTILLED)
        if self._resume is None:
            with fit.memory_for(f"a training step on clips of {fit.load.tokens} tokens"):
                measured = preflight(self._transformer, SampleFolder(plan.samples), self._held, self._worker.team)
            yield measured
        if self._plan.previews is not None:
            self._previewer = Previewer(
                folder=self._folder,
                transformer=self._transformer,
                settings=self._plan.previews,
                seed=settings.seed,
                work_dir=self._plan.work_dir,
                worker=self._worker,
            )

    def train(self, writer: Beside[Checkpointed]) -> Iterator[Report]:
        """The steps and what comes with them; checkpoints are written beside them."""
        reports = train(
            self._transformer,
            SampleFolder(self._plan.samples),
            self._held,
            identity={**self._plan.identity, "precision": self._fit.plan.precision},
            worker=self._worker,
            resume=self._resume,
            requests=self._requests,
        )
        while True:
            with self._fit.memory_for(f"a training step on clips of {self._fit.load.tokens} tokens"):
                report = next(reports, None)
            match report:
                case None:
                    break
                case Step():
                    self.step = report.step
                    self._log.add(report)
                    yield report
                    yield from self._left_out(report.step)
                case CheckpointDue(step, checkpoint, requested) if self._worker.rank == 0:
                    write = partial(self._checkpointed, step, checkpoint.snapshot(), self._log.copy(), requested)
                    yield from writer.start(write)
                case PreviewDue(step, requested) if self._previewer is not None:
                    yield from self._previews(self._previewer, step)
                    if requested and not self._requests.stopping:
                        yield RequestedPreviewsDone(step)
        if stop := suggested_stop(self._log.series("held_out_loss")):
            yield Warned(f"The held-out loss was lowest at step {stop}; later steps may be overfitting.")

    def _left_out(self, step: int) -> Iterator[Warned]:
        if self._previewer is not None and step == self._plan.settings.preview_left_out:
            last = self._plan.settings.steps
            yield Warned(f"Step {step} has no previews of its own: those of the last step, {last}, come right after.")

    def _checkpointed(self, step: int, checkpoint: Checkpoint, log: StepLog, requested: bool) -> Checkpointed:
        work_dir = self._plan.work_dir
        state = work_dir / f"checkpoint-{step:06}.safetensors"
        write_checkpoint(checkpoint, state)
        lora = self._write_lora(work_dir / f"lora-{step:06}.safetensors", checkpoint.adapter, step)
        metrics = work_dir / f"metrics-{step:06}.parquet"
        log.write(metrics)
        return Checkpointed(
            step=step,
            files=(
                MadeFile(kind=FileKind.CHECKPOINT, path=state, step=step),
                MadeFile(kind=FileKind.LORA, path=lora, step=step),
                MadeFile(kind=FileKind.METRICS, path=metrics, step=step),
            ),
            requested=requested,
        )

    def _previews(self, previewer: Previewer, step: int) -> Iterator[Report]:
        remedy = "lower validation_resolution or validation_number_of_frames"
        try:
            with memory_for("sampling it", remedy):
                for report in previewer.run(step):
                    yield report
                    if self._requests.stopping:
                        # Minutes of sampling that nobody waits for; the adapter is on again between two reports.
                        return
        except (TrainerError, RuntimeError, OSError) as error:
            # The training is worth more than its previews.
            text = str(error) if isinstance(error, TrainerError) else type(error).__name__
            yield Warned(f"The preview of step {step} failed; the training continues: {text}")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def finish(self) -> Finished:
        """Write the outputs. Raises AuditFailed when the LoRA is not what was asked for."""
        plan, work_dir = self._plan, self._plan.work_dir
        weights, steps = adapter(self._transformer), plan.settings.steps
        lora = self._write_lora(work_dir / "lora.safetensors", weights, steps)
        with self._fit.memory_for("auditing the LoRA"):
            audit = audit_lora(lora, self._folder, with_audio=plan.settings.with_audio, device=self._device)
        files = [MadeFile(kind=FileKind.LORA, path=lora, step=steps)]
        if plan.settings.with_audio:
            part = self._write_lora(work_dir / "lora-video-only.safetensors", weights, steps, video_part=True)
            check_lora(part, self._folder, with_audio=False)
            files.append(MadeFile(kind=FileKind.LORA_VIDEO_ONLY, path=part, step=steps))
        metrics = work_dir / "metrics.parquet"
        self._log.write(metrics)
        files.append(MadeFile(kind=FileKind.METRICS, path=metrics))
        if self._previewer is not None and self._previewer.complete:
            reel = work_dir / "reel.mp4"
            self._previewer.write_reel(reel)
            files.append(MadeFile(kind=FileKind.VALIDATION_REEL, path=reel, content_type="video/mp4"))
        return Finished(files=tuple(files), audit=asdict(audit))

    def _write_lora(
        self, path: Path, weights: Mapping[str, torch.Tensor], step: int, *, video_part: bool = False
    ) -> Path:
        tensors = lora_tensors(weights)
        metadata = lora_metadata(
            base_model=self._folder.public_name,
            revision=self._folder.revision,
            trigger_phrase=self._plan.trigger_phrase,
            settings=self._plan.settings,
            step=step,
        )
        write_lora(video_only(tensors) if video_part else tensors, metadata, path)
        return path
