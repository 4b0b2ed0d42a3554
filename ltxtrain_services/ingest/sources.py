"""Sources of a dataset's bytes: a URL, an upload, an object of a listed bucket."""

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip

from ltxtrain_services.ingest.fetch import Fetched, Fetcher
from ltxtrain_services.ingest.uploads import Uploads
from ltxtrain_services.runtime.addresses import CLIP, UPLOAD, shown
from ltxtrain_services.runtime.errors import FailedPrecondition, NotFound
from ltxtrain_services.runtime.objects import ObjectMissing, ObjectStore, ObjectStoreUnavailable
from ltxtrain_services.runtime.settings import Settings


class _TooLarge(Exception):
    """An object has more bytes than are fetched."""


class Sources:
    """Reads any source to a file."""

    def __init__(
        self,
        settings: Settings,
        objects: ObjectStore,
        uploads: Uploads,
        fetcher: Fetcher,
        clip: Callable[[str], Awaitable[Clip]],
    ) -> None:
        """`clip` finds a clip of an earlier dataset by its name; it raises NotFound when there is none."""
        self._max_bytes = settings.fetch_max_bytes
        self._objects = objects
        self._uploads = uploads
        self._fetcher = fetcher
        self._clip = clip
        self._buckets: dict[str, ObjectStore] = {}

    async def read(self, url: str, target: Path) -> AsyncGenerator[Fetched, None]:
        """Write the source to `target`.

        Raises what Fetcher.fetch raises, and FailedPrecondition (UPLOAD_MISMATCH) for an upload that is not there or
        is not what was announced.
        """
        if (upload := UPLOAD.fullmatch(url)) is not None:
            steps = self._read_upload(upload[1], target)
        elif (clip := CLIP.fullmatch(url)) is not None:
            steps = self._read_clip(clip[1], target)
        elif url.startswith("s3:"):
            steps = self._read_bucket(url, target)
        else:
            steps = self._fetcher.fetch(url, target)
        async with aclosing(steps):
            async for step in steps:
                yield step

    async def shown(self, url: str) -> str:
        """Name of a source in reports and errors. Raises NotFound for an upload that is not there."""
        if upload := UPLOAD.fullmatch(url):
            return await self._uploads.shown(upload[1])
        if clip := CLIP.fullmatch(url):
            return f"{url}/{PurePosixPath((await self._clip(clip[1])).path).name}"
        return shown(url)

    async def _read_upload(self, name: str, target: Path) -> AsyncGenerator[Fetched, None]:
        key = await self._uploads.arrived(name)
        digest = hashlib.sha256()
        # Replaced by more than an upload may have: the digest of a part is not the announced one.
        with contextlib.suppress(_TooLarge):
            async with aclosing(_copy(self._objects, key, target, digest, self._max_bytes)) as steps:
                async for step in steps:
                    yield step
        await self._uploads.verify(name, digest.hexdigest())

    async def _read_clip(self, name: str, target: Path) -> AsyncGenerator[Fetched, None]:
        try:
            blob = (await self._clip(name)).blob
            async with aclosing(_copy(self._objects, blob.key, target, hashlib.sha256(), blob.size_bytes)) as steps:
                async for step in steps:
                    yield replace(step, total_bytes=blob.size_bytes)
        except (NotFound, ObjectMissing):
            text = f"{name} was deleted before it could be read."
            reason = ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED
            raise FailedPrecondition(reason, text, metadata={"url": f"dataset:{name}"}) from None

    async def _read_bucket(self, url: str, target: Path) -> AsyncGenerator[Fetched, None]:
        parts = urlsplit(url)
        objects, key = self._bucket(parts.netloc), parts.path.lstrip("/")
        metadata = {"url": shown(url)}
        try:
            found = await objects.stat(key)
        except ValueError:
            found = None
        except ObjectStoreUnavailable:
            await self._objects.ping()  # raises the same, unless it is the one bucket that refuses us
            found = None
        if found is None:
            text = f"{shown(url)} could not be fetched: there is no such object, or it may not be read."
            raise FailedPrecondition(ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED, text, metadata=metadata)
        try:
            _check_size(found.size_bytes, self._max_bytes)
            async with aclosing(_copy(objects, key, target, hashlib.sha256(), self._max_bytes)) as steps:
                async for step in steps:
                    yield replace(step, total_bytes=found.size_bytes)
        except _TooLarge:
            text = f"{shown(url)} is larger than the {self._max_bytes} bytes that are fetched at most."
            metadata["maximumBytes"] = str(self._max_bytes)
            raise FailedPrecondition(ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE, text, metadata=metadata) from None
        except ObjectMissing:
            text = f"{shown(url)} was deleted while it was fetched."
            raise FailedPrecondition(ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED, text, metadata=metadata) from None

    def _bucket(self, bucket: str) -> ObjectStore:
        """Another bucket of the same store, with the suite's own credentials."""
        if bucket not in self._buckets:
            self._buckets[bucket] = ObjectStore(replace(self._objects.objects.address, bucket=bucket))
        return self._buckets[bucket]


async def _copy(
    objects: ObjectStore, key: str, target: Path, digest: "hashlib._Hash", limit: int
) -> AsyncGenerator[Fetched, None]:
    """Write an object to `target`. Raises _TooLarge: it may have been replaced since its size was looked up."""
    size = 0
    with target.open("wb") as file:
        async with aclosing(objects.read(key)) as chunks:
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(digest.update, chunk)
                size += len(chunk)
                _check_size(size, limit)
                yield Fetched(size, 0)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise _TooLarge
