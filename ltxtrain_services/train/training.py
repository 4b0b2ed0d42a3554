"""A prepared job's work in Ray actors, a training or the use of a LoRA: started again when a worker is lost."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, QueuePosition, Stage, State
from ltxtrain_client.sheet import continues_clips

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.cluster import ActorGroup, Placement, WorkerLost
from ltxtrain_services.runtime.service import Runtime, store_address
from ltxtrain_services.runtime.trainer_errors import api_error
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.actors import Stored, TrainActor, TrainTask
from ltxtrain_services.train.artifacts import artifacts, latest_checkpoint
from ltxtrain_services.train.continuation import used_lora
from ltxtrain_services.train.continue_clips import continuation_task
from ltxtrain_services.train.estimate import conditions_of
from ltxtrain_services.train.job_plan import Prepared, train_task
from ltxtrain_services.train.measured import Conditions
from ltxtrain_services.train.prepare import enter_stage
from ltxtrain_services.train.queue import Place, Turn, Waiting
from ltxtrain_services.train.recorder import REQUESTED, Recorder, TrainingResult
from ltxtrain_trainer.errors import DeviceMemoryExhausted, PeerLost, TrainerError, TrainingDiverged
from ltxtrain_trainer.reports import Loaded, Step
from ltxtrain_trainer.training.requests import Request

log = logging.getLogger(__name__)

# Restarts after a lost worker without a new checkpoint in between.
MAX_RESTARTS = 5
# A cancelled training's last step and its checkpoint, gigabytes to a slow store; after it the checkpoint before counts.
STOP_SECONDS = 300.0


@dataclass
class _Running:
    """A training under way, and its actors while there are any."""

    attempt: Attempt[Job]
    group: ActorGroup | None = None


# Learns from a report of a job whose training is held so, on so many GPUs.
Observe = Callable[[Job, Loaded | Step, Conditions, int], None]


class Training:
    """Trains jobs on the cluster; `observe` learns how fast each was."""

    def __init__(self, runtime: Runtime, observe: Observe) -> None:
        self._runtime = runtime
        self._observe = observe
        self._running: dict[str, _Running] = {}

    async def deliver(self, name: str) -> None:
        """Tell a training what is asked of it. One that does not run now learns of it when it starts."""
        running = self._running.get(name)
        if running is None or running.group is None:
            return
        group, job = running.group, await running.attempt.get()
        for request, field in REQUESTED.items():
            if getattr(job, field):
                await group.call(0, "request", request)

    async def run(self, attempt: Attempt[Job], prepared: Prepared, place: Place) -> TrainingResult:
        """Train to the end, in the job's turn, or another one after a loss. Raises ApiError for what ended it.

        Cancelled, a training of a job that is being cancelled leaves a checkpoint of its last step first.
        """
        self._running[attempt.name] = _Running(attempt)
        try:
            return await self._run(attempt, prepared, place)
        finally:
            del self._running[attempt.name]

    async def _run(self, attempt: Attempt[Job], prepared: Prepared, place: Place) -> TrainingResult:
        restarts, last_step, streamed_blocks = 0, -1, 0
        job = await attempt.get()
        while True:
            found = await artifacts(attempt)
            step = _reached(found)
            restarts = 0 if step > last_step else restarts
            last_step = step
            steps = job.effective_spec.extend_prefix.number_of_steps
            try:
                async with self._turn(attempt, job, place) as (turn, placement):
                    observe = self._observing(job, turn.workers)
                    recorder = Recorder(attempt, self._runtime.objects, steps, observe, step)
                    if continues_clips(job):
                        # It may have been deleted while the job waited.
                        lora = await used_lora(attempt.store, job)
                        task = continuation_task(job, prepared, lora, found, streamed_blocks)
                    else:
                        task = train_task(job, prepared, found, turn.workers, streamed_blocks)
                    return await self._recorded(recorder, task, placement)
            except DeviceMemoryExhausted as error:
                if streamed_blocks or not error.next_streamed_blocks:
                    raise api_error(error) from error
                # Once, and from the checkpoint: the same numbers with more of the base model in host memory.
                streamed_blocks = error.next_streamed_blocks
                log.warning("%s Trying once more.", error, extra={"resource": job.name})
            except TrainerError as error:
                raise _ended(error, await artifacts(attempt)) from error
            except WorkerLost as error:
                restarts += 1
                log.warning("a worker of the training was lost: %s", error, extra={"resource": job.name})
                if restarts >= MAX_RESTARTS:
                    raise errors.Unavailable(
                        ErrorReason.ERROR_REASON_WORKER_LOST,
                        f"The {'continuation' if continues_clips(job) else 'training'} lost a worker {restarts} times "
                        f"after {'clip' if continues_clips(job) else 'step'} {step} without getting any further.",
                        metadata={"step": step, "losses": restarts},
                    ) from error

    @asynccontextmanager
    async def _turn(
        self, attempt: Attempt[Job], job: Job, place: Place
    ) -> AsyncIterator[tuple[Turn, Placement | None]]:
        """The job's turn, once it has come, with its GPUs; none on CPUs."""
        cluster = self._runtime.cluster
        await cluster.refresh()
        turn = place.turn(lambda available: worker_count(job, available))
        async for waiting in turn.waiting():
            await _tell(attempt, waiting, cluster.uses_gpus)
        if not turn.on_gpus:
            await _begin(attempt)
            yield turn, None
            return
        async with Placement.request(cluster, turn.workers) as placement:
            told: Waiting | None = None
            async for _ in placement.waiting():
                waiting = Waiting(ahead=0, needed=turn.workers, present=cluster.gpu_count)
                if waiting != told:
                    told = waiting
                    await _tell(attempt, waiting, True)
            await _begin(attempt)
            yield turn, placement

    async def _recorded(self, recorder: Recorder, task: TrainTask, placement: Placement | None) -> TrainingResult:
        """The result of one start. In a task of its own: who is cancelled meanwhile may let it come to a checkpoint."""

        async def follow() -> TrainingResult | None:
            async with aclosing(self._reports(task, placement)) as reports:
                return await recorder.follow(reports)

        following = asyncio.create_task(follow())
        try:
            result = await asyncio.shield(following)
        except asyncio.CancelledError:
            await self._stop(self._running[task.job], recorder, following)
            raise
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        assert result is not None, "only who is cancelled stops a training"
        return result

    async def _stop(self, running: _Running, recorder: Recorder, following: asyncio.Task[Any]) -> None:
        """Let a cancelled job's training store what it has; at once where that is stored already, or for a drain."""
        cancelling = (await running.attempt.get()).lifecycle.state == State.STATE_CANCELLING
        if running.group is None or not cancelling or not recorder.ahead:
            return
        asking = asyncio.create_task(running.group.call(0, "request", Request.STOP))
        _, late = await asyncio.wait({following}, timeout=STOP_SECONDS)
        if late:
            log.warning("no checkpoint in %.0f s", STOP_SECONDS, extra={"resource": running.attempt.name})
        asking.cancel()
        # Who is lost meanwhile leaves the checkpoint before.
        await asyncio.gather(asking, return_exceptions=True)

    def _observing(self, job: Job, workers: int) -> Callable[[Loaded | Step], None]:
        if continues_clips(job):
            return lambda report: None
        conditions = conditions_of(job.options, "", workers)

        def observe(report: Loaded | Step) -> None:
            nonlocal conditions
            if isinstance(report, Loaded):
                conditions = conditions_of(job.options, report.facts.precision, workers)
            self._observe(job, report, conditions, workers)

        return observe

    async def _reports(self, task: TrainTask, placement: Placement | None) -> AsyncGenerator[Stored | PeerLost, None]:
        settings = self._runtime.settings
        arguments = [(store_address(settings), rank, settings.torch_threads) for rank in range(task.worker_count)]
        async with ActorGroup.start(self._runtime.cluster, TrainActor, arguments, placement) as group:
            meeting_point = await group.call(0, "meeting_point")
            running = self._running[task.job]
            running.group = group
            try:
                # What was asked before there was anyone to tell.
                await self.deliver(task.job)
                async with aclosing(group.stream("run", task, meeting_point)) as reports:
                    async for report in reports:
                        yield report
            finally:
                running.group = None


