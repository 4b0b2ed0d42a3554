"""The reports of a training made durable: events at most once a second, artifacts, and what its papers are made of."""

import hashlib
import logging
import time
from collections.abc import AsyncIterable, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, PreviewMetrics, Progress, QuarterLoss, Stage, TrainMetrics

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.cluster import WorkerLost
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train import artifacts as of_job
from ltxtrain_services.train.actors import Stored
from ltxtrain_services.train.prepare import Pace, enter_stage
from ltxtrain_services.train.publication import FACTS, MEASURED, WARNINGS, facts_message, measured_key
from ltxtrain_trainer.errors import PeerLost
from ltxtrain_trainer.reports import (
    Checkpointed,
    Finished,
    Loaded,
    Loading,
    Previewed,
    Previewing,
    RequestedPreviewsDone,
    Step,
    Stopped,
    Warned,
)
from ltxtrain_trainer.training.requests import Request

log = logging.getLogger(__name__)

METRICS_CURSOR = "train/metrics"
# Fields of a Job that are true while something is asked for and not made yet.
REQUESTED = {Request.CHECKPOINT: "checkpoint_requested", Request.PREVIEW: "preview_requested"}
EVENT_SECONDS = 1.0
# Steps whose mean duration the remaining time is guessed from.
ETA_STEPS = 50


class StepEvents:
    """Collects steps and says when an event about them is due.

    `logged`: the last step that the event log has already; a resumed training computes those again, and equal.
    """

    def __init__(self, total: int, logged: int) -> None:
        self._total = total
        self._logged = logged
        self._steps: list[Step] = []
        self._seconds: list[float] = []
        self._sent = 0.0
        self._reached = 0

    def add(self, step: Step) -> Iterator[Event]:
        """The events that are due after this step."""
        self._seconds = [*self._seconds[1 - ETA_STEPS :], step.seconds]
        if step.step > self._logged:
            self._steps.append(step)
        if time.monotonic() - self._sent >= EVENT_SECONDS or step.step == self._total:
            yield from self.flush(step.step)

    def flush(self, step: int) -> Iterator[Event]:
        """Events about everything up to a step, or to a later one that is known already."""
        if self._steps:
            step = max(step, self._steps[-1].step)
        step = self._reached = max(step, self._reached)
        self._sent = time.monotonic()
        eta = fmean(self._seconds) * (self._total - step) if self._seconds else 0.0
        yield Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=step, total=self._total, eta_seconds=eta))
        if self._steps:
            yield Event(stage=Stage.STAGE_TRAIN, train_metrics=mean_metrics(self._steps))
            self._logged = self._steps[-1].step
            self._steps = []

    @property
    def logged(self) -> int:
        return self._logged


def mean_metrics(steps: list[Step]) -> TrainMetrics:
    """Means of some steps; the learning rate and the held-out loss are the last ones."""
    last = steps[-1]
    metrics = TrainMetrics(
        step=last.step,
        loss=fmean(step.loss for step in steps),
        video_loss=fmean(step.video_loss for step in steps),
        learning_rate=last.learning_rate,
        seconds_per_step=fmean(step.seconds for step in steps),
        gradient_norm=fmean(step.gradient_norm for step in steps),
        tokens_per_second=fmean(step.tokens_per_second for step in steps),
        data_wait_seconds=fmean(step.data_wait_seconds for step in steps),
    )
    if audio := [step.audio_loss for step in steps if step.audio_loss is not None]:
        metrics.audio_loss = fmean(audio)
    if held_out := [step.held_out_loss for step in steps if step.held_out_loss is not None]:
        metrics.held_out_loss = held_out[-1]
    for quarter, losses in enumerate(zip(*(step.quarter_losses for step in steps), strict=True)):
        if known := [loss for loss in losses if loss is not None]:
            metrics.quarter_losses.append(QuarterLoss(quarter=quarter, video_loss=fmean(known)))
    return metrics


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The files of a finished training, not recorded yet, and the numbers of its LoRA's audit."""

    artifacts: Sequence[Artifact]
    audit: dict[str, Any]


