"""Cache of finished work, addressed by everything that it was made of.

An entry maps a digest (see `keys`) to the blob that was made and to facts about it. The blob itself is named by its
bytes, so that two workers that make the same thing cannot overwrite each other's. Both are rows that a training set
refers to; what none has referred to for a day is swept.
"""

import asyncio
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict
from ltxtrain.v1.artifact_pb2 import Blob

from ltxtrain_services.runtime.blobs import KEEP_UNUSED_SECONDS, Blobs
from ltxtrain_services.runtime.objects import ObjectStore, StoredBlob
from ltxtrain_services.runtime.work import Retryable

CONTENT = "preprocess/sha256/"
ENTRIES = "preprocess/cache/"


@dataclass(frozen=True)
class Entry:
    """A blob, or only facts."""

    blob: Blob | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def dump(self) -> bytes:
        blob = None if self.blob is None else MessageToDict(self.blob)
        return json.dumps({"blob": blob, "facts": self.facts}).encode()

    @classmethod
    def load(cls, body: bytes) -> "Entry":
        parts = json.loads(body)
        return cls(None if parts["blob"] is None else ParseDict(parts["blob"], Blob()), parts["facts"])


class Cache:
    """The entries of this service."""

    def __init__(self, blobs: Blobs, objects: ObjectStore) -> None:
        self._blobs = blobs
        self._objects = objects
        # A sweep takes a row and then its bytes; nothing may take the row up again in between.
        self._sweeping = asyncio.Lock()

    async def find(self, keys: Collection[str], resource: str) -> dict[str, Entry]:
        """Those of the entries that exist whole; `resource` refers to them and to their blobs from now on."""
        bodies = await self._blobs.find_all([ENTRIES + key for key in keys], resource)
        found = {key: Entry.load(bodies[ENTRIES + key]) for key in keys if ENTRIES + key in bodies}
        blobs = {entry.blob.key for entry in found.values() if entry.blob is not None}
        present = await self._blobs.find_all(sorted(blobs), resource)
        return {key: entry for key, entry in found.items() if entry.blob is None or entry.blob.key in present}

    async def keep(self, entries: Mapping[str, Entry], resource: str) -> None:
        """Record entries whose blobs are in the store. Raises Retryable when one was swept since its upload."""
        async with self._sweeping:
            for key, entry in entries.items():
                if entry.blob is not None:
                    await self._add(entry.blob, resource)
                await self._blobs.add(ENTRIES + key, 0, entry.dump(), resource)

    async def hold(self, blob: Blob, resource: str) -> None:
        """Keep a blob as long as `resource` lives, without an entry to find it by. Raises as `keep`."""
        async with self._sweeping:
            await self._add(blob, resource)

    async def _add(self, blob: Blob, resource: str) -> None:
        # Whoever stored it may have found it there and sent nothing, just before a sweep. Before the row, which others
        # would find; no sweep is under way, so that it stays.
        if not await self._objects.exists(blob.key):
            raise Retryable(f"{blob.key} has to be made again")
        await self._blobs.add(blob.key, blob.size_bytes, blob, resource)

    async def sweep(self, keep_seconds: float = KEEP_UNUSED_SECONDS) -> None:
        """Delete what no training set has referred to for so long, and what was stored and never recorded."""
        await self._blobs.sweep(self._objects, CONTENT, lambda key: self._sweeping, keep_seconds)


def as_blob(stored: StoredBlob) -> Blob:
    return Blob(key=stored.key, size_bytes=stored.size_bytes, sha256=stored.sha256, content_type=stored.content_type)
