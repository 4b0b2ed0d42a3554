"""Connections to a service's database, and the one process that may write it."""

import asyncio
import fcntl
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy import event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ltxtrain_services.runtime.settings import SettingsError
from ltxtrain_services.runtime.tables import create_tables

# pg_advisory_lock's key: the ASCII codes of "ltxt".
ADVISORY_LOCK = 0x6C747874
# The server lets go of a process's lock some time after the process has ended.
LOCK_SECONDS = 3.0
# After which a database that does not answer counts as gone for now.
PROBE_SECONDS = 5.0
# A peer that vanished, as with its host, is given up after 25 s by either side, not after the kernel's two hours.
KEEPALIVE = {"idle": 10, "interval": 5, "count": 3}
TAKEN = "Another process uses this database. Stop it, or give this service its own LTXTRAIN_DATABASE_URL."
# Class 53 of PostgreSQL's error codes, "insufficient resources".
POSTGRES_DISK_FULL = "53100"
SQLITE_OUTAGES = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
    }
)


class DatabaseUnavailable(Exception):
    """The database does not answer now; nothing of the transaction was written, or it is as if it was not."""


class DatabaseFull(DatabaseUnavailable):
    """The database has no space left; it can still be read."""


class Database:
    """Connections to one database, which belongs to this process until `close`.

    `read` and `write` raise DatabaseUnavailable.
    """

    def __init__(self, engine: AsyncEngine, lock: "IO[str] | AsyncConnection") -> None:
        self._engine = engine
        self._lock = lock
        self._writing = asyncio.Lock()
        # False: a database server forgot our lock, and another process has it now.
        self._owned = True
        self._probe: asyncio.Task[bool] | None = None

    @classmethod
    async def open(cls, url: str, state_dir: Path) -> "Database":
        """Create the tables if absent.

        Raises SettingsError when another process holds the database, and DatabaseUnavailable.
        """
        state_dir.mkdir(parents=True, exist_ok=True)
        on_file = make_url(url).get_backend_name() == "sqlite"
        # A connection that a database server has closed is replaced before it is used.
        engine = create_async_engine(url, pool_pre_ping=not on_file, connect_args=_connect_args(url))
        lock: IO[str] | AsyncConnection
        with _answering():
            if on_file:
                _tune_sqlite(engine)
                lock = _lock_file(Path(make_url(url).database or "state.db").with_suffix(".lock"))
            else:
                lock = await _lock_server(engine)
            async with engine.begin() as connection:
                await connection.run_sync(create_tables)
        return cls(engine, lock)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        with _answering():
            async with self._engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def write(self, committed: Callable[[], None] = lambda: None) -> AsyncIterator[AsyncConnection]:
        """One transaction; once it is durable, `committed` is called, whoever is cancelled meanwhile.

        Writers take turns: sequences are dense, and SQLite has one writer anyway.
        """

        async def commit(connection: AsyncConnection) -> None:
            await connection.commit()
            committed()

        with _answering():
            async with self._writing, self._engine.connect() as connection:
                if not self._owned:
                    raise DatabaseUnavailable(TAKEN)
                yield connection
                await _uninterrupted(commit(connection))

    async def answers(self) -> bool:
        """Whether a query succeeds soon and the database is still ours; a lock that its server forgot is taken anew.

        A probe that gets no answer is left to end by itself, and the next one is not made before.
        """
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._probed())
        await asyncio.wait({self._probe}, timeout=PROBE_SECONDS)
        return self._probe.done() and self._probe.result()

    async def _probed(self) -> bool:
        try:
            async with self.read() as connection:
                await connection.execute(text("SELECT 1"))
            if isinstance(self._lock, AsyncConnection):
                self._lock = await _kept(self._lock, self._engine)
                self._owned = True
        except DatabaseUnavailable:
            return False
        except SettingsError:
            self._owned = False
            return False
        return True

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        if isinstance(self._lock, AsyncConnection) and not self._lock.closed:
            # Its server frees the lock with the connection, in whatever state that is.
            await self._lock.invalidate()
            await self._lock.close()
        await self._engine.dispose()
        if not isinstance(self._lock, AsyncConnection):
            self._lock.close()


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable("The database is too slow: no connection became free.") from error
    except DBAPIError as error:
        if _is_full(error):
            raise DatabaseFull("The disk of the database has no space left.") from error
        if _is_outage(error):
            raise DatabaseUnavailable("The database does not answer.") from error
        raise


def _is_full(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        return getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF == sqlite3.SQLITE_FULL
    return getattr(error.orig, "sqlstate", None) == POSTGRES_DISK_FULL


def _is_outage(error: DBAPIError) -> bool:
    if isinstance(error.orig, sqlite3.Error):
        # What SQLite calls operational includes plain mistakes in a statement.
        return getattr(error.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF in SQLITE_OUTAGES
    return error.connection_invalidated or isinstance(error, OperationalError)


async def _uninterrupted(work: Coroutine[Any, Any, None]) -> None:
    """Run to the end although the caller is cancelled meanwhile, which it learns afterwards."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    task.result()


def _tune_sqlite(engine: AsyncEngine) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        statements = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
            statements.execute(f"PRAGMA {pragma}")
        statements.close()


def _lock_file(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = path.open("w")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        raise SettingsError(
            f"Another process uses the database beside {path}. Stop it, or give this one its own LTXTRAIN_STATE_DIR."
        ) from None
    return handle


class _RollingBack(sqlite3.Connection):
    """A connection that frees the database's lock when it is closed, whatever is left of it.

    Closing is all that SQLAlchemy does where a statement was cancelled; a query that was not read to its end would
    keep the connection, its transaction and the lock of the one writer until somebody collects its cursor.
    """

    def close(self) -> None:
        try:
            if self.in_transaction:
                self.rollback()
        finally:
            super().close()


def _connect_args(url: str) -> dict[str, Any]:
    """How soon psycopg gives up a server that does not answer; what the URL says itself goes before."""
    if make_url(url).get_backend_name() == "sqlite":
        return {"factory": _RollingBack}
    if make_url(url).get_driver_name() != "psycopg":
        return {}
    wanted: dict[str, Any] = {"connect_timeout": 5, "tcp_user_timeout": 20_000, "keepalives": 1}
    wanted |= {f"keepalives_{name}": value for name, value in KEEPALIVE.items()}
    return {name: value for name, value in wanted.items() if name not in make_url(url).query}


async def _lock_server(engine: AsyncEngine) -> AsyncConnection:
    connection = await engine.connect()
    await connection.execution_options(isolation_level="AUTOCOMMIT")
    for name, value in KEEPALIVE.items():
        # The lock of a host that is lost goes with its connection, so the server has to notice.
        await connection.execute(text(f"SET tcp_keepalives_{name} = {value}"))
    deadline = time.monotonic() + LOCK_SECONDS
    while not await connection.scalar(text(f"SELECT pg_try_advisory_lock({ADVISORY_LOCK})")):
        if time.monotonic() > deadline:
            await connection.close()
            raise SettingsError(TAKEN)
        await asyncio.sleep(0.1)
    return connection


async def _kept(lock: AsyncConnection, engine: AsyncEngine) -> AsyncConnection:
    """The connection that holds the lock: the same while it lives, then another. Raises SettingsError."""
    if not lock.closed:
        try:
            await lock.execute(text("SELECT 1"))
            return lock
        except DBAPIError:
            await lock.invalidate()
            await lock.close()
    with _answering():
        return await _lock_server(engine)