class Recorder:
    """Makes the reports of one start of a training durable; `observe` learns how fast it was.

    `begin`: the step that the training goes on from.
    """

    def __init__(
        self,
        attempt: Attempt[Job],
        objects: ObjectStore,
        steps: int,
        observe: Callable[[Loaded | Step], None],
        begin: int = 0,
    ) -> None:
        self._attempt = attempt
        self._objects = objects
        self._steps = steps
        self._observe = observe
        self._step = self._checkpoint_step = begin
        self._sampled = 0.0
        self._loading = Pace()
        self._told_loading = time.monotonic()
        # The job's stage that the model has interrupted, once it is told of.
        self._stage: Stage | None = None

    @property
    def ahead(self) -> bool:
        """Whether steps are done that no stored checkpoint has."""
        return self._step > self._checkpoint_step

    async def follow(self, reports: AsyncIterable[Stored | PeerLost]) -> TrainingResult | None:
        """Record every report until the last; None for a training that was stopped.

        Raises WorkerLost for one that ends without a last report.
        """
        events = StepEvents(self._steps, await self._attempt.cursor(METRICS_CURSOR))
        lost = "the training stream ended without a final report"
        async for item in reports:
            if isinstance(item, PeerLost):
                # The peer itself knows better what happened, if it still can say so.
                lost = str(item)
                continue
            requested = isinstance(item.report, Checkpointed) and item.report.requested
            files = [of_job.training_artifact(self._attempt.name, stored, requested) for stored in item.files]
            match item.report:
                case Loading() as loading:
                    await self._load(loading)
                case Loaded() as loaded:
                    self._observe(loaded)
                    await self._loaded(loaded)
                case Step() as step:
                    self._observe(step)
                    self._step = step.step
                    if due := list(events.add(step)):
                        await self._append(due, events.logged)
                case Checkpointed(step=at):
                    await self._append(list(events.flush(at)), events.logged, files, at, requested)
                    self._checkpoint_step = at
                    old = of_job.outdated(await of_job.artifacts(self._attempt))
                    await of_job.drop(self._objects, self._attempt, old)
                case Previewing() as progress:
                    await self._sampling(progress)
                case Previewed() as previewed:
                    await self._previewed(previewed, events.logged, files)
                case RequestedPreviewsDone():
                    async with self._attempt.edit() as edit:
                        edit.body.preview_requested = False
                case Warned(text):
                    await self._warned(text)
                case Finished(audit=audit):
                    return TrainingResult(artifacts=files, audit=dict(audit))
                case Stopped():
                    return None
        raise WorkerLost(lost)

    async def _append(
        self,
        events: Sequence[Event],
        logged: int,
        files: Sequence[Artifact] = (),
        checkpoint_step: int | None = None,
        requested: bool = False,
    ) -> None:
        async with self._attempt.edit() as edit:
            for event in events:
                edit.add_event(event)
                if event.WhichOneof("detail") == "progress":
                    edit.body.progress.CopyFrom(event.progress)
            edit.move_cursor(METRICS_CURSOR, logged)
            of_job.record(edit, files)
            if checkpoint_step is not None:
                edit.body.checkpoint_step = checkpoint_step
            if requested:
                edit.body.checkpoint_requested = False

    async def _load(self, loading: Loading) -> None:
        """Tell how far the model is, when it takes longer than a moment."""
        progress, now = self._loading.progress(loading.completed_bytes, loading.total_bytes), time.monotonic()
        last = self._stage is not None and loading.completed_bytes == loading.total_bytes
        if now - self._told_loading < EVENT_SECONDS and not last:
            return
        self._told_loading = now
        async with self._attempt.edit() as edit:
            if self._stage is None:
                self._stage = edit.body.stage
            enter_stage(edit.body, Stage.STAGE_MODEL, progress)
            edit.add_event(Event(stage=Stage.STAGE_MODEL, progress=progress))

    async def _loaded(self, loaded: Loaded) -> None:
        log.info(
            "base model held as %s (%s), %.1f GB in %.1f s",
            loaded.facts.precision,
            loaded.reason,
            loaded.size_bytes / 1e9,
            loaded.seconds,
            extra={"resource": self._attempt.name},
        )
        async with self._attempt.edit() as edit:
            edit.put_child(FACTS, "training", facts_message(loaded.facts))
            if self._stage is not None:
                enter_stage(edit.body, self._stage)

    async def _sampling(self, report: Previewing) -> None:
        now = time.monotonic()
        if now - self._sampled < EVENT_SECONDS and report.completed < report.total:
            return
        self._sampled = now
        progress = Progress(completed=report.completed, total=report.total)
        async with self._attempt.edit() as edit:
            if edit.body.stage == Stage.STAGE_PREVIEW:
                edit.body.progress.CopyFrom(progress)
            edit.add_event(Event(stage=Stage.STAGE_PREVIEW, progress=progress))

    async def _previewed(self, report: Previewed, logged: int, files: Sequence[Artifact]) -> None:
        measured = preview_metrics(report)
        async with self._attempt.edit() as edit:
            edit.put_child(MEASURED, measured_key(measured), measured)
            edit.add_event(Event(stage=Stage.STAGE_PREVIEW, preview_metrics=measured))
            edit.move_cursor(METRICS_CURSOR, logged)
            of_job.record(edit, files)

    async def _warned(self, text: str) -> None:
        warning = errors.FailedPrecondition(ErrorReason.ERROR_REASON_UNSPECIFIED, text).status()
        async with self._attempt.edit() as edit:
            # By its text: a training that is started again says it again.
            edit.put_child(WARNINGS, hashlib.sha256(text.encode()).hexdigest()[:16], warning)
            edit.add_event(Event(stage=Stage.STAGE_TRAIN, warning=warning))


def preview_metrics(report: Previewed) -> PreviewMetrics:
    """The numbers of a preview; the base model's are those of step 0."""
    return PreviewMetrics(
        step=0 if report.base_model else report.step,
        validation_index=report.index,
        base_model=report.base_model,
        **asdict(report.metrics),
    )