def _reached(found: Sequence[Artifact]) -> int:
    """The step of the last checkpoint; of a continuation, the clips that are made."""
    if checkpoint := latest_checkpoint(found):
        return checkpoint["CHECKPOINT"].step
    return sum(item.kind == Artifact.KIND_CONTINUED_VIDEO for item in found)


def worker_count(job: Job, available: int) -> int:
    """Workers of a job: as many as it asks for, or the most of those that there are that its batch can be shared by."""
    if continues_clips(job):
        return 1
    wanted, batch = job.options.gpu_count, job.options.batch_size
    return wanted or max(count for count in range(1, available + 1) if batch % count == 0)


async def _tell(attempt: Attempt[Job], waiting: Waiting, on_gpus: bool) -> None:
    position = QueuePosition(ahead=waiting.ahead)
    if on_gpus:
        position.needed_gpus, position.cluster_gpus = waiting.needed, waiting.present
    async with attempt.edit() as edit:
        enter_stage(edit.body, Stage.STAGE_QUEUE)
        edit.body.queue_position = waiting.ahead
        edit.body.waiting.CopyFrom(position)
        edit.add_event(Event(stage=Stage.STAGE_QUEUE, queue_position=position))


async def _begin(attempt: Attempt[Job]) -> None:
    async with attempt.edit() as edit:
        enter_stage(edit.body, Stage.STAGE_PREVIEW if continues_clips(edit.body) else Stage.STAGE_TRAIN)
        edit.body.ClearField("queue_position")
        edit.body.ClearField("waiting")


def _ended(error: TrainerError, found: Sequence[Artifact]) -> errors.ApiError:
    """The status of a training that an error ended; a diverged one names its last good LoRA."""
    if not isinstance(error, TrainingDiverged):
        return api_error(error)
    good = latest_checkpoint(found).get("LORA")
    metadata: dict[str, object] = {"step": error.step, "checkpointStep": good.step if good else 0}
    if good is not None:
        metadata["lora"] = good.name
    return api_error(error, metadata)
