import asyncio

import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, State

from ltxtrain_services.runtime.errors import CursorOutOfRange, Draining, NotFound
from ltxtrain_services.runtime.events import PAGE, EventLog
from ltxtrain_services.runtime.store import Store

BACKENDS = ("sqlite", "postgresql")
JOB = "jobs/1"


async def make(jobs: Store[Job], progress: int = 0) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    for completed in range(progress):
        await add(jobs, completed)


async def add(jobs: Store[Job], completed: int) -> None:
    async with jobs.edit(JOB) as edit:
        edit.add_event(Event(progress=Progress(completed=completed)))


async def finish(jobs: Store[Job]) -> None:
    async with jobs.edit(JOB) as edit:
        edit.enter(State.STATE_SUCCEEDED)


async def collect(log: EventLog, after: int = 0) -> list[int]:
    return [sequence async for sequence, event in log.follow(JOB, after) if event is not None]


async def test_sequences_are_dense_from_one(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs, 3)
    await finish(jobs)
    assert await collect(event_log) == [1, 2, 3, 4, 5]
    assert await collect(event_log, 3) == [4, 5]


async def test_the_end_of_a_finished_resource_is_the_end(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs)
    await finish(jobs)
    assert await collect(event_log, 2) == []


async def test_followers_get_news_and_old_pages_alike(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs, 5)
    followers = [asyncio.create_task(collect(event_log, after)) for after in (0, 2, 6)]
    for _ in range(PAGE // 8):
        async with jobs.edit(JOB) as edit:
            edit.events += [Event(progress=Progress(completed=completed)) for completed in range(16)]
    late = asyncio.create_task(collect(event_log))
    await finish(jobs)
    last = 6 + 2 * PAGE + 1
    for task, after in ((followers[0], 0), (followers[1], 2), (followers[2], 6), (late, 0)):
        assert await task == list(range(after + 1, last + 1))


async def test_the_terminal_event_carries_the_final_lifecycle(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs)
    await finish(jobs)
    events = [event async for _, event in event_log.follow(JOB, 0)]
    assert events[-1] is not None
    assert events[-1].lifecycle == (await jobs.get(JOB)).lifecycle
    assert events[-1].lifecycle.last_sequence == 2


async def test_silence_is_filled_with_heartbeats_that_hold_the_cursor(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs, 1)
    follower = event_log.follow(JOB, 0)
    seen = [await anext(follower) for _ in range(4)]
    assert [(sequence, event is None) for sequence, event in seen] == [(1, False), (2, False), (2, True), (2, True)]
    await follower.aclose()
    assert event_log.followers == 0


@pytest.mark.parametrize("after", [-1, 3, 100])
async def test_a_cursor_outside_of_the_log_is_refused(jobs: Store[Job], event_log: EventLog, after: int) -> None:
    await make(jobs, 1)
    with pytest.raises(CursorOutOfRange) as caught:
        await collect(event_log, after)
    assert caught.value.metadata == {"oldestSequence": "1", "lastSequence": "2"}


async def test_an_unknown_resource_is_not_found(event_log: EventLog) -> None:
    with pytest.raises(NotFound):
        await collect(event_log)


async def test_draining_ends_every_follower(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs)
    follower = event_log.follow(JOB, 0)
    assert (await anext(follower))[0] == 1
    waiting = asyncio.create_task(anext(follower))
    event_log.drain()
    with pytest.raises(Draining):
        await waiting


async def test_a_deleted_resource_ends_its_followers(jobs: Store[Job], event_log: EventLog) -> None:
    await make(jobs)
    reader = event_log.follow(JOB, 0)
    await anext(reader)
    await finish(jobs)
    await jobs.delete(JOB)
    with pytest.raises(NotFound):
        await anext(reader)
