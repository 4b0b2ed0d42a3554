"""The clock a day ahead and back, in the midst of work: nothing is lost, listed twice, or swept while it is used."""

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.store import Store

DAY_NS = 24 * 3600 * 10**9


@contextmanager
def clock_off_by(nanoseconds: int) -> Iterator[None]:
    right = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: right() + nanoseconds)
        yield


async def make(jobs: Store[Job], name: str) -> None:
    assert await jobs.create(Job(name=f"jobs/{name}"), owner="ann", request_id="", digest=b"")


async def listed(jobs: Store[Job], size: int) -> list[str]:
    names, token = [], ""
    while True:
        page, token = await jobs.page("ann", size, token)
        names += [job.name.removeprefix("jobs/") for job in page]
        if not token:
            return names


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", tmp_path)
    yield database
    await database.close()


async def test_every_job_is_listed_once_whatever_the_clock_did(database: Database) -> None:
    jobs = Store(database, EventLog(database), "jobs", Job)
    for index, offset in enumerate([0, DAY_NS, -DAY_NS, 0, DAY_NS, -DAY_NS]):
        with clock_off_by(offset):
            await make(jobs, f"{index}a")
            await make(jobs, f"{index}b")
    names = [f"{index}{letter}" for index in range(6) for letter in "ab"]
    for size in (1, 2, 5, 500):
        assert sorted(await listed(jobs, size)) == names
    # A page token made before the clock jumps is good afterwards.
    first, token = await jobs.page("ann", 5, "")
    with clock_off_by(-DAY_NS):
        second, _ = await jobs.page("ann", 500, token)
    assert sorted(job.name.removeprefix("jobs/") for job in (*first, *second)) == names


async def test_events_and_states_do_not_depend_on_the_clock(database: Database) -> None:
    log = EventLog(database)
    jobs = Store(database, log, "jobs", Job)
    with clock_off_by(DAY_NS):
        await make(jobs, "1")
    with clock_off_by(-DAY_NS):
        async with jobs.edit("jobs/1") as edit:
            edit.enter(State.STATE_RUNNING)
        async with jobs.edit("jobs/1") as edit:
            edit.enter(State.STATE_SUCCEEDED)
    assert [sequence async for sequence, _ in log.follow("jobs/1", 0)] == [1, 2, 3]


async def test_what_is_in_use_is_not_swept_by_a_clock_a_day_ahead(database: Database) -> None:
    blobs = Blobs(database)
    jobs = Store(database, EventLog(database), "jobs", Job)
    await make(jobs, "1")
    await blobs.add("train/sha256/used", 1, b"", "jobs/1")
    with clock_off_by(2 * DAY_NS):
        assert await blobs.unused() == []
        assert not await blobs.forget("train/sha256/used")
    # Made while the clock was ahead, given up when it is right again: it is kept, not lost.
    with clock_off_by(DAY_NS):
        await blobs.add("train/sha256/ahead", 1, b"", "jobs/1")
    async with jobs.edit("jobs/1") as edit:
        edit.enter(State.STATE_SUCCEEDED)
    await jobs.delete("jobs/1")
    assert await blobs.unused() == []
    with clock_off_by(3 * DAY_NS):
        assert sorted(await blobs.unused()) == ["train/sha256/ahead", "train/sha256/used"]
