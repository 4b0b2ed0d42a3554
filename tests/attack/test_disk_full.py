"""Disks that are full to the last byte: work waits or ends by the true reason, and goes on when there is room."""

import asyncio
import hashlib
import os
import pickle
import random
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.backoff import Backoff

from ltxtrain_services.ingest.archive import Archive
from ltxtrain_services.ingest.directory import read_directory
from ltxtrain_services.ingest.fetch import Fetcher
from ltxtrain_services.ingest.prober import Prober, ProbeTask
from ltxtrain_services.ingest.service import IngestService
from ltxtrain_services.preprocess.actors import ClipFitter, FitOrder
from ltxtrain_services.preprocess.outcome import FitTask
from ltxtrain_services.runtime import work
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database, DatabaseFull
from ltxtrain_services.runtime.disk import DiskFull, is_full, scratch_folder
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import Objects, ObjectStore, StoreAddress
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.train.actors import Remote, TrainActor, TrainTask
from tests.attack.full_disk import SIZE_BYTES, Disk, small_disk
from tests.services.gateway.running import STORE
from tests.services.ingest import web
from tests.services.ingest.zips import make_zip
from tests.services.runtime.front import info_of, serving

PATIENCE_SECONDS = 60.0
# A zip in which there is no video: its dataset ends by that reason, once it could be read.
NO_VIDEO = {f"{index}.txt": random.Random(index).randbytes(100_000) for index in range(3)}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    with small_disk(tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def temporary(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """The disk as the one of temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(disk.folder))
    return disk


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "BACKOFF", Backoff(first_seconds=0.001, last_seconds=0.01))


async def test_a_database_on_a_full_disk_is_read_and_nothing_claimed_is_lost(tmp_path: Path) -> None:
    """SQLite, refused by its file system: calls say so, reads and watches go on, and so does all when there is room."""
    with small_disk(tmp_path / "disk") as disk:
        settings = Settings(state_dir=disk.folder)
        database = await Database.open(settings.database, disk.folder)
        async with serving(database, settings) as front:
            stub = front.stub()
            claimed = [(await stub.create()).name]
            watch = stub.watch(claimed[0])
            disk.fill()
            refused = 0
            while not refused:
                # The rest of a page that was begun takes a few.
                try:
                    claimed.append((await stub.create()).name)
                except grpc.aio.AioRpcError as error:
                    refused += 1
                    assert error.code() is grpc.StatusCode.UNAVAILABLE and info_of(error).reason == "DISK_FULL"
            with pytest.raises(DatabaseFull, match="no space left"):
                await front.book.add(claimed[0])
            assert set(await stub.list()) == set(claimed)
            assert await database.answers()
            disk.make_room()
            claimed.append((await stub.create()).name)
            await front.book.add(claimed[0])
            await front.book.finish(claimed[0])
            async with asyncio.timeout(PATIENCE_SECONDS):
                sequences = [response.sequence async for response in watch if response.HasField("event")]
            assert sequences == [1, 2, 3]
            assert set(await stub.list()) == set(claimed)
        await database.close()


@pytest.fixture
async def hosts() -> AsyncIterator[web.Web]:
    async with web.running() as running:
        yield running


@pytest.fixture
async def ingest(disk: Disk, tmp_path: Path, hosts: web.Web) -> AsyncIterator[IngestService]:
    """Ingest with its temporary files on the disk, its database elsewhere, and no cluster, which nothing needs."""
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", tmp_path)
    settings = Settings(state_dir=disk.folder, fetch_allow=(hosts.host,))
    cluster: Any = SimpleNamespace(cpu_count=1)
    runtime = Runtime(settings, database, EventLog(database), Blobs(database), ObjectStore(STORE), cluster)
    service = IngestService(runtime, Fetcher(settings, first_backoff_seconds=0.01))
    yield service
    await service.work.drain()
    await database.close()


async def ended(service: IngestService, name: str) -> tuple[str, str, str]:
    """State, reason and text of a dataset's end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for _ in service._datasets.log.follow(name, 0):
            pass
    lifecycle = (await service._datasets.get(name)).lifecycle
    info = error_details_pb2.ErrorInfo()
    lifecycle.error.details[0].Unpack(info)
    return State.Name(lifecycle.state), info.reason, lifecycle.error.message


async def begin(service: IngestService, name: str, url: str) -> str:
    await service._datasets.create(Dataset(name=name, archive_url=url), owner="ann", request_id="", digest=b"")
    service.work.start(name)
    return name


async def test_a_dataset_waits_for_room_and_goes_on(
    disk: Disk, ingest: IngestService, hosts: web.Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried, served = asyncio.Event(), 0
    body = make_zip(tmp_path / "a.zip", NO_VIDEO).read_bytes()

    async def handler(request: web.Request, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        served += 1
        if served > 2:
            tried.set()
        await web.plain(body)(request, writer)

    hosts.handlers["/a.zip"] = handler
    monkeypatch.setattr(work, "RUN_TRIES", 10**6)
    disk.fill()
    name = await begin(ingest, "datasets/waits", hosts.url("/a.zip"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await tried.wait()
    assert (await ingest._datasets.get(name)).lifecycle.state == State.STATE_RUNNING
    disk.make_room()
    assert (await ended(ingest, name))[:2] == ("STATE_FAILED", "NO_VIDEOS")


async def test_a_dataset_that_finds_no_room_says_which_disk_is_full(
    disk: Disk, ingest: IngestService, hosts: web.Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "RUN_TRIES", 2)
    hosts.handlers["/large.zip"] = web.plain(random.Random(1).randbytes(2 * SIZE_BYTES))
    hosts.handlers["/a.zip"] = web.plain(make_zip(tmp_path / "a.zip", NO_VIDEO).read_bytes())
    state, reason, text = await ended(ingest, await begin(ingest, "datasets/large", hosts.url("/large.zip")))
    assert (state, reason) == ("STATE_FAILED", "DISK_FULL")
    assert f"no space left in {disk.folder}" in text and os.uname().nodename in text
    # Nothing of it is left, and the next one finds all of the disk.
    assert not [path for path in disk.folder.rglob("*") if path.is_file()]
    assert (await ended(ingest, await begin(ingest, "datasets/a", hosts.url("/a.zip"))))[1] == "NO_VIDEOS"


def test_an_entry_that_does_not_fit_leaves_nothing(disk: Disk, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.mp4": random.Random(1).randbytes(2 * SIZE_BYTES)})
    (entry,) = read_directory(path, Settings(state_dir=tmp_path))
    with Archive(path) as archive:
        with pytest.raises(OSError) as error:
            archive.unpack(entry, disk.folder / "clip")
        assert is_full(error.value) and not list(disk.folder.iterdir())
        assert archive.unpack(entry, tmp_path / "clip").size == 2 * SIZE_BYTES


def prober(store: StoreAddress, key: str, sha256: str) -> Callable[[], object]:
    made = Prober.__ray_metadata__.modified_class(store, 10.0, 2**30, {})  # type: ignore[attr-defined]
    return lambda: made.load(ProbeTask(key=key, sha256=sha256, suffix=".mp4"))


def fitter(store: StoreAddress, key: str, sha256: str) -> Callable[[], object]:
    made = ClipFitter.__ray_metadata__.modified_class(store, 10.0, 2**30, {})  # type: ignore[attr-defined]
    task = FitTask(key=key, sha256=sha256, settings=cast(Any, None), frame_count=1, duration_seconds=1.0)
    order = FitOrder(task=task, wanted_files=frozenset(), conditioning_frames=9)
    return lambda: list(made.fit(order))


def trainer(store: StoreAddress, key: str, sha256: str) -> Callable[[], object]:
    made = TrainActor.__ray_metadata__.modified_class(store, 0, 1)  # type: ignore[attr-defined]
    files = {"a": Remote(key, sha256)}
    task = TrainTask(job="jobs/1", plan=cast(Any, None), files=files, worker_count=1, trace={})
    return lambda: list(made.run(task, "127.0.0.1:1"))


@pytest.mark.parametrize("make", [prober, fitter, trainer])
def test_an_actor_whose_scratch_is_full_says_so(
    object_store: StoreAddress, temporary: Disk, make: Callable[[StoreAddress, str, str], Callable[[], object]]
) -> None:
    """Clips and latents that are fetched for a worker: neither the clip nor the store is at fault."""
    body = random.Random(2).randbytes(SIZE_BYTES // 2)
    key, sha256 = "tests/full", hashlib.sha256(body).hexdigest()
    Objects(object_store).put_bytes(key, body, "video/mp4")
    temporary.fill()
    act = make(object_store, key, sha256)
    for _ in range(2):
        with pytest.raises(DiskFull, match=f"no space left in {temporary.folder}") as full:
            act()
    # As it comes from another process.
    assert str(pickle.loads(pickle.dumps(full.value))) == str(full.value)
    temporary.make_room()
    if make is not trainer:  # which would import all that it trains with
        act()
    assert sum(path.stat().st_size for path in temporary.folder.rglob("*") if path.is_file()) <= len(body)


def test_a_disk_on_which_no_folder_can_be_made_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tempfile` says that there is no usable folder, by another number."""
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/full"])
    with pytest.raises(DiskFull), scratch_folder("x"):
        pass
