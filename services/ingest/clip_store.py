"""Clips in the object store, addressed by their content: the same clip in ten datasets is there once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.ingest_pb2 import Clip

from services.ingest.archive import Unpacked
from services.ingest.names import suffix_of
from services.runtime.blobs import Blobs
from services.runtime.object_keys import content_key
from services.runtime.objects import ObjectStore

SERVICE = "ingest"
# What was probed by other code is probed again. Change it when the numbers of a probe change.
PROBE_VERSION = "probe-1"
_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".avi": "video/x-msvideo", ".mkv": "video/x-matroska"}


class ClipStore:
    """Keeps clips, with what is known about them."""

    def __init__(self, objects: ObjectStore, blobs: Blobs) -> None:
        self._objects = objects
        self._blobs = blobs
        # A sweep takes a row and then the bytes; nothing may take up the same content in between.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def keep(self, file: Unpacked, path: str, dataset: str) -> tuple[Blob, Clip | None]:
        """Store a file unless it is stored; the dataset refers to it from now on. With what an earlier probe found."""
        blob = Blob(
            key=content_key(SERVICE, file.sha256),
            size_bytes=file.size,
            sha256=file.sha256,
            content_type=_TYPES.get(suffix_of(path), "application/octet-stream"),
        )
        async with self._locked(blob.key):
            body = await self._blobs.find(blob.key, dataset)
            if body is None or not await self._objects.exists(blob.key):
                span = (file.offset, file.size)
                await self._objects.put_span(blob.key, file.path, span, blob.content_type, sha256=file.sha256)
                await self._blobs.add(blob.key, blob.size_bytes, body or b"", dataset)
        known = Clip.FromString(body or b"")
        if known.name != PROBE_VERSION:
            return blob, None
        known.ClearField("name")
        return blob, known

    async def describe(self, blob: Blob, clip: Clip, dataset: str) -> None:
        """Remember what probing found, for the next dataset with the same content."""
        known = Clip(name=PROBE_VERSION)
        known.MergeFrom(clip)
        await self._blobs.add(blob.key, blob.size_bytes, known, dataset)

    async def sweep(self) -> None:
        """Delete what has had no reference for a day."""
        for key in await self._blobs.unused():
            async with self._locked(key):
                if await self._blobs.forget(key):
                    await self._objects.delete(key)

    @asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield
