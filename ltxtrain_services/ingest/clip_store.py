"""Clips in the object store, addressed by their content: the same clip in ten datasets is there once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.ingest_pb2 import Clip

from ltxtrain_services.ingest.archive import Unpacked
from ltxtrain_services.ingest.names import suffix_of
from ltxtrain_services.runtime.blobs import KEEP_UNUSED_SECONDS, Blobs
from ltxtrain_services.runtime.code_version import code_version
from ltxtrain_services.runtime.object_keys import content_key
from ltxtrain_services.runtime.objects import ObjectStore

SERVICE = "ingest"
# The code that decides what a probe finds, and its libraries: clips that were probed by others are probed again.
PROBE_MODULE = "ltxtrain_services.ingest.prober"
PROBE_LIBRARIES = ("av", "numpy")
VERSION_BYTES = 32
_TYPES = {".mp4": "video/mp4", ".mov": "video/quicktime", ".avi": "video/x-msvideo", ".mkv": "video/x-matroska"}


class ClipStore:
    """Stored clips, with their probes."""

    def __init__(self, objects: ObjectStore, blobs: Blobs) -> None:
        self._objects = objects
        self._blobs = blobs
        # A sweep takes a row and then the bytes; nothing may take up the same content in between.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Keys of objects that were found damaged or missing, and are stored again before they are used.
        self._damaged: set[str] = set()
        # Known from here on: the first look reads that code, in some tens of milliseconds.
        probe_version()

    async def keep(self, file: Unpacked, path: str, dataset: str) -> tuple[Blob, Clip | None]:
        """Store a file unless it is stored, and have the dataset refer to it; with the probe of an earlier dataset."""
        blob = Blob(
            key=content_key(SERVICE, file.sha256),
            size_bytes=file.size,
            sha256=file.sha256,
            content_type=_TYPES.get(suffix_of(path), "application/octet-stream"),
        )
        async with self._locked(blob.key):
            body = await self._blobs.find(blob.key, dataset)
            if body is None or blob.key in self._damaged or not await self._objects.exists(blob.key):
                span = (file.offset, file.size)
                await self._objects.put_span(blob.key, file.path, span, blob.content_type, sha256=file.sha256)
                await self._blobs.add(blob.key, blob.size_bytes, body or b"", dataset)
                self._damaged.discard(blob.key)
        return blob, _probed(body or b"")

    async def describe(self, blob: Blob, clip: Clip, dataset: str) -> None:
        """Remember a clip's probe, for the next dataset with the same content."""
        body = probe_version() + clip.SerializeToString()
        await self._blobs.add(blob.key, blob.size_bytes, body, dataset)

    def distrust(self, key: str) -> None:
        """Have an object stored again by the next dataset that needs it. It is not deleted: others refer to it."""
        self._damaged.add(key)

    async def sweep(self, keep_seconds: float = KEEP_UNUSED_SECONDS) -> None:
        """Delete clips that no dataset has referred to for so long."""
        await self._blobs.sweep(self._objects, content_key(SERVICE, ""), self._locked, keep_seconds)

    @asynccontextmanager
    async def _locked(self, key: str) -> AsyncIterator[None]:
        lock = self._locks.setdefault(key, asyncio.Lock())
        async with lock:
            yield


def probe_version() -> bytes:
    return bytes.fromhex(code_version(PROBE_MODULE, PROBE_LIBRARIES))


def _probed(body: bytes) -> Clip | None:
    """The probe in a row; None for one that other code made."""
    if body[:VERSION_BYTES] != probe_version():
        return None
    return Clip.FromString(body[VERSION_BYTES:])
