"""How the process of a service ends: whatever stops it from serving ends it with an error, to be started again."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from ltxtrain.v1 import train_pb2_grpc
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_services.runtime import service
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.service import EXIT_CLUSTER_LOST, EXIT_UNAVAILABLE, Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import Attempt, WorkRunner
from tests.attack.target import running_target
from tests.attack.wire import connected
from tests.services.runtime.front import FULL_NAME, JobBook


class Jobs:
    """A service of the contract whose work never ends by itself."""

    full_name = FULL_NAME

    def __init__(self, runtime: Runtime) -> None:
        self.book = JobBook(runtime.database, runtime.settings)
        self.work: WorkRunner[Job] = WorkRunner(Store(runtime.database, runtime.log, "jobs", Job), self)

    def register(self, server: grpc.aio.Server) -> None:
        train_pb2_grpc.add_TrainServiceServicer_to_server(self.book, server)

    async def tidy(self) -> None:
        return None

    async def run(self, attempt: Attempt[Job]) -> Any:
        await asyncio.Event().wait()

    salvage = run


class StillCluster:
    """A process's view of its cluster; nothing happens in it unless a test says so."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self.can_work = True

    async def watch(self) -> None:
        await self.lost.wait()


@pytest.fixture
def runtime(database: Database, object_store: StoreAddress, tmp_path: Path) -> Runtime:
    settings = Settings(state_dir=tmp_path, grace_seconds=2.0)
    cluster = cast(Cluster, StillCluster())
    return Runtime(settings, database, EventLog(database), Blobs(database), ObjectStore(object_store), cluster)


async def test_a_server_that_accepts_no_more_calls_ends_the_process(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[Server] = []

    async def start(self: Server, start: Callable[[Server], Awaitable[None]] = Server.start) -> None:
        await start(self)
        started.append(self)
        self.ended.set()

    monkeypatch.setattr(Server, "start", start)
    async with asyncio.timeout(60):
        assert await service.run(runtime, Jobs) == EXIT_UNAVAILABLE
    assert started and "accepts no more calls" in caplog.text


UNGUARDED = """
import asyncio, pathlib, sys
from grpc._cython import cygrpc
from ltxtrain_services.runtime import guarded_server
guarded_server._AcceptLoop._request_call = cygrpc.AioServer._request_call
from tests.attack.target import serve
asyncio.run(serve(pathlib.Path(sys.argv[1])))
"""


async def test_the_end_of_grpcs_loop_is_noticed(tmp_path: Path) -> None:
    """As grpcio is without the guard: one request ends its accept loop, while a watch is open, and so the process."""
    async with (
        running_target(tmp_path / "target", "-c", UNGUARDED) as target,
        connected(target.address) as idle,
        connected(target.address) as wire,
    ):
        await idle.greet()
        await idle.request(b"/grpc.health.v1.Health/Watch")
        await wire.greet()
        await wire.request(b"/\xff")
        async with asyncio.timeout(60):
            assert await target.ended() != 0


async def test_a_background_task_that_ends_ends_the_process(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(self: Database) -> bool:
        raise RuntimeError("nobody foresaw it")

    monkeypatch.setattr(Database, "answers", fail)
    async with asyncio.timeout(60):
        assert await service.run(runtime, Jobs) == EXIT_UNAVAILABLE
    assert "the readiness check has ended" in caplog.text


async def test_a_lost_cluster_ends_the_process_with_a_status_of_its_own(runtime: Runtime) -> None:
    runtime.cluster.lost.set()
    async with asyncio.timeout(60):
        assert await service.run(runtime, Jobs) == EXIT_CLUSTER_LOST


@pytest.mark.parametrize(
    ("nodes", "can_work"),
    [
        ([], False),
        ([{"Alive": True, "Resources": {"memory": 1e9}}], False),
        ([{"Alive": False, "Resources": {"CPU": 8.0}}], False),
        ([{"Alive": True, "Resources": {}}, {"Alive": True, "Resources": {"CPU": 8.0}}], True),
    ],
)
def test_a_cluster_without_cpus_cannot_work(
    nodes: list[dict[str, Any]], can_work: bool, ray_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [{"NodeID": str(number), **node} for number, node in enumerate(nodes)]
    monkeypatch.setattr("ray.nodes", lambda: named)
    assert Cluster().can_work is can_work
