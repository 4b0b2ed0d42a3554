from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.store import Store
from tests.services.runtime.postgres import Postgres


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A module that names its BACKENDS has every test with a database run on each of them."""
    if "backend" in metafunc.fixturenames:
        metafunc.parametrize("backend", getattr(metafunc.module, "BACKENDS", ("sqlite",)), indirect=True)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_url(backend: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if backend == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'state.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.emptied_database()


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(database_url, tmp_path)
    yield database
    await database.close()


@pytest.fixture
def event_log(database: Database) -> EventLog:
    return EventLog(database, heartbeat_seconds=0.05)


@pytest.fixture
def jobs(database: Database, event_log: EventLog) -> Store[Job]:
    return Store(database, event_log, "jobs", Job)
