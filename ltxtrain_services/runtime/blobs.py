"""References to blobs by content, so that what ten resources share is stored once and freed with the last.

A reference is written before an existing blob is reused; a sweep deletes what has had none for a day.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf.message import Message
from sqlalchemy import ColumnElement, delete, exists, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import tables
from ltxtrain_services.runtime.database import Database

if TYPE_CHECKING:
    from ltxtrain_services.runtime.objects import ObjectStore

KEEP_UNUSED_SECONDS = 24 * 3600
# Keys in one query.
PAGE = 500


class Blobs:
    """The blobs that a service has made, each with a message that describes it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, key: str, resource: str) -> bytes | None:
        """The description of a blob that exists, which `resource` refers to from now on; None when it is absent."""
        async with self._database.write() as connection:
            body = await connection.scalar(select(tables.blob.c.body).where(tables.blob.c.key == key))
            if body is not None:
                await refer(connection, resource, [key])
        return body

    async def find_all(self, keys: Sequence[str], resource: str) -> dict[str, bytes]:
        """As `find`, for many keys in one transaction; absent ones are left out."""
        found: dict[str, bytes] = {}
        async with self._database.write() as connection:
            for start in range(0, len(keys), PAGE):
                some = select(tables.blob.c.key, tables.blob.c.body).where(
                    tables.blob.c.key.in_(keys[start : start + PAGE])
                )
                found |= {row.key: row.body for row in await connection.execute(some)}
            await refer(connection, resource, list(found))
        return found

    async def add(self, key: str, size_bytes: int, description: Message | bytes, resource: str) -> None:
        """Record a blob that was stored, and a reference to it. The upload comes before this row."""
        body = description if isinstance(description, bytes) else description.SerializeToString()
        async with self._database.write() as connection:
            known = await connection.execute(update(tables.blob).where(tables.blob.c.key == key).values(body=body))
            if not known.rowcount:
                row = {"key": key, "size": size_bytes, "used": time.time_ns(), "body": body}
                await connection.execute(insert(tables.blob).values(**row))
            await refer(connection, resource, [key])

    async def unknown(self, keys: Sequence[str]) -> list[str]:
        """Those of the keys that have no row: uploads that nobody claimed."""
        known: set[str] = set()
        async with self._database.read() as connection:
            for start in range(0, len(keys), PAGE):
                some = select(tables.blob.c.key).where(tables.blob.c.key.in_(keys[start : start + PAGE]))
                known.update(await connection.scalars(some))
        return [key for key in keys if key not in known]

    async def unused(self, keep_seconds: float = KEEP_UNUSED_SECONDS) -> list[str]:
        """Keys that nothing has referred to for that long."""
        before = time.time_ns() - int(keep_seconds * 1e9)
        query = select(tables.blob.c.key).where(tables.blob.c.used <= before, ~_referred())
        async with self._database.read() as connection:
            return list(await connection.scalars(query))

    async def forget(self, key: str, keep_seconds: float = 0.0) -> bool:
        """Take the row of an unused blob away, before its bytes; False when it was used since."""
        before = time.time_ns() - int(keep_seconds * 1e9)
        unused = [tables.blob.c.key == key, tables.blob.c.used <= before, ~_referred()]
        async with self._database.write() as connection:
            gone = await connection.execute(delete(tables.blob).where(*unused))
        return bool(gone.rowcount)

    async def sweep(
        self,
        objects: "ObjectStore",
        prefix: str,
        locked: Callable[[str], AbstractAsyncContextManager[None]],
        keep_seconds: float = KEEP_UNUSED_SECONDS,
    ) -> None:
        """Delete rows that nothing has referred to for so long, with their objects under `prefix`, and objects there
        that are as old and have no row: their process died between upload and row, or between row and deletion.

        `locked` holds off whoever would take up a key in the meantime. Each finding is looked at again under it.
        """
        for key in await self.unused(keep_seconds):
            async with locked(key):
                if await self.forget(key, keep_seconds) and key.startswith(prefix):
                    await objects.delete(key)
        # By the store's clock: with ours a day ahead, what is being made now would be as old.
        before = await objects.now() - timedelta(seconds=keep_seconds)
        for key in await self.unknown(await objects.keys_before(prefix, before)):
            async with locked(key):
                if await self.unknown([key]):
                    await objects.delete(key)


def _referred() -> ColumnElement[bool]:
    return exists().where(tables.blob_ref.c.key == tables.blob.c.key)


async def refer(connection: AsyncConnection, resource: str, keys: Sequence[str]) -> None:
    """Add references inside the caller's transaction."""
    unique = list(dict.fromkeys(keys))
    for start in range(0, len(unique), PAGE):
        some = unique[start : start + PAGE]
        held = select(tables.blob_ref.c.key).where(
            tables.blob_ref.c.key.in_(some), tables.blob_ref.c.resource == resource
        )
        known = set(await connection.scalars(held))
        if fresh := [{"key": key, "resource": resource} for key in some if key not in known]:
            await connection.execute(insert(tables.blob_ref), fresh)
        await connection.execute(update(tables.blob).where(tables.blob.c.key.in_(some)).values(used=time.time_ns()))


async def release(connection: AsyncConnection, resource: str) -> None:
    """Drop the references of a resource inside the caller's transaction; the day of grace starts now."""
    keys = select(tables.blob_ref.c.key).where(tables.blob_ref.c.resource == resource)
    await connection.execute(update(tables.blob).where(tables.blob.c.key.in_(keys)).values(used=time.time_ns()))
    await connection.execute(delete(tables.blob_ref).where(tables.blob_ref.c.resource == resource))
