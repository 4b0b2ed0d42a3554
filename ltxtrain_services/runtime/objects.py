"""Bytes in the object store, through the S3 API: put, get, presign, delete.

The sha256 of every object that we put is in its metadata and is checked on every read: a store that is S3 in all else
need not check what it is sent. `Objects` blocks and may be pickled, for Ray actors; `ObjectStore` is for event loops.
"""

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any, Concatenate, ParamSpec, TypeVar

import urllib3
from minio.commonconfig import REPLACE, CopySource
from minio.deleteobjects import DeleteObject

from ltxtrain_services.runtime.bucket import THREADS, Bucket
from ltxtrain_services.runtime.object_keys import attachment, checked_job_prefix, checked_key, content_key
from ltxtrain_services.runtime.object_types import (
    ListedBlob,
    ObjectCorrupt,
    ObjectMissing,
    ObjectStoreUnavailable,
    StoreAddress,
    StoredBlob,
)

__all__ = [
    "ListedBlob",
    "ObjectCorrupt",
    "ObjectMissing",
    "ObjectStore",
    "ObjectStoreUnavailable",
    "Objects",
    "StoreAddress",
    "StoredBlob",
]

P = ParamSpec("P")
R = TypeVar("R")

CHUNK_BYTES = 2**20
PART_BYTES, MAX_PARTS = 8 * 2**20, 10_000  # about six parts are in memory at once
PARALLEL_PARTS = 3
# An empty object, written to ask for the time.
CLOCK_KEY = "clock"
SHA256_HEADER = "x-amz-meta-sha256"


