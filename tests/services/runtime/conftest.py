from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from ltxtrain.v1.train_pb2 import Job

from services.runtime.events import EventLog
from services.runtime.store import Store
from services.runtime.tables import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", tmp_path)
    yield database
    await database.close()


@pytest.fixture
def event_log(database: Database) -> EventLog:
    return EventLog(database, heartbeat_seconds=0.05)


@pytest.fixture
def jobs(database: Database, event_log: EventLog) -> Store[Job]:
    return Store(database, event_log, "jobs", Job)
