"""Connections to a service's database: whose it is, how long an answer is awaited, what a cancellation leaves."""

import asyncio
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine

from ltxtrain_services.runtime import database as connections
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.settings import SettingsError

BACKENDS = ("sqlite", "postgresql")
# Its first row takes a while to come, and the second is not asked for before the first was given.
SLOW = """
WITH RECURSIVE numbers(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM numbers WHERE i < 500000)
SELECT count(*) FROM numbers UNION ALL SELECT 2
"""


async def test_a_cancelled_query_leaves_no_lock(database: Database) -> None:
    """Whoever still holds the query, as a traceback does, and whichever statement of a transaction it was."""
    async with database.write() as connection:
        await connection.execute(text("CREATE TABLE note (value INTEGER)"))
    asked = asyncio.Event()

    async def cancelled() -> None:
        async with database.write() as connection:
            await connection.execute(text("INSERT INTO note VALUES (1)"))
            event.listen(connection.sync_connection, "before_cursor_execute", lambda *_: asked.set())
            await connection.execute(text(SLOW))

    writing = asyncio.create_task(cancelled())
    await asked.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError) as kept:
        await writing
    async with database.write() as connection:
        await connection.execute(text("INSERT INTO note VALUES (2)"))
    async with database.read() as connection:
        assert list(await connection.scalars(text("SELECT value FROM note"))) == [2]
    assert kept.traceback


async def test_a_second_process_is_refused(database: Database, database_url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Another process"):
        await Database.open(database_url, tmp_path)
    await database.close()
    await (await Database.open(database_url, tmp_path)).close()


async def test_a_database_of_an_earlier_version_is_refused_by_name(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "old.db") as old:
        old.execute("CREATE TABLE resource (name TEXT PRIMARY KEY, owner TEXT, body BLOB)")
    with pytest.raises(SettingsError, match=r"earlier version.*resource lacks .*display_name.*LTXTRAIN_STATE_DIR"):
        await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'old.db'}", tmp_path)


async def test_a_callers_list_is_read_by_an_index_also_in_a_database_that_was_made_without(tmp_path: Path) -> None:
    """One that has few among many reads no others."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    await (await Database.open(url, tmp_path)).close()
    with sqlite3.connect(tmp_path / "state.db") as old:
        old.execute("DROP INDEX resource_by_owner")
    await (await Database.open(url, tmp_path)).close()
    query = "SELECT * FROM resource WHERE owner = 'ann' AND created < 7 ORDER BY created DESC, name DESC LIMIT 9"
    with sqlite3.connect(tmp_path / "state.db") as now:
        (plan,) = now.execute(f"EXPLAIN QUERY PLAN {query}")
    assert "resource_by_owner (owner=? AND created<?)" in plan[-1]


@pytest.fixture
def silent_server() -> Iterator[int]:
    """Accepts connections and never says a word."""
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)

        def accept() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    for each in taken:
        each.close()


async def test_a_database_that_never_speaks_does_not_answer(
    silent_server: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose packets are lost: connections are made or not, no answer comes, and every probe ends in time."""
    monkeypatch.setattr(connections, "PROBE_SECONDS", 0.2)
    url = f"postgresql+psycopg://ltxtrain@127.0.0.1:{silent_server}/train"
    engine = create_async_engine(url, connect_args=connections._connect_args(url))
    database = Database(engine, cast(Any, None))
    async with asyncio.timeout(60):
        assert [await database.answers() for _ in range(3)] == [False] * 3
        probe = database._probe
        assert await database.answers() is False and database._probe is probe
    database._lock = cast(Any, open("/dev/null"))  # noqa: SIM115, ASYNC230
    await database.close()


def test_a_server_that_vanishes_is_given_up_in_time() -> None:
    given = connections._connect_args("postgresql+psycopg://u@host/train?keepalives_idle=60")
    assert given["connect_timeout"] <= 5 and given["tcp_user_timeout"] <= 20_000
    assert given["keepalives"] == 1 and "keepalives_idle" not in given