class Objects(Bucket):
    """The objects of one bucket. Blocking; for any number of threads.

    Every method may raise ObjectStoreUnavailable. Raises ValueError for a key that not every store takes.
    """

    def now(self) -> datetime:
        """The store's time, by which the ages of its objects are measured: this machine's may be a day away."""
        with self._translated(CLOCK_KEY):
            written = self._client.put_object(self._bucket, CLOCK_KEY, io.BytesIO(), 0)
        try:
            return parsedate_to_datetime(written.http_headers["Date"])
        except (KeyError, ValueError) as error:
            raise ObjectStoreUnavailable(f"The object store at {self.address.endpoint} tells no time.") from error

    def put_bytes(self, key: str, data: bytes, content_type: str) -> StoredBlob:
        return self._put(key, io.BytesIO(data), len(data), content_type, hashlib.sha256(data).hexdigest())

    def put_file(self, key: str, path: Path, content_type: str, *, sha256: str | None = None) -> StoredBlob:
        """Put a file of any size, in parts. `sha256` saves a reading of it; raises ObjectCorrupt when it is wrong."""
        whole = (0, path.stat().st_size)
        return self.put_span(key, path, whole, content_type, sha256=sha256 or _file_sha256(path))

    def put_span(self, key: str, path: Path, span: tuple[int, int], content_type: str, *, sha256: str) -> StoredBlob:
        """As put_file, for a span of the file: its offset and its size."""
        with path.open("rb") as file:
            file.seek(span[0])
            return self._put(key, file, span[1], content_type, sha256)

    def put_content(self, service: str, source: bytes | Path, content_type: str) -> StoredBlob:
        """Put a blob under the key of its bytes; nothing is sent when it is there already.

        A sweep may be about to take what was there: whoever records it looks again, with sweeps held off.
        """
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)  # file_digest leaves a BytesIO where it was
            key = content_key(service, sha256)
            known = self.stat(key)
            if known is not None and (known.sha256, known.size_bytes) == (sha256, size):
                return known
            file.seek(0)
            return self._put(key, file, size, content_type, sha256)

    def get_bytes(self, key: str, *, sha256: str | None = None) -> bytes:
        """The whole object. Raises ObjectMissing, and ObjectCorrupt unless it has its and the given sha256."""
        buffer = io.BytesIO()
        self._get(key, buffer, sha256)
        return buffer.getvalue()

    def get_file(self, key: str, path: Path, *, sha256: str | None = None) -> StoredBlob:
        """Download; `path` appears whole and checked, or not at all. Raises as get_bytes, and OSError."""
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            part = Path(folder) / "part"
            with part.open("wb") as file:
                blob = self._get(key, file, sha256)
            part.replace(path)
        return blob

    def copy(self, key: str, to: str) -> StoredBlob:
        """A second object of the same bytes, which do not leave the store. Raises ObjectMissing."""
        found = self.stat(key)
        if found is None:
            raise ObjectMissing(f"{key} does not exist.")
        with self._translated(key):
            self._client.copy_object(
                self._bucket,
                checked_key(to),
                CopySource(self._bucket, key),
                metadata={"sha256": found.sha256, "Content-Type": found.content_type},
                metadata_directive=REPLACE,
            )
        return dataclasses.replace(found, key=to)

    def read(self, key: str) -> Generator[bytes]:
        """The bytes of an object as the store gives them, checked by nobody. Raises ObjectMissing."""
        with self._opened(key) as response:
            yield from response.stream(CHUNK_BYTES)

    def stat(self, key: str) -> StoredBlob | None:
        """The object without its bytes; None when it is missing."""
        try:
            with self._translated(key):
                found = self._client.stat_object(self._bucket, checked_key(key))
        except ObjectMissing:
            return None
        sha256 = next((value for name, value in (found.metadata or {}).items() if name.lower() == SHA256_HEADER), "")
        return StoredBlob(key, found.size or 0, sha256, found.content_type or "")

    def exists(self, key: str) -> bool:
        return self.stat(key) is not None

    def presign_get(self, key: str, expires: timedelta, *, filename: str | None = None) -> str:
        """A URL that anybody may GET the object by; with a filename, browsers save it under that name. Offline."""
        headers: dict[str, str | list[str] | tuple[str]] = {}
        if filename is not None:
            headers["response-content-disposition"] = attachment(filename)
        return self._signer.presigned_get_object(self._bucket, checked_key(key), expires, response_headers=headers)

    def presign_put(self, key: str, expires: timedelta) -> str:
        """A URL that anybody may PUT the object by, often, with any bytes: check what came. Offline."""
        return self._signer.presigned_put_object(self._bucket, checked_key(key), expires)

    def delete(self, key: str) -> None:
        """Delete an object; one that is missing is success."""
        with contextlib.suppress(ObjectMissing), self._translated(key):
            self._client.remove_object(self._bucket, checked_key(key))

    def delete_prefix(self, prefix: str) -> int:
        """Delete all that one job owns, and nothing else: the prefix must be jobs/{job}/. Returns how many."""
        keys = [blob.key for blob in self.list_prefix(checked_job_prefix(prefix))]
        with self._translated(prefix):
            for error in self._client.remove_objects(self._bucket, map(DeleteObject, keys)):
                raise ObjectStoreUnavailable(f"{error.name} could not be deleted: {error.code}.")
        return len(keys)

    def list_prefix(self, prefix: str) -> Iterator[ListedBlob]:
        """Objects whose keys begin with it, in order of their keys, page by page."""
        with self._translated(prefix):
            for item in self._client.list_objects(self._bucket, prefix=prefix, recursive=True):
                if item.object_name and item.last_modified:
                    yield ListedBlob(item.object_name, item.size or 0, item.last_modified)

    def keys_before(self, prefix: str, before: datetime) -> list[str]:
        """Keys under the prefix of objects that are as old."""
        return [blob.key for blob in self.list_prefix(prefix) if blob.modified <= before]

    def _put(self, key: str, data: IO[bytes], size: int, content_type: str, sha256: str) -> StoredBlob:
        reader = _HashingReader(data)
        with self._translated(key):
            self._client.put_object(
                self._bucket,
                checked_key(key),
                reader,  # type: ignore[arg-type] # it asks for read() alone
                size,
                content_type=content_type,
                metadata={"sha256": sha256},
                part_size=max(PART_BYTES, -(-size // MAX_PARTS)),
                num_parallel_uploads=PARALLEL_PARTS,
            )
        if reader.digest.hexdigest() != sha256:
            self.delete(key)
            raise ObjectCorrupt(f"What was to become {key} has not the sha256 {sha256}, or changed while it was read.")
        return StoredBlob(key, size, sha256, content_type)

    def _get(self, key: str, into: IO[bytes], expected: str | None) -> StoredBlob:
        digest, size = hashlib.sha256(), 0
        with self._opened(key) as response:
            told = response.headers.get(SHA256_HEADER, "")
            content_type = response.headers.get("content-type", "")
            for chunk in response.stream(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                into.write(chunk)
        sha256 = digest.hexdigest()
        wanted = {value for value in (told, expected) if value}
        if wanted != {sha256}:
            said = " and ".join(sorted(wanted)) or "nothing to check them by"
            raise ObjectCorrupt(f"The bytes of {key} have the sha256 {sha256}; expected was {said}.")
        return StoredBlob(key, size, sha256, content_type)

    @contextlib.contextmanager
    def _opened(self, key: str) -> Iterator[urllib3.BaseHTTPResponse]:
        with self._translated(key):
            response = self._client.get_object(self._bucket, checked_key(key))
            with contextlib.closing(response):
                yield response


def _in_thread(
    method: Callable[Concatenate[Objects, P], R],
) -> Callable[Concatenate["ObjectStore", P], Coroutine[Any, Any, R]]:
    async def call(self: "ObjectStore", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return await self.run(functools.partial(method, self.objects, *args, **kwargs))

    call.__doc__ = method.__doc__
    return call


class ObjectStore:
    """Objects for an event loop, in threads of its own. A call that is cancelled ends by itself, unheard."""

    def __init__(self, address: StoreAddress) -> None:
        self.objects = Objects(address)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="objects")

    async def run(self, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    ensure_bucket = _in_thread(Objects.ensure_bucket)
    ping = _in_thread(Objects.ping)
    now = _in_thread(Objects.now)
    put_bytes = _in_thread(Objects.put_bytes)
    put_file = _in_thread(Objects.put_file)
    put_span = _in_thread(Objects.put_span)
    put_content = _in_thread(Objects.put_content)
    copy = _in_thread(Objects.copy)
    get_bytes = _in_thread(Objects.get_bytes)
    get_file = _in_thread(Objects.get_file)
    stat = _in_thread(Objects.stat)
    exists = _in_thread(Objects.exists)
    presign_get = _in_thread(Objects.presign_get)
    presign_put = _in_thread(Objects.presign_put)
    start_multipart = _in_thread(Objects.start_multipart)
    presign_part = _in_thread(Objects.presign_part)
    list_parts = _in_thread(Objects.list_parts)
    complete_multipart = _in_thread(Objects.complete_multipart)
    abort_multipart = _in_thread(Objects.abort_multipart)
    delete = _in_thread(Objects.delete)
    delete_prefix = _in_thread(Objects.delete_prefix)
    keys_before = _in_thread(Objects.keys_before)
    expire_stale_uploads = _in_thread(Objects.expire_stale_uploads)
    abort_stale_uploads = _in_thread(Objects.abort_stale_uploads)

    async def list_prefix(self, prefix: str) -> list[ListedBlob]:
        return await self.run(lambda: list(self.objects.list_prefix(prefix)))

    async def read(self, key: str) -> AsyncGenerator[bytes, None]:
        """See Objects.read; close it with aclosing."""
        chunks = self.objects.read(key)
        reading: Future[bytes] | None = None
        try:
            while True:
                reading = self._threads.submit(next, chunks, b"")
                if not (chunk := await asyncio.wrap_future(reading)):
                    return
                yield chunk
        finally:
            if reading is None or reading.done():
                await self.run(chunks.close)
            else:
                # Cancelled while a thread is in the generator, which can be closed only afterwards.
                reading.add_done_callback(lambda _: chunks.close())


class _HashingReader:
    """A file that is read once, from front to back; hashes the bytes as they pass."""

    def __init__(self, data: IO[bytes]) -> None:
        self._data = data
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._data.read(size)
        self.digest.update(data)
        return data


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
