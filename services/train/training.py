"""The second half of a job: wait for a GPU, train in Ray actors, and make durable what they report."""

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job, JobOutput
from ltxtrain.v1.work_pb2 import Event, Progress, QueuePosition, Stage

from services.runtime import errors
from services.runtime.cluster import ActorGroup, WorkerLost
from services.runtime.service import Runtime, store_address
from services.runtime.store import Edit
from services.runtime.work import Attempt, Ending
from services.train import artifacts as jobs_artifacts
from services.train.actors import Failed, Stored, TrainActor, TrainTask
from services.train.artifacts import artifact, artifacts, latest_checkpoint, outdated, record
from services.train.failures import trainer_failure
from services.train.job_plan import Prepared, train_task
from services.train.queue import GpuQueue, Place
from services.train.recorder import StepEvents, preview_metrics, preview_progress
from services.train.spec import billable_units
from trainer.plan import Checkpointed, Finished, Loaded, Previewed, Previewing, Warned
from trainer.training.loop import Step
from trainer.training.preflight import Preflight

log = logging.getLogger(__name__)

# Restarts after a lost worker without a new checkpoint in between.
MAX_RESTARTS = 5
METRICS_CURSOR = "train/metrics"


class Training:
    """Trains one job after another, or several at once where there are GPUs for it."""

    def __init__(self, runtime: Runtime, measured: Callable[[Job, Preflight | Step], None]) -> None:
        self._runtime = runtime
        self._measured = measured
        settings = runtime.settings
        self._queue = GpuQueue(runtime.cluster.gpu_count or settings.cpu_trainers)

    def place(self, job: Job) -> AbstractContextManager[Place]:
        """The job's place in the line for GPUs, to be held while it is prepared."""
        return self._queue.place(job.name, job.lifecycle.create_time.ToNanoseconds())

    async def run(self, attempt: Attempt[Job], prepared: Prepared, place: Place) -> Ending[Job]:
        """Train to the end; the ending sets the job's output."""
        workers = self._worker_count(await attempt.get())
        async with place.turn(workers) as positions:
            async for ahead in positions:
                await _waiting(attempt, ahead)
            async with attempt.edit() as edit:
                edit.body.stage = Stage.STAGE_TRAIN
                edit.body.ClearField("queue_position")
            return await self._trained(attempt, prepared, workers)

    def _worker_count(self, job: Job) -> int:
        wanted, batch = job.options.gpu_count, job.options.batch_size
        available = self._queue.capacity
        if wanted > available:
            raise errors.FailedPrecondition(
                ErrorReason.ERROR_REASON_RESOURCE_NOT_READY,
                f"The job asks for {wanted} GPUs and the cluster has {available}.",
                metadata={"gpuCount": wanted, "available": available},
            )
        return wanted or max(count for count in range(1, available + 1) if batch % count == 0)

    async def _trained(self, attempt: Attempt[Job], prepared: Prepared, workers: int) -> Ending[Job]:
        restarts, last_step = 0, -1
        job = await attempt.get()
        while True:
            found = await artifacts(attempt)
            checkpoint = latest_checkpoint(found)
            step = checkpoint["CHECKPOINT"].step if checkpoint else 0
            restarts = 0 if step > last_step else restarts
            last_step = step
            price = self._runtime.settings.unit_price_usd
            task = train_task(job, prepared, found, workers, price)
            try:
                return await _Recorder(self, job, attempt, prepared.shared).follow(self._reports(task))
            except WorkerLost as error:
                restarts += 1
                log.warning("a worker of the training was lost: %s", error, extra={"resource": job.name})
                if restarts >= MAX_RESTARTS:
                    raise errors.Unavailable(
                        ErrorReason.ERROR_REASON_WORKER_LOST,
                        f"The training lost a worker {restarts} times after step {step} without getting any further.",
                        metadata={"step": step, "losses": restarts},
                    ) from error

    async def _reports(self, task: TrainTask) -> AsyncGenerator[Any, None]:
        settings = self._runtime.settings
        arguments = [(store_address(settings), rank, settings.torch_threads) for rank in range(task.worker_count)]
        async with ActorGroup.start(self._runtime.cluster, TrainActor, arguments) as group:
            meeting_point = await group.call(0, "meeting_point")
            async with aclosing(group.stream("run", task, meeting_point)) as reports:
                async for report in reports:
                    yield report

    # For the recorder.
    @property
    def runtime(self) -> Runtime:
        return self._runtime

    def measured(self, job: Job, report: Preflight | Step) -> None:
        self._measured(job, report)


async def _waiting(attempt: Attempt[Job], ahead: int) -> None:
    async with attempt.edit() as edit:
        edit.body.stage = Stage.STAGE_QUEUE
        edit.body.queue_position = ahead
        edit.add_event(Event(stage=Stage.STAGE_QUEUE, queue_position=QueuePosition(ahead=ahead)))


