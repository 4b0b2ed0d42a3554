"""Training of a prepared job in Ray actors, started again from its checkpoint when a worker is lost."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, QueuePosition, Stage

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.cluster import ActorGroup, Placement, WorkerLost
from ltxtrain_services.runtime.service import Runtime, store_address
from ltxtrain_services.runtime.trainer_errors import api_error
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.actors import Stored, TrainActor, TrainTask
from ltxtrain_services.train.artifacts import artifacts, latest_checkpoint
from ltxtrain_services.train.job_plan import Prepared, train_task
from ltxtrain_services.train.queue import Place, Turn, Waiting
from ltxtrain_services.train.recorder import Recorder, TrainingResult
from ltxtrain_trainer.errors import DeviceMemoryExhausted, PeerLost, TrainerError, TrainingDiverged
from ltxtrain_trainer.reports import Preflight, Step

log = logging.getLogger(__name__)

# Restarts after a lost worker without a new checkpoint in between.
MAX_RESTARTS = 5


class Training:
    """Trains jobs on the cluster; `observe` learns how fast each was."""

    def __init__(self, runtime: Runtime, observe: Callable[[Preflight | Step], None]) -> None:
        self._runtime = runtime
        self._observe = observe

    async def run(self, attempt: Attempt[Job], prepared: Prepared, place: Place) -> TrainingResult:
        """Train to the end, in the job's turn, or another one after a loss. Raises ApiError for what ended it."""
        restarts, last_step, streamed_blocks = 0, -1, 0
        job = await attempt.get()
        while True:
            found = await artifacts(attempt)
            checkpoint = latest_checkpoint(found)
            step = checkpoint["CHECKPOINT"].step if checkpoint else 0
            restarts = 0 if step > last_step else restarts
            last_step = step
            recorder = Recorder(attempt, self._runtime.objects, job.effective_spec.number_of_steps, self._observe)
            try:
                async with self._turn(attempt, job, place) as (turn, placement):
                    task = train_task(job, prepared, found, turn.workers, streamed_blocks)
                    async with aclosing(self._reports(task, placement)) as reports:
                        return await recorder.follow(reports)
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
                        f"The training lost a worker {restarts} times after step {step} without getting any further.",
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

    async def _reports(self, task: TrainTask, placement: Placement | None) -> AsyncGenerator[Stored | PeerLost, None]:
        settings = self._runtime.settings
        arguments = [(store_address(settings), rank, settings.torch_threads) for rank in range(task.worker_count)]
        async with ActorGroup.start(self._runtime.cluster, TrainActor, arguments, placement) as group:
            meeting_point = await group.call(0, "meeting_point")
            async with aclosing(group.stream("run", task, meeting_point)) as reports:
                async for report in reports:
                    yield report


def worker_count(job: Job, available: int) -> int:
    """Workers of a job: as many as it asks for, or the most of those that there are that its batch can be shared by."""
    wanted, batch = job.options.gpu_count, job.options.batch_size
    return wanted or max(count for count in range(1, available + 1) if batch % count == 0)


async def _tell(attempt: Attempt[Job], waiting: Waiting, on_gpus: bool) -> None:
    position = QueuePosition(ahead=waiting.ahead)
    if on_gpus:
        position.needed_gpus, position.cluster_gpus = waiting.needed, waiting.present
    async with attempt.edit() as edit:
        edit.body.stage = Stage.STAGE_QUEUE
        edit.body.queue_position = waiting.ahead
        edit.body.waiting.CopyFrom(position)
        edit.add_event(Event(stage=Stage.STAGE_QUEUE, queue_position=position))


async def _begin(attempt: Attempt[Job]) -> None:
    async with attempt.edit() as edit:
        edit.body.stage = Stage.STAGE_TRAIN
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
