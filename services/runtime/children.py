"""Writes children of resources, many at a time: a dataset may have a hundred thousand report lines."""

from collections.abc import Iterator, Sequence

from google.protobuf.message import Message
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.tables import child

# Below the number of variables that one SQLite statement may hold.
CHUNK = 500


async def put_children(connection: AsyncConnection, children: Sequence[tuple[str, str, Message | None]]) -> None:
    """Insert or replace children (parent, name, body) inside the caller's transaction; without a body, delete them."""
    parents: dict[str, dict[str, Message | None]] = {}
    for parent, name, body in children:
        parents.setdefault(parent, {})[name] = body
    for parent, bodies in parents.items():
        await _put(connection, parent, bodies)


async def _put(connection: AsyncConnection, parent: str, bodies: dict[str, Message | None]) -> None:
    known = set[str]()
    for names in _chunks(list(bodies)):
        query = select(child.c.name).where(child.c.parent == parent, child.c.name.in_(names))
        known.update(await connection.scalars(query))
    gone = [name for name, body in bodies.items() if body is None and name in known]
    for names in _chunks(gone):
        await connection.execute(delete(child).where(child.c.parent == parent, child.c.name.in_(names)))
    kept = {name: body.SerializeToString() for name, body in bodies.items() if body is not None}
    replaced = [{"known_name": name, "new_body": body} for name, body in kept.items() if name in known]
    if replaced:
        statement = update(child).where(child.c.parent == parent, child.c.name == bindparam("known_name"))
        await connection.execute(statement.values(body=bindparam("new_body")), replaced)
    fresh = [name for name in kept if name not in known]
    if fresh:
        last = select(func.coalesce(func.max(child.c.sequence), 0)).where(child.c.parent == parent)
        first = (await connection.scalar(last) or 0) + 1
        rows = [
            {"parent": parent, "sequence": sequence, "name": name, "body": kept[name]}
            for sequence, name in enumerate(fresh, start=first)
        ]
        await connection.execute(insert(child), rows)


def _chunks(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), CHUNK):
        yield names[start : start + CHUNK]