class _Recorder:
    """Makes the reports of one start of a training durable."""

    def __init__(self, training: Training, job: Job, attempt: Attempt[Job], shared: list[Artifact]) -> None:
        self._training = training
        self._job = job
        self._attempt = attempt
        self._shared = shared
        self._preview_steps: set[int] = set()

    async def follow(self, reports: AsyncGenerator[Any, None]) -> Ending[Job]:
        name = self._job.name
        logged = await self._attempt.cursor(METRICS_CURSOR)
        steps = StepEvents(self._job.effective_spec.number_of_steps, logged)
        lost = "the training ended without a word"
        async with aclosing(reports) as stream:
            async for report in stream:
                files = [artifact(name, stored) for stored in report.files] if isinstance(report, Stored) else []
                match report.report if isinstance(report, Stored) else report:
                    case Failed(error="PeerLost", text=text):
                        # The peer itself knows better what happened, if it still can say so.
                        lost = text
                    case Failed() as failure:
                        raise trainer_failure(failure, await artifacts(self._attempt))
                    case Loaded() as loaded:
                        await self._log_loaded(loaded)
                    case Preflight() as measured:
                        self._training.measured(self._job, measured)
                    case Step() as step:
                        self._training.measured(self._job, step)
                        if events := list(steps.add(step)):
                            await self._append(events, steps.logged)
                    case Checkpointed(step=at):
                        await self._append(list(steps.flush(at)), steps.logged, files, at)
                        await self._drop_outdated()
                    case Previewing() as progress:
                        await self._append_slowly(preview_progress(progress))
                    case Previewed() as previewed:
                        self._preview_steps.add(previewed.step)
                        await self._append([preview_metrics(previewed)], steps.logged, files)
                    case Warned(text):
                        await self._append([_warning(text)], steps.logged)
                    case Finished():
                        return self._outcome([*files, *self._shared])
        raise WorkerLost(lost)

    _last_slow = 0.0

    async def _append_slowly(self, event: Event) -> None:
        now = time.monotonic()
        if now - self._last_slow >= 1.0 or event.progress.completed == event.progress.total:
            self._last_slow = now
            async with self._attempt.edit() as edit:
                edit.add_event(event)

    async def _append(
        self, events: list[Event], logged: int, files: list[Artifact] | None = None, checkpoint_step: int | None = None
    ) -> None:
        async with self._attempt.edit() as edit:
            for event in events:
                edit.add_event(event)
                if event.WhichOneof("detail") == "progress":
                    edit.body.progress.CopyFrom(event.progress)
            edit.move_cursor(METRICS_CURSOR, logged)
            record(edit, files or [])
            if checkpoint_step is not None:
                edit.body.checkpoint_step = checkpoint_step

    async def _drop_outdated(self) -> None:
        old = outdated(await artifacts(self._attempt), frozenset(self._preview_steps))
        if not old:
            return
        async with self._attempt.edit() as edit:
            for item in old:
                edit.drop_child(jobs_artifacts.COLLECTION, jobs_artifacts.short_name(item))
        for item in old:
            await self._training.runtime.objects.delete(item.blob.key)

    async def _log_loaded(self, loaded: Loaded) -> None:
        log.info(
            "base model held as %s (%s), %.1f GB in %.1f s",
            loaded.precision,
            loaded.reason,
            loaded.size_bytes / 1e9,
            loaded.seconds,
            extra={"resource": self._job.name},
        )

    def _outcome(self, files: list[Artifact]) -> Ending[Job]:
        price = self._training.runtime.settings.unit_price_usd
        units = billable_units(self._job.effective_spec.number_of_steps)

        def apply(edit: Edit[Job]) -> None:
            record(edit, files)
            edit.body.output.CopyFrom(job_output(files))
            edit.body.billable_units = units
            edit.body.price_usd = units * price
            edit.body.stage = Stage.STAGE_PUBLISH
            total = sum(item.blob.size_bytes for item in files)
            edit.body.progress.CopyFrom(Progress(completed=total, total=total))
            edit.add_event(Event(stage=Stage.STAGE_PUBLISH, progress=edit.body.progress))

        return apply


def job_output(files: list[Artifact]) -> JobOutput:
    names = {item.kind: item.name for item in files}
    return JobOutput(
        lora_file=names.get(Artifact.KIND_LORA, ""),
        config_file=names.get(Artifact.KIND_CONFIG, ""),
        video=names.get(Artifact.KIND_VALIDATION_REEL, ""),
        debug_dataset=names.get(Artifact.KIND_DEBUG_DATASET, ""),
        lora_video_only_file=names.get(Artifact.KIND_LORA_VIDEO_ONLY, ""),
    )


def _warning(text: str) -> Event:
    status = errors.FailedPrecondition(ErrorReason.ERROR_REASON_UNSPECIFIED, text).status()
    return Event(stage=Stage.STAGE_TRAIN, warning=status)
