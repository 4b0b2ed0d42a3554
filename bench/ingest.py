"""How fast an archive becomes stored clips, against plain zipfile and against minio's own upload to the same server.

python bench/ingest.py [--quick] prints one line of JSON:
  unpack_hash_vs_zipfile  seconds of plain zipfile extraction over ours, which also hashes, and leaves stored entries
                          where they lie in the archive instead of writing them again (higher is better)
  store_vs_fput           seconds of minio's fput_object over ours, with its rows and digests (higher is better)
  upload_vs_fput          seconds of fput_object over the client's upload in parts by presigned URLs, of one file of
                          2 GB, without the sha256 before it (higher is better)
  resumed_bytes_again     bytes sent twice because a connection was cut in the middle of a part: at most part_bytes
  stopped_bytes_again     bytes sent twice because the client was stopped half-way and started again: at most part_bytes
                          for each of its parallel connections
  peak_mb                 largest resident size of a process that does nothing but our unpack, hash and store
Both sides of a ratio take turns on the same files; a ratio is that of their best rounds.
"""

import argparse
import asyncio
import hashlib
import json
import random
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ltxtrain.v1.ingest_pb2 import CreateUploadRequest, ListUploadPartsRequest, Upload
from ltxtrain_client.presigned import put_parts
from ltxtrain_client.upload_source import FileSource
from minio import Minio

from ltxtrain_services.ingest.archive import Archive, Unpacked
from ltxtrain_services.ingest.clip_store import ClipStore
from ltxtrain_services.ingest.directory import read_directory
from ltxtrain_services.ingest.uploads import Uploads
from ltxtrain_services.local.embedded import EmbeddedStore
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from tests.services.ingest.cutting import cutting

MIB = 1 << 20
CLIP_MIB = 20
UNPACK_ROUNDS, STORE_ROUNDS = 7, 3
# Of the file whose upload is cut and stopped.
RESUMED_MIB = 200


def make_archive(path: Path, clip_count: int) -> Path:
    """Stored entries of random bytes; nothing here decodes them."""
    dice = random.Random(3)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(clip_count):
            archive.writestr(f"{index:04}.mp4", dice.randbytes(CLIP_MIB * MIB))
    return path


def extract(path: Path, folder: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)


def unpack(path: Path, folder: Path) -> list[Unpacked]:
    with Archive(path) as archive:
        return [archive.unpack(entry, folder / str(entry.index)) for entry in read_directory(path, Settings())]


def fput(address: StoreAddress, folder: Path, prefix: str) -> None:
    host = address.endpoint
    client = Minio(host, address.access_key, address.secret_key, secure=address.secure, region=address.region)
    for file in sorted(folder.iterdir()):
        client.fput_object(address.bucket, f"{prefix}/{file.name}", str(file), content_type="video/mp4")


@asynccontextmanager
async def clip_store(folder: Path, address: StoreAddress) -> AsyncIterator[ClipStore]:
    database = await Database.open(f"sqlite+aiosqlite:///{folder / 'state.db'}", folder)
    yield ClipStore(ObjectStore(address), Blobs(database))
    await database.close()


async def keep(folder: Path, address: StoreAddress, files: list[Unpacked]) -> float:
    """Seconds that it takes to store the files, none of which is known."""
    async with clip_store(folder, address) as clips:
        begun = time.perf_counter()
        for file in files:
            await clips.keep(file, "clip.mp4", "datasets/bench")
        return time.perf_counter() - begun


async def whole(folder: Path, address: StoreAddress, path: Path) -> None:
    """Unpack, hash and store one file after another, as the service does."""
    async with clip_store(folder, address) as clips:
        with Archive(path) as archive:
            for entry in read_directory(path, Settings()):
                file = await asyncio.to_thread(archive.unpack, entry, folder / "clip")
                await clips.keep(file, entry.path, "datasets/bench")
                (folder / "clip").unlink(missing_ok=True)


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def compare_unpacking(path: Path, scratch: Path) -> tuple[float, float]:
    ours, theirs = [], []
    for _ in range(UNPACK_ROUNDS):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            theirs.append(timed(lambda folder=folder: extract(path, Path(folder))))  # type: ignore[misc] # a lambda with a default
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            ours.append(timed(lambda folder=folder: unpack(path, Path(folder))))  # type: ignore[misc] # a lambda with a default
    return min(ours), min(theirs)


def compare_storing(path: Path, scratch: Path, address: StoreAddress) -> tuple[float, float]:
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        files = unpack(path, scratch)
        extract(path, folder)
        for turn in range(STORE_ROUNDS):
            theirs.append(timed(lambda turn=turn: fput(address, folder, f"fput/{turn}")))  # type: ignore[misc] # a lambda with a default
            with tempfile.TemporaryDirectory(dir=scratch) as state:
                ours.append(asyncio.run(keep(Path(state), address, files)))
            remove(address, f"fput/{turn}/", "ingest/")
    return min(ours), min(theirs)


def make_file(path: Path, size_mib: int) -> Path:
    dice = random.Random(4)
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(dice.randbytes(MIB))
    return path


