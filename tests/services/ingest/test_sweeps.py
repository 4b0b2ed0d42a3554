"""Sweeps against creations, in every order that matters: unneeded objects go, and nothing else."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
from ltxtrain.v1.ingest_pb2 import Clip, CreateUploadRequest, Dataset, Upload

from ltxtrain_services.ingest.archive import hash_file
from ltxtrain_services.ingest.clip_store import ClipStore, probe_version
from ltxtrain_services.ingest.pipeline import IngestWorkflow
from ltxtrain_services.ingest.uploads import KEEP_SECONDS, PREFIX, Uploads
from ltxtrain_services.runtime import blobs as blob_rows
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.errors import NotFound
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import CLOCK_KEY, ObjectStore, StoreAddress
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from tests.services.ingest.clocks import set_clocks

SHA256 = "0" * 64


@dataclass
class Parts:
    """Collaborators of the sweeps, with a bucket and a database of their own."""

    objects: ObjectStore
    database: Database
    blobs: Blobs
    datasets: Store[Dataset]
    uploads: Uploads

    async def dataset(self, name: str, **source: str) -> None:
        await self.datasets.create(Dataset(name=name, **source), owner="ann", request_id="", digest=b"")  # type: ignore[arg-type]

    async def upload(self) -> str:
        made = await self.uploads.create(CreateUploadRequest(size_bytes=1, sha256=SHA256), "ann")
        await self.objects.put_bytes(f"ingest/{made.upload}", b"x", "application/zip")
        return made.upload

    async def keys(self, prefix: str) -> set[str]:
        return {blob.key for blob in await self.objects.list_prefix(prefix)} - {CLOCK_KEY}


@pytest.fixture
async def parts(tmp_path: Path, object_store: StoreAddress) -> AsyncIterator[Parts]:
    objects = ObjectStore(replace(object_store, bucket=f"sweeps{random.randrange(1 << 40)}"))
    await objects.ensure_bucket()
    database = await Database.open(Settings(state_dir=tmp_path).database, tmp_path)
    log = EventLog(database)
    uploads = Uploads(Store(database, log, "uploads", Upload), objects, 1 << 40)
    yield Parts(objects, database, Blobs(database), Store(database, log, "datasets", Dataset), uploads)
    await database.close()


def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clocks(monkeypatch, time.time() + KEEP_SECONDS + 3600)


async def test_a_folder_that_is_made_during_a_sweep_stays(tmp_path: Path) -> None:
    nothing = cast(Any, None)
    workflow = IngestWorkflow(Settings(state_dir=tmp_path), nothing, nothing, nothing)
    for name in ("dead", "working"):
        (workflow.scratch / name).mkdir(parents=True)

    async def unfinished() -> Sequence[Dataset]:
        found = [Dataset(name="datasets/working")]
        # Its row is written right after this was read, its folder right after its row.
        (workflow.scratch / "new").mkdir()
        return found

    await workflow.sweep(unfinished)
    assert {folder.name for folder in workflow.scratch.iterdir()} == {"working", "new"}


async def test_an_upload_is_not_swept_while_a_dataset_of_it_is_made(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await parts.upload()
    tomorrow(monkeypatch)
    async with parts.uploads.held([upload], "ann"):
        sweep = asyncio.create_task(parts.uploads.sweep(parts.datasets.unfinished))
        await asyncio.wait([sweep], timeout=0.2)  # as far as it gets
        await parts.dataset("datasets/a", upload=upload)
    await sweep
    assert await parts.uploads.arrived(upload) in await parts.keys(PREFIX)


async def test_a_dataset_is_not_made_of_an_upload_that_is_being_swept(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await parts.upload()
    tomorrow(monkeypatch)
    creations: list[asyncio.Task[None]] = []

    async def create() -> None:
        async with parts.uploads.held([upload], "ann"):
            await parts.dataset("datasets/a", upload=upload)

    async def unfinished() -> Sequence[Dataset]:
        found = await parts.datasets.unfinished()
        creations.append(asyncio.create_task(create()))
        await asyncio.wait(creations, timeout=0.2)
        return found

    await parts.uploads.sweep(unfinished)
    with pytest.raises(NotFound):
        await creations[0]
    assert await parts.datasets.unfinished() == []


async def test_objects_whose_upload_is_gone_are_swept(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """PUT by a URL that was still valid, or left by a process that died between row and object."""
    orphan, key = f"{PREFIX}{'ab' * 16}", f"ingest/{await parts.upload()}"
    await parts.objects.put_bytes(orphan, b"x", "application/zip")
    await parts.uploads.sweep(parts.datasets.unfinished)
    assert await parts.keys(PREFIX) == {orphan, key}
    tomorrow(monkeypatch)
    await parts.dataset("datasets/a", upload=key.removeprefix("ingest/"))
    await parts.uploads.sweep(parts.datasets.unfinished)
    assert await parts.keys(PREFIX) == {key}


# Below: clips by content.


@asynccontextmanager
async def free(key: str) -> AsyncIterator[None]:
    yield


async def stored(parts: Parts, key: str, *, row: bool) -> str:
    await parts.objects.put_bytes(key, key.encode(), "video/mp4")
    if row:
        await parts.blobs.add(key, len(key), b"", "datasets/a")
    return key


async def release(parts: Parts, dataset: str) -> None:
    async with parts.database.write() as connection:
        await blob_rows.release(connection, dataset)


async def test_a_sweep_takes_rows_without_references_and_objects_without_rows(parts: Parts) -> None:
    used = await stored(parts, "ingest/sha256/used", row=True)
    orphan = await stored(parts, "ingest/sha256/orphan", row=False)
    other = await stored(parts, "preprocess/sha256/orphan", row=False)
    await parts.blobs.sweep(parts.objects, "ingest/sha256/", free, keep_seconds=3600)
    assert await parts.keys("") == {used, orphan, other}
    await parts.blobs.sweep(parts.objects, "ingest/sha256/", free, keep_seconds=-60)
    assert await parts.keys("") == {used, other}
    await release(parts, "datasets/a")
    await parts.blobs.sweep(parts.objects, "ingest/sha256/", free, keep_seconds=-60)
    assert await parts.keys("") == {other}


@pytest.mark.parametrize("row", [True, False])
async def test_what_is_taken_up_after_the_sweep_has_listed_it_stays(parts: Parts, row: bool) -> None:
    key = await stored(parts, "ingest/sha256/again", row=row)
    await release(parts, "datasets/a")

    @asynccontextmanager
    async def locked(found: str) -> AsyncIterator[None]:
        await parts.blobs.add(found, 1, b"", "datasets/b")
        yield

    await parts.blobs.sweep(parts.objects, "ingest/sha256/", locked, keep_seconds=-60)
    assert await parts.keys("") == {key}
    assert await parts.blobs.find(key, "datasets/b") is not None


async def test_a_death_between_row_and_object_leaves_nothing_behind(parts: Parts) -> None:
    await stored(parts, "ingest/sha256/dead", row=True)
    await release(parts, "datasets/a")
    assert await parts.blobs.forget("ingest/sha256/dead", keep_seconds=-60)
    await parts.blobs.sweep(parts.objects, "ingest/sha256/", free, keep_seconds=-60)
    assert await parts.keys("") == set()


def clip_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / f"{text}.mp4"
    path.write_bytes(text.encode() * 100)
    return path


async def test_probes_of_other_code_are_not_used(parts: Parts, tmp_path: Path) -> None:
    clips, file = ClipStore(parts.objects, parts.blobs), hash_file(clip_file(tmp_path, "a"))
    blob, known = await clips.keep(file, "a.mp4", "datasets/a")
    assert known is None
    await clips.describe(blob, Clip(width=640), "datasets/a")
    assert (await clips.keep(file, "a.mp4", "datasets/a"))[1] == Clip(width=640)
    for body in (Clip(name="probe-1", width=640).SerializeToString(), b"\1" * 32 + Clip(width=640).SerializeToString()):
        await parts.blobs.add(blob.key, 1, body, "datasets/a")
        assert (await clips.keep(file, "a.mp4", "datasets/a"))[1] is None
    assert len(probe_version()) == 32


async def test_a_damaged_object_is_stored_again_and_never_missing(parts: Parts, tmp_path: Path) -> None:
    clips, file = ClipStore(parts.objects, parts.blobs), hash_file(clip_file(tmp_path, "a"))
    blob, _ = await clips.keep(file, "a.mp4", "datasets/a")
    await parts.objects.put_bytes(blob.key, b"other bytes", "video/mp4")
    clips.distrust(blob.key)
    assert await parts.objects.exists(blob.key)
    await clips.keep(file, "a.mp4", "datasets/b")
    assert await parts.objects.get_bytes(blob.key, sha256=blob.sha256) == file.path.read_bytes()


class Slow:
    """An object store whose calls begin and end late, by dice."""

    def __init__(self, objects: ObjectStore, dice: random.Random) -> None:
        self._objects = objects
        self._dice = dice

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._objects, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._wait()
            result = await method(*args, **kwargs)
            await self._wait()
            return result

        return call

    async def _wait(self) -> None:
        for _ in range(self._dice.randrange(20)):
            await asyncio.sleep(0)


async def race(parts: Parts, tmp_path: Path, seed: int) -> None:
    """Datasets take clips up and let them go, some are cancelled in the midst, while sweeps run without any grace."""
    dice = random.Random(seed)
    slow = Slow(parts.objects, dice)
    clips = ClipStore(cast(ObjectStore, slow), parts.blobs)
    files = [hash_file(clip_file(tmp_path, name)) for name in "abc"]
    held: dict[str, set[str]] = {}

    async def work(dataset: str) -> None:
        for _ in range(4):
            blob, _ = await clips.keep(dice.choice(files), "a.mp4", dataset)
            held.setdefault(dataset, set()).add(blob.key)
            if dice.random() < 0.3:
                await clips.describe(blob, Clip(width=1), dataset)
            if dice.random() < 0.4:
                held.pop(dataset)
                await release(parts, dataset)

    async def sweep() -> None:
        for _ in range(6):
            await clips.sweep(keep_seconds=-60)
            await asyncio.sleep(0)

    works = {name: asyncio.create_task(work(name)) for name in (f"datasets/{seed}-{index}" for index in range(4))}
    sweeping = asyncio.create_task(sweep())
    for task in works.values():
        if dice.random() < 0.3:
            await asyncio.sleep(dice.random() * 0.02)
            task.cancel()
    await asyncio.gather(*works.values(), return_exceptions=True)
    await sweeping
    await clips.sweep(keep_seconds=-60)
    needed = {key for keys in held.values() for key in keys}
    assert needed <= await parts.keys("ingest/sha256/"), seed
    for name in works:
        await release(parts, name)
    async with asyncio.timeout(60):
        # An upload goes on in its thread when the task that waited for it is cancelled.
        while await parts.keys("ingest/sha256/"):
            await clips.sweep(keep_seconds=-60)


async def test_sweeps_race_with_creations(parts: Parts, tmp_path: Path) -> None:
    for seed in range(8):
        await race(parts, tmp_path, seed)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_sweeps_race_with_creations_a_thousand_times(parts: Parts, tmp_path: Path) -> None:
    for seed in range(1000, 2000):
        await race(parts, tmp_path, seed)
