import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, State
from ltxtrain_client.backoff import Backoff
from sqlalchemy import event

from ltxtrain_services.runtime import errors, work
from ltxtrain_services.runtime.cluster import ClusterLost
from ltxtrain_services.runtime.database import Database, DatabaseUnavailable
from ltxtrain_services.runtime.disk import DiskFull
from ltxtrain_services.runtime.object_types import ObjectStoreFull, ObjectStoreUnavailable
from ltxtrain_services.runtime.store import Edit, Store
from ltxtrain_services.runtime.work import Attempt, Retryable, WorkRunner

BACKENDS = ("sqlite", "postgresql")
JOB = "jobs/1"
Apply = Callable[[Edit[Job]], None]
Act = Callable[[str, int], Awaitable[Apply]]


def finish_at(step: int) -> Apply:
    def apply(edit: Edit[Job]) -> None:
        edit.body.checkpoint_step = step

    return apply


async def succeed(name: str, attempt: int) -> Apply:
    return finish_at(7)


async def never_end(name: str, attempt: int) -> Apply:
    await asyncio.Event().wait()
    raise AssertionError


def raising(error: BaseException) -> Act:
    async def act(name: str, attempt: int) -> Apply:
        raise error

    return act


def failing_when_stopped(error: Exception) -> Act:
    async def act(name: str, attempt: int) -> Apply:
        try:
            return await never_end(name, attempt)
        except asyncio.CancelledError:
            raise error from None

    return act


class Scripted:
    """A workflow whose runs and returns a test writes down; the last act of each is repeated."""

    def __init__(self, *acts: Act, salvages: tuple[Act, ...] = (succeed,)) -> None:
        self.acts = deque(acts)
        self.salvages = deque(salvages)
        self.attempts: list[int] = []
        self.salvaged: list[int] = []
        self.running = asyncio.Event()

    async def run(self, attempt: Attempt[Job]) -> Apply:
        self.attempts.append(attempt.number)
        self.running.set()
        act = self.acts.popleft() if len(self.acts) > 1 else self.acts[0]
        return await act(attempt.name, attempt.number)

    async def salvage(self, attempt: Attempt[Job]) -> Apply:
        self.salvaged.append(attempt.number)
        act = self.salvages.popleft() if len(self.salvages) > 1 else self.salvages[0]
        return await act(attempt.name, attempt.number)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "BACKOFF", Backoff(first_seconds=0.0001, last_seconds=0.001))


@pytest.fixture
async def start(jobs: Store[Job]) -> AsyncIterator[Callable[[Scripted], Awaitable[WorkRunner[Job]]]]:
    runners: list[WorkRunner[Job]] = []

    async def start(workflow: Scripted) -> WorkRunner[Job]:
        await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
        runners.append(WorkRunner(jobs, workflow))
        runners[-1].start(JOB)
        return runners[-1]

    yield start
    for runner in runners:
        await runner.drain()


Start = Callable[[Scripted], Awaitable[WorkRunner[Job]]]


async def ended(jobs: Store[Job]) -> Job:
    """The job once its terminal event has come."""
    async for _ in jobs.log.follow(JOB, 0):
        pass
    return await jobs.get(JOB)


async def states(jobs: Store[Job]) -> list["State"]:
    events = [item async for _, item in jobs.log.follow(JOB, 0) if item is not None]
    return [item.lifecycle.state for item in events if item.WhichOneof("detail") == "lifecycle"]


def reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def test_a_run_ends_with_what_the_workflow_returned(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(succeed)
    await start(workflow)
    job = await ended(jobs)
    assert (job.lifecycle.state, job.checkpoint_step, workflow.attempts) == (State.STATE_SUCCEEDED, 7, [1])
    assert await states(jobs) == [State.STATE_PENDING, State.STATE_RUNNING, State.STATE_SUCCEEDED]
    assert job.lifecycle.HasField("start_time") and job.lifecycle.HasField("end_time")


async def test_work_that_runs_is_not_started_twice(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(never_end)
    runner = await start(workflow)
    await workflow.running.wait()
    runner.start(JOB)
    await runner.resume()
    await runner.cancel(JOB, None)
    await ended(jobs)
    assert workflow.attempts == [1]


async def test_an_error_ends_the_resource_with_its_status(start: Start, jobs: Store[Job]) -> None:
    error = errors.FailedPrecondition(
        ErrorReason.ERROR_REASON_TRAINING_DIVERGED, "The loss is not finite.", metadata={"step": 12}
    )
    await start(Scripted(raising(error)))
    job = await ended(jobs)
    assert job.lifecycle.state == State.STATE_FAILED
    assert job.lifecycle.error == error.status()


async def test_an_upstream_error_passes_through_unchanged(start: Start, jobs: Store[Job]) -> None:
    status = errors.FailedPrecondition(
        ErrorReason.ERROR_REASON_IMAGE_NOT_ALLOWED, "Images.", subjects=[("a.png", "an image")], kind="IMAGE"
    ).status()
    await start(Scripted(raising(errors.Upstream(status))))
    assert (await ended(jobs)).lifecycle.error == status


async def test_the_unforeseen_is_told_by_its_trace_alone(
    start: Start, jobs: Store[Job], caplog: pytest.LogCaptureFixture
) -> None:
    await start(Scripted(raising(ZeroDivisionError("the secret of the house"))))
    error = (await ended(jobs)).lifecycle.error
    assert (error.code, reason(error)) == (grpc.StatusCode.INTERNAL.value[0], "INTERNAL")
    assert "secret" not in str(error)
    assert "the secret of the house" in caplog.text


@pytest.mark.parametrize("error", [Retryable("gone"), ObjectStoreUnavailable("gone"), asyncio.CancelledError()])
async def test_an_outage_is_waited_for(start: Start, jobs: Store[Job], error: BaseException) -> None:
    workflow = Scripted(raising(error), raising(error), succeed)
    await start(workflow)
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED
    assert workflow.attempts == [1, 1, 1]


async def test_an_outage_without_end_ends_the_work(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(raising(Retryable("gone: the volume is full: http://store/x?signature=abc")))
    await start(workflow)
    error = (await ended(jobs)).lifecycle.error
    assert (error.code, reason(error)) == (grpc.StatusCode.UNAVAILABLE.value[0], "STORE_UNAVAILABLE")
    assert "gone: the volume is full" in error.message
    assert "signature=abc" not in error.message
    assert len(workflow.attempts) == work.RUN_TRIES


@pytest.mark.parametrize("error", [DiskFull("There is no space left in /scratch."), ObjectStoreFull("full: /scratch")])
async def test_a_full_disk_is_waited_for_and_told_as_such(start: Start, jobs: Store[Job], error: Exception) -> None:
    await start(Scripted(*[raising(error)] * (work.RUN_TRIES - 1), succeed))
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED
    await jobs.delete(JOB)
    await start(Scripted(raising(error)))
    told = (await ended(jobs)).lifecycle.error
    assert (told.code, reason(told)) == (
        grpc.StatusCode.UNAVAILABLE.value[0],
        "DISK_FULL",
    ) and "/scratch" in told.message


async def test_an_outage_after_long_steady_work_is_a_new_one(
    start: Start, jobs: Store[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "STEADY_SECONDS", -1.0)
    workflow = Scripted(*[raising(Retryable("gone"))] * (2 * work.RUN_TRIES), succeed)
    await start(workflow)
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED


async def test_a_lost_database_is_waited_for_as_long_as_it_takes(start: Start, jobs: Store[Job]) -> None:
    tries = 2 * work.RUN_TRIES
    workflow = Scripted(*[raising(DatabaseUnavailable("gone"))] * tries, succeed)
    await start(workflow)
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED
    assert workflow.attempts == list(range(1, tries + 2))


async def test_cancelling_stops_the_work_and_gives_back(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(never_end)
    runner = await start(workflow)
    await workflow.running.wait()
    assert (await runner.cancel(JOB, "ann")).lifecycle.state in (State.STATE_CANCELLING, State.STATE_CANCELLED)
    job = await ended(jobs)
    assert (job.lifecycle.state, job.checkpoint_step) == (State.STATE_CANCELLED, 7)
    assert await states(jobs) == [
        State.STATE_PENDING,
        State.STATE_RUNNING,
        State.STATE_CANCELLING,
        State.STATE_CANCELLED,
    ]


async def test_cancelling_before_the_work_began(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(never_end)
    runner = await start(workflow)
    await runner.cancel(JOB, "ann")
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED


async def test_cancelling_while_the_first_write_waits_for_its_turn(jobs: Store[Job], database: Database) -> None:
    workflow = Scripted(never_end)
    runner = WorkRunner(jobs, workflow)
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    await jobs.create(Job(name="jobs/2"), owner="ann", request_id="", digest=b"")
    async with jobs.edit("jobs/2"):
        cancelling = asyncio.create_task(runner.cancel(JOB, "ann"))
        await writers_waiting(database, 1)
        runner.start(JOB)
        await writers_waiting(database, 2)
    await cancelling
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED
    assert workflow.attempts == []


async def writers_waiting(database: Database, count: int) -> None:
    while len(database._writing._waiters or ()) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)


async def test_cancelling_wins_over_a_success_that_is_not_written_yet(start: Start, jobs: Store[Job]) -> None:
    release = asyncio.Event()

    async def succeed_late(name: str, attempt: int) -> Apply:
        await release.wait()
        return finish_at(99)

    workflow = Scripted(succeed_late)
    await start(workflow)
    await workflow.running.wait()
    async with jobs.edit(JOB) as edit:
        edit.enter(State.STATE_CANCELLING)
    release.set()
    job = await ended(jobs)
    assert (job.lifecycle.state, job.checkpoint_step, workflow.salvaged) == (State.STATE_CANCELLED, 7, [1])


async def test_cancelling_wins_over_the_error_that_it_causes(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(failing_when_stopped(errors.NotReady("stopped")))
    runner = await start(workflow)
    await workflow.running.wait()
    await runner.cancel(JOB, None)
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED


async def test_cancelling_again_changes_nothing(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(never_end)
    runner = await start(workflow)
    await workflow.running.wait()
    await asyncio.gather(*[runner.cancel(JOB, "ann") for _ in range(3)])
    job = await ended(jobs)
    assert await runner.cancel(JOB, "ann") == job
    assert len(workflow.salvaged) == 1
    assert (await states(jobs)).count(State.STATE_CANCELLING) == 1


async def test_a_finished_resource_is_returned_unchanged(start: Start, jobs: Store[Job]) -> None:
    runner = await start(Scripted(succeed))
    job = await ended(jobs)
    assert await runner.cancel(JOB, "ann") == job


async def test_only_its_owner_cancels_a_resource(start: Start, jobs: Store[Job]) -> None:
    runner = await start(Scripted(never_end))
    with pytest.raises(errors.NotFound):
        await runner.cancel(JOB, "bob")
    assert (await jobs.get(JOB)).lifecycle.state in (State.STATE_PENDING, State.STATE_RUNNING)


async def test_a_cancellation_that_nobody_worked_on_is_ended_by_the_next_start(jobs: Store[Job]) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    async with jobs.edit(JOB) as edit:
        edit.enter(State.STATE_CANCELLING)
    workflow = Scripted(never_end)
    await WorkRunner(jobs, workflow).resume()
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED
    assert workflow.attempts == []


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (errors.NotReady("no checkpoint"), "RESOURCE_NOT_READY"),
        (Retryable("gone"), "STORE_UNAVAILABLE"),
        (ZeroDivisionError("a bug"), "INTERNAL"),
    ],
)
async def test_a_cancellation_ends_even_when_nothing_can_be_salvaged(
    start: Start, jobs: Store[Job], error: Exception, told: str
) -> None:
    workflow = Scripted(never_end, salvages=(raising(error),))
    runner = await start(workflow)
    await workflow.running.wait()
    await runner.cancel(JOB, None)
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED
    events = [item async for _, item in jobs.log.follow(JOB, 0) if item is not None]
    assert [reason(item.warning) for item in events if item.HasField("warning")] == [told]


async def test_salvages_waits_for_an_outage(start: Start, jobs: Store[Job]) -> None:
    gone = raising(ObjectStoreUnavailable("gone"))
    workflow = Scripted(never_end, salvages=(gone, gone, succeed))
    runner = await start(workflow)
    await workflow.running.wait()
    await runner.cancel(JOB, None)
    assert (await ended(jobs)).checkpoint_step == 7


@pytest.mark.parametrize("act", [never_end, failing_when_stopped(errors.NotReady("stopped"))])
async def test_draining_leaves_the_work_to_the_next_start(start: Start, jobs: Store[Job], act: Act) -> None:
    workflow = Scripted(act, succeed)
    runner = await start(workflow)
    await workflow.running.wait()
    await runner.drain()
    assert (await jobs.get(JOB)).lifecycle.state == State.STATE_RUNNING
    runner.start(JOB)
    assert workflow.attempts == [1]
    await WorkRunner(jobs, workflow).resume()
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED
    assert workflow.attempts == [1, 2]
    assert (await states(jobs)).count(State.STATE_RUNNING) == 1


async def test_draining_in_the_midst_of_salvages(start: Start, jobs: Store[Job]) -> None:
    giving = asyncio.Event()

    async def give_forever(name: str, attempt: int) -> Apply:
        giving.set()
        return await never_end(name, attempt)

    workflow = Scripted(never_end, salvages=(give_forever, succeed))
    runner = await start(workflow)
    await workflow.running.wait()
    await runner.cancel(JOB, None)
    await giving.wait()
    await runner.drain()
    assert (await jobs.get(JOB)).lifecycle.state == State.STATE_CANCELLING
    await WorkRunner(jobs, workflow).resume()
    assert (await ended(jobs)).lifecycle.state == State.STATE_CANCELLED


@pytest.mark.parametrize("ending", [succeed, raising(errors.NotReady("too late"))])
async def test_what_is_left_of_an_older_attempt_writes_nothing(start: Start, jobs: Store[Job], ending: Act) -> None:
    release = asyncio.Event()

    async def end_late(name: str, attempt: int) -> Apply:
        await release.wait()
        return await ending(name, attempt)

    workflow = Scripted(end_late)
    await start(workflow)
    await workflow.running.wait()
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == JOB]
    async with jobs.edit(JOB) as edit:
        edit.attempt += 1
        edit.add_event(Event(progress=Progress(completed=1)))
    release.set()
    await task
    job = await jobs.get(JOB)
    assert (job.lifecycle.state, job.checkpoint_step, job.lifecycle.last_sequence) == (State.STATE_RUNNING, 0, 3)


async def test_a_lost_cluster_leaves_the_work_to_the_next_start(start: Start, jobs: Store[Job]) -> None:
    workflow = Scripted(raising(ClusterLost("gone")), succeed)
    await start(workflow)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == JOB]
    await task
    assert (await jobs.get(JOB)).lifecycle.state == State.STATE_RUNNING
    await WorkRunner(jobs, workflow).resume()
    assert (await ended(jobs)).lifecycle.state == State.STATE_SUCCEEDED


async def test_a_commit_is_finished_and_told_though_its_writer_is_cancelled(
    jobs: Store[Job], database: Database
) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    follower = jobs.log.follow(JOB, 0)
    seen = [(await anext(follower))[0]]

    async def write() -> None:
        async with jobs.edit(JOB) as edit:
            edit.add_event(Event(progress=Progress(completed=1)))

    await write()
    seen.append((await anext(follower))[0])
    writer = asyncio.create_task(write())
    event.listen(database._engine.sync_engine, "commit", lambda _: writer.cancel())
    await asyncio.wait({writer})
    assert writer.cancelled()
    await write()
    seen += [(await anext(follower))[0], (await anext(follower))[0]]
    assert seen == [1, 2, 3, 4]
    await follower.aclose()