class Sender:
    """An announced upload of one file, as a client sees it."""

    def __init__(self, uploads: Uploads, path: Path, sha256: str) -> None:
        self._uploads = uploads
        self.source = FileSource(path)
        self._request = CreateUploadRequest(
            size_bytes=self.source.size_bytes, sha256=sha256, file_name="large.zip", multipart=True
        )
        self.part_bytes = 0

    async def send(self, until: int | None = None) -> None:
        """Send what the store lacks; stop once `until` bytes of all were sent."""
        name = (await self._uploads.create(self._request, "bench")).upload
        page = ListUploadPartsRequest(upload=name, page_size=100)
        listed = await self._uploads.missing_parts(page, "bench")
        self.part_bytes = max(part.size_bytes for part in listed.parts)
        async with aclosing(put_parts(self.source, lambda: self._uploads.missing_parts(page, "bench"))) as steps:
            async for step in steps:
                if until is not None and step.completed_bytes >= until:
                    return
        await self._uploads.complete(name, "bench")


@asynccontextmanager
async def sender(folder: Path, address: StoreAddress, path: Path) -> AsyncIterator[Sender]:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    database = await Database.open(f"sqlite+aiosqlite:///{folder / 'state.db'}", folder)
    store = Store(database, EventLog(database), "uploads", Upload)
    yield Sender(Uploads(store, ObjectStore(address), max_bytes=1 << 40), path, sha256)
    await database.close()


async def upload(folder: Path, address: StoreAddress, path: Path) -> float:
    """Seconds that the client needs to send the file in parts."""
    async with sender(folder, address, path) as made:
        begun = time.perf_counter()
        await made.send()
        return time.perf_counter() - begun


async def resume(scratch: Path, address: StoreAddress, path: Path) -> dict[str, int]:
    """Bytes that were sent twice: after one cut connection, and after a stop of the client half-way."""
    found: dict[str, int] = {}
    async with cutting(address.endpoint) as proxy:
        through = replace(address, public_endpoint=proxy.address)
        for key in ("resumed_bytes_again", "stopped_bytes_again"):
            before = proxy.sent_bytes
            with tempfile.TemporaryDirectory(dir=scratch) as state:
                async with sender(Path(state), through, path) as made:
                    if key == "resumed_bytes_again":
                        proxy.cuts.append(made.source.size_bytes // 100)
                    else:
                        await made.send(until=made.source.size_bytes // 2)
                    await made.send()
            assert not proxy.cuts
            found |= {key: proxy.sent_bytes - before - made.source.size_bytes, "part_bytes": made.part_bytes}
            remove(address, "ingest/")
    return found


def remove(address: StoreAddress, *prefixes: str) -> None:
    objects = ObjectStore(address).objects
    for prefix in prefixes:
        for blob in list(objects.list_prefix(prefix)):
            objects.delete(blob.key)


def compare_uploading(path: Path, scratch: Path, address: StoreAddress) -> tuple[float, float]:
    ours, theirs = [], []
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        folder = Path(name)
        (folder / path.name).symlink_to(path)
        for _ in range(STORE_ROUNDS):
            theirs.append(timed(lambda: fput(address, folder, "fput")))
            with tempfile.TemporaryDirectory(dir=scratch) as state:
                ours.append(asyncio.run(upload(Path(state), address, path)))
            remove(address, "fput/", "ingest/")
    return min(ours), min(theirs)


def peak_mb(path: Path, address: StoreAddress) -> float:
    """Peak memory of a process of its own."""
    values = {name: getattr(address, name) for name in StoreAddress.__dataclass_fields__}
    command = [sys.executable, __file__, "--whole", str(path)]
    done = subprocess.run(command, input=json.dumps(values, default=str), text=True, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def measure(clip_count: int, upload_mib: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="ltxtrain-bench-") as name:
        scratch = Path(name)
        path = make_archive(scratch / "large.zip", clip_count)
        size_mb = clip_count * CLIP_MIB
        with EmbeddedStore(scratch / "store") as store:
            unpack_ours, unpack_theirs = compare_unpacking(path, scratch)
            store_ours, store_theirs = compare_storing(path, scratch, store.address)
            peak = peak_mb(path, store.address)
            remove(store.address, "ingest/")
            path.unlink()
            upload_ours, upload_theirs = compare_uploading(
                make_file(scratch / "upload.zip", upload_mib), scratch, store.address
            )
            resumed = asyncio.run(resume(scratch, store.address, make_file(scratch / "resumed.zip", RESUMED_MIB)))
    return {
        "unpack_hash_vs_zipfile": round(unpack_theirs / unpack_ours, 3),
        "store_vs_fput": round(store_theirs / store_ours, 3),
        "upload_vs_fput": round(upload_theirs / upload_ours, 3),
        **resumed,
        "peak_mb": round(peak),
        "archive_mb": size_mb,
        "unpack_hash_mb_per_second": round(size_mb / unpack_ours),
        "zipfile_mb_per_second": round(size_mb / unpack_theirs),
        "store_mb_per_second": round(size_mb / store_ours),
        "fput_mb_per_second": round(size_mb / store_theirs),
        "upload_mb": upload_mib,
        "upload_mb_per_second": round(upload_mib / upload_ours),
        "upload_fput_mb_per_second": round(upload_mib / upload_theirs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 MB instead of 1 and 2 GB")
    parser.add_argument("--whole", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.whole is not None:
        given = json.load(sys.stdin)
        address = StoreAddress(**given | {"folder": given["folder"] and Path(given["folder"])})
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(whole(Path(folder), address, arguments.whole))
        # Not ru_maxrss, which begins with the size of the process that started this one.
        print(int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) / 1024)
        return
    figures = measure(*((10, 200) if arguments.quick else (50, 2000)))
    for name, value in figures.items():
        print(f"{name:28} {value:>10}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
