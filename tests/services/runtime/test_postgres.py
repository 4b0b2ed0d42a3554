"""Acts of a database server: end connections, restart, forget a lock."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, State
from ltxtrain_client.backoff import Backoff
from psycopg import sql
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import work
from ltxtrain_services.runtime.database import ADVISORY_LOCK, KEEPALIVE, Database, DatabaseUnavailable
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.store import Edit, Store
from ltxtrain_services.runtime.work import Attempt, WorkRunner
from tests.services.runtime.front import info_of, serving
from tests.services.runtime.postgres import Postgres

BACKENDS = ("postgresql",)
JOB = "jobs/1"
END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'ltxtrain'"
)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "BACKOFF", Backoff(first_seconds=0.01, last_seconds=0.02))


@pytest.fixture
async def job(jobs: Store[Job]) -> Job:
    made = await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    assert made is not None
    return made


async def add(jobs: Store[Job]) -> None:
    async with jobs.edit(JOB) as edit:
        edit.add_event(Event(progress=Progress(completed=1)))


def end_connections(postgres: Postgres) -> None:
    postgres.execute(sql.SQL(END_ALL))


async def test_an_ended_connection_loses_its_transaction_and_no_other(
    postgres: Postgres, jobs: Store[Job], job: Job
) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with jobs.edit(JOB) as edit:
            edit.body.checkpoint_step = 7
            end_connections(postgres)
    assert (await jobs.get(JOB)).checkpoint_step == 0
    await add(jobs)
    assert (await jobs.get(JOB)).lifecycle.last_sequence == 2


async def test_idle_connections_that_ended_are_replaced_unnoticed(
    postgres: Postgres, jobs: Store[Job], job: Job
) -> None:
    await asyncio.gather(*[jobs.get(JOB) for _ in range(8)])
    end_connections(postgres)
    assert [item.name for item in await asyncio.gather(*[jobs.get(JOB) for _ in range(8)])] == [JOB] * 8


@pytest.fixture
async def down(postgres: Postgres) -> AsyncIterator[Callable[[], None]]:
    """Stops the server; it runs again afterwards."""
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        postgres.stop()

    yield stop
    if stopped and postgres.is_stopped:
        postgres.start()


async def test_work_goes_on_when_the_server_is_back(
    postgres: Postgres, jobs: Store[Job], job: Job, database: Database, down: Callable[[], None]
) -> None:
    class Working:
        def __init__(self) -> None:
            self.attempts: list[int] = []
            self.waiting = asyncio.Event()

        async def run(self, attempt: Attempt[Job]) -> Callable[[Edit[Job]], None]:
            self.attempts.append(attempt.number)
            if attempt.number == 1:
                down()
                asyncio.get_running_loop().call_soon(self.waiting.set)
            await add(jobs)
            return lambda edit: None

        salvage = run

    workflow = Working()
    runner = WorkRunner(jobs, workflow)
    runner.start(JOB)
    await workflow.waiting.wait()
    assert not await database.answers()
    await asyncio.to_thread(postgres.start)
    assert await database.answers()
    async for _ in jobs.log.follow(JOB, 0):
        pass
    assert (await jobs.get(JOB)).lifecycle.state == State.STATE_SUCCEEDED
    assert workflow.attempts[0] == 1 and len(workflow.attempts) == 2
    await runner.drain()


async def test_callers_are_told_that_the_database_is_away(database: Database, down: Callable[[], None]) -> None:
    async with serving(database, Settings()) as front:
        down()
        with pytest.raises(Exception) as caught:
            await front.stub().list()
        assert info_of(caught.value).reason == "STORE_UNAVAILABLE"  # type: ignore[arg-type]


async def test_a_server_that_is_away_at_the_start_is_named_as_such(
    database_url: str, tmp_path: Path, down: Callable[[], None]
) -> None:
    down()
    with pytest.raises(DatabaseUnavailable):
        await Database.open(database_url, tmp_path)


async def test_a_lock_that_the_server_forgot_is_taken_again(
    postgres: Postgres, database: Database, database_url: str, tmp_path: Path
) -> None:
    end_connections(postgres)
    assert await database.answers()
    with pytest.raises(SettingsError, match="Another process"):
        await Database.open(database_url, tmp_path)


async def test_who_lost_its_lock_to_another_process_writes_nothing(
    postgres: Postgres, database: Database, jobs: Store[Job], job: Job
) -> None:
    end_connections(postgres)
    with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as other:
        other.execute(sql.SQL("SELECT pg_advisory_lock({})").format(sql.Literal(ADVISORY_LOCK)))
        assert not await database.answers()
        with pytest.raises(DatabaseUnavailable, match="Another process"):
            await add(jobs)
        assert (await jobs.get(JOB)).lifecycle.last_sequence == 1
    assert await database.answers()
    await add(jobs)
    assert (await jobs.get(JOB)).lifecycle.last_sequence == 2


async def test_two_services_have_databases_of_their_own(postgres: Postgres, tmp_path: Path) -> None:
    opened = [await Database.open(postgres.new_database(), tmp_path) for _ in range(2)]
    assert [await database.answers() for database in opened] == [True, True]
    for database in opened:
        await database.close()


async def test_the_server_notices_when_the_lock_s_holder_has_vanished(database: Database) -> None:
    """With its host, say: the lock goes within half a minute, not after the two hours that kernels wait."""
    lock = database._lock
    assert isinstance(lock, AsyncConnection)
    query = text("SELECT name, source FROM pg_settings WHERE name LIKE 'tcp_keepalives_%'")
    # What they are set to shows only on TCP, that they are set for this session everywhere.
    assert {row.name: row.source for row in await lock.execute(query)} == dict.fromkeys(
        ("tcp_keepalives_idle", "tcp_keepalives_interval", "tcp_keepalives_count"), "session"
    )
    assert KEEPALIVE["idle"] + KEEPALIVE["interval"] * KEEPALIVE["count"] <= 30
