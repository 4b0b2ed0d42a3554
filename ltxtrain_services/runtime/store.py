"""Resources, their children and their events: every query of the suite is here, in `events` and in `blobs`."""

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

from google.protobuf.message import Message
from ltxtrain.v1.work_pb2 import Event, Lifecycle, State
from ltxtrain_client.watch import TERMINAL
from sqlalchemy import ColumnElement, Select, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import blobs, tables
from ltxtrain_services.runtime.errors import NotFound, NotReady, QueueFull, RequestIdReused
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.paging import MAX_PAGE_BYTES, make_token, page_size, read_token


class Resource(Protocol):
    """A message of the contract with a name and a life: Dataset, TrainingSet or Job."""

    name: str

    @property
    def lifecycle(self) -> Lifecycle: ...


M = TypeVar("M", bound=Resource)
C = TypeVar("C", bound=Message)
AnyRow = tuple[object, ...]

# Children in one statement: a dataset may have a hundred thousand report lines, SQLite takes so many variables.
CHUNK = 500
# The collection of what is still to be sent, each by the name of its resource.
OUTBOX = "outbox"


class StaleAttempt(Exception):
    """A newer attempt of this work runs, or it has ended: nothing more may be written."""


@dataclass
class Edit(Generic[M]):
    """Changes of one resource that become durable together; see Store.edit."""

    body: M
    owner: str
    attempt: int
    events: list[Event] = field(default_factory=list)
    children: list[tuple[str, str, Message | None]] = field(default_factory=list)
    cursors: dict[str, int] = field(default_factory=dict)
    blob_keys: list[str] = field(default_factory=list)

    def add_event(self, event: Event) -> None:
        self.events.append(event)

    def enter(self, state: "State") -> None:
        """Move to a state, with its times and its event. A terminal state is the last event."""
        lifecycle = self.body.lifecycle
        lifecycle.state = state
        if state == State.STATE_RUNNING:
            lifecycle.start_time.GetCurrentTime()
        if state in TERMINAL:
            lifecycle.end_time.GetCurrentTime()
        self.events.append(Event(lifecycle=lifecycle))

    def put_child(self, collection: str, name: str, body: Message) -> None:
        """Insert or replace a child of `{resource}/{collection}`."""
        self.children.append((f"{self.body.name}/{collection}", name, body))

    def drop_child(self, collection: str, name: str) -> None:
        self.children.append((f"{self.body.name}/{collection}", name, None))

    def refer(self, *keys: str) -> None:
        """Keep these blobs as long as this resource lives."""
        self.blob_keys.extend(keys)

    def move_cursor(self, upstream: str, sequence: int) -> None:
        self.cursors[upstream] = sequence


class Store(Generic[M]):
    """The resources of one kind: `kind` is their collection, e.g. "jobs"."""

    def __init__(self, database: tables.Database, log: EventLog, kind: str, message: type[M]) -> None:
        self._database = database
        self.log = log
        self.kind = kind
        self._message = cast(type[Message], message)

    async def create(
        self,
        body: M,
        *,
        owner: str,
        request_id: str,
        digest: bytes,
        limit: int | None = None,
        owner_limit: int = 0,
        outgoing: Message | None = None,
    ) -> M:
        """Make a resource and its first event durable, or return what an equal earlier request made.

        `outgoing` is kept until `settle`, beyond the resource's end; see also `outbox`.
        Raises RequestIdReused, and QueueFull when `limit` unfinished resources exist already, or `owner_limit` of the
        owner's (0: no limit).
        """
        events: list[tuple[int, Event]] = []
        async with self._database.write(lambda: self.log.publish(body.name, events)) as connection:
            if request_id and (earlier := await self._earlier(connection, owner, request_id, digest)) is not None:
                return earlier
            unfinished = select(func.count()).where(*self._of_kind(), tables.resource.c.state.not_in(TERMINAL))
            if limit is not None and (await connection.scalar(unfinished) or 0) >= limit:
                text = f"{limit} {self.kind} are unfinished already. Try again later."
                raise QueueFull(text, metadata={"limit": limit})
            own = unfinished.where(tables.resource.c.owner == owner)
            if owner_limit and (await connection.scalar(own) or 0) >= owner_limit:
                text = f"{owner_limit} {self.kind} of yours are unfinished already, as many as one caller may have."
                raise QueueFull(text, metadata={"limit": owner_limit})
            body.lifecycle.state = State.STATE_PENDING
            body.lifecycle.create_time.GetCurrentTime()
            body.lifecycle.last_sequence = 1
            events += await self.log.write(connection, body.name, 0, [Event(lifecycle=body.lifecycle)])
            row = {"name": body.name, "owner": owner, "created": time.time_ns(), "attempt": 0}
            await connection.execute(insert(tables.resource).values(**row, **_columns(body)))
            if request_id:
                await connection.execute(
                    insert(tables.request).values(owner=owner, id=request_id, digest=digest, resource=body.name)
                )
            if outgoing is not None:
                await _put_children(connection, [(f"{self.kind}/{OUTBOX}", body.name, outgoing)])
        return body

    async def _earlier(self, connection: AsyncConnection, owner: str, request_id: str, digest: bytes) -> M | None:
        query = select(tables.request).where(tables.request.c.owner == owner, tables.request.c.id == request_id)
        if (found := (await connection.execute(query)).first()) is None:
            return None
        if found.digest != digest:
            raise RequestIdReused(found.resource)
        row = (await connection.execute(self._named(found.resource))).first()
        return None if row is None else self._parse(row)

    async def get(self, name: str, owner: str | None = None) -> M:
        """The resource. Raises NotFound, also for one of another owner; owner None sees all."""
        async with self._database.read() as connection:
            row = (await connection.execute(self._named(name))).first()
        if row is None or not name.startswith(f"{self.kind}/") or owner not in (None, row.owner):
            raise NotFound(name)
        return self._parse(row)

    async def owner(self, name: str) -> str:
        async with self._database.read() as connection:
            row = (await connection.execute(self._named(name))).first()
        if row is None:
            raise NotFound(name)
        return str(row.owner)

    async def unfinished(self) -> list[M]:
        """Every resource that is not in a terminal state, oldest first."""
        query = (
            select(tables.resource)
            .where(*self._of_kind(), tables.resource.c.state.not_in(TERMINAL))
            .order_by(tables.resource.c.created, tables.resource.c.name)
        )
        async with self._database.read() as connection:
            return [self._parse(row) for row in await connection.execute(query)]

    async def count_by_state(self) -> dict[int, int]:
        column = tables.resource.c.state
        async with self._database.read() as connection:
            rows = await connection.execute(select(column, func.count()).where(*self._of_kind()).group_by(column))
            return {row[0]: row[1] for row in rows}

    async def page(
        self, owner: str | None, size: int, token: str, states: Sequence["State"] = ()
    ) -> tuple[list[M], str]:
        """One page, newest first, and the token of the next. Raises PageTokenInvalid.

        `states` may be long, repeat itself, and name states that are none: no resource is in those.
        """
        wanted = sorted(set(states) & set(State.values()))
        key = f"{self.kind}|{owner}|{wanted}"
        query = select(tables.resource).where(*self._of_kind())
        if owner is not None:
            query = query.where(tables.resource.c.owner == owner)
        if states:
            query = query.where(tables.resource.c.state.in_(wanted))
        if token:
            created, name = read_token(key, token)
            query = query.where(
                (tables.resource.c.created < created)
                | ((tables.resource.c.created == created) & (tables.resource.c.name < name))
            )
        query = query.order_by(tables.resource.c.created.desc(), tables.resource.c.name.desc())
        rows, more = await self._rows(query, size)
        next_token = make_token(key, rows[-1].created, rows[-1].name) if more else ""
        return [self._parse(row) for row in rows], next_token

    async def children(self, name: str, collection: str, kind: type[C], size: int, token: str) -> tuple[list[C], str]:
        """One page of children in the order they were put, and the token of the next. Raises PageTokenInvalid."""
        parent = f"{name}/{collection}"
        query = select(tables.child).where(tables.child.c.parent == parent).order_by(tables.child.c.sequence)
        if token:
            query = query.where(tables.child.c.sequence > read_token(parent, token)[0])
        rows, more = await self._rows(query, size)
        next_token = make_token(parent, rows[-1].sequence) if more else ""
        return [kind.FromString(row.body) for row in rows], next_token

    async def all_children(self, name: str, collection: str, kind: type[C]) -> list[C]:
        query = select(tables.child.c.body).where(tables.child.c.parent == f"{name}/{collection}")
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(tables.child.c.sequence))
            return [kind.FromString(row.body) for row in rows]

    async def named_children(self, name: str, collection: str, kind: type[C]) -> list[tuple[str, C]]:
        """Every child with the name that it was put under."""
        query = select(tables.child.c.name, tables.child.c.body).where(tables.child.c.parent == f"{name}/{collection}")
        async with self._database.read() as connection:
            rows = await connection.execute(query.order_by(tables.child.c.sequence))
            return [(row.name, kind.FromString(row.body)) for row in rows]

    async def child(self, name: str, collection: str, child: str, kind: type[C]) -> C | None:
        async with self._database.read() as connection:
            body = await connection.scalar(_child_body(f"{name}/{collection}", child))
        return None if body is None else kind.FromString(body)

    async def cursor(self, name: str, upstream: str) -> int:
        """Sequence of the last upstream event that was relayed."""
        query = select(tables.cursor.c.sequence).where(
            tables.cursor.c.resource == name, tables.cursor.c.upstream == upstream
        )
        async with self._database.read() as connection:
            return await connection.scalar(query) or 0

    @asynccontextmanager
    async def edit(self, name: str, *, attempt: int | None = None) -> AsyncIterator[Edit[M]]:
        """Change a resource, add events and children: all in one transaction, or nothing if the block raises.

        Raises NotFound, and StaleAttempt when the resource has ended or another attempt took over.
        """
        events: list[tuple[int, Event]] = []
        async with self._database.write(lambda: self.log.publish(name, events)) as connection:
            # Locked, should another process have the database by an operator's mistake.
            row = (await connection.execute(self._named(name).with_for_update())).first()
            if row is None:
                raise NotFound(name)
            if row.state in TERMINAL or attempt not in (None, row.attempt):
                raise StaleAttempt(name)
            edit: Edit[M] = Edit(self._parse(row), row.owner, row.attempt)
            yield edit
            edit.body.lifecycle.last_sequence = row.last_sequence + len(edit.events)
            for event in edit.events:
                if event.WhichOneof("detail") == "lifecycle":
                    event.lifecycle.CopyFrom(edit.body.lifecycle)
            events += await self.log.write(connection, name, row.last_sequence, edit.events)
            await connection.execute(
                update(tables.resource)
                .where(tables.resource.c.name == name)
                .values(attempt=edit.attempt, **_columns(edit.body))
            )
            await _put_children(connection, edit.children)
            await _move_cursors(connection, name, edit.cursors)
            await blobs.refer(connection, name, edit.blob_keys)

    async def outbox(self, kind: type[C]) -> dict[str, C]:
        """Messages that are still to be sent, by the names of their resources."""
        return dict(await self.named_children(self.kind, OUTBOX, kind))

    async def outgoing(self, name: str, kind: type[C]) -> C | None:
        """The message that is still to be sent of a resource, or None."""
        return await self.child(self.kind, OUTBOX, name, kind)

    async def settle(self, name: str, change: Callable[[M], None], *, sent: bool) -> None:
        """Change a resource, ended or not, without an event; once `sent`, nothing of it is kept in the outbox.

        Nothing happens when it is gone.
        """
        async with self._database.write() as connection:
            row = (await connection.execute(self._named(name).with_for_update())).first()
            if row is None:
                return
            body = self._parse(row)
            change(body)
            changed = update(tables.resource).where(tables.resource.c.name == name).values(**_columns(body))
            await connection.execute(changed)
            if sent:
                await _put_children(connection, [(f"{self.kind}/{OUTBOX}", name, None)])

    async def keep(self, collection: str, name: str, fresh: C) -> C:
        """The message kept under this name for all resources; `fresh`, from now on, when there is none yet."""
        async with self._database.write() as connection:
            if (body := await connection.scalar(_child_body(f"{self.kind}/{collection}", name))) is not None:
                return type(fresh).FromString(body)
            await _put_children(connection, [(f"{self.kind}/{collection}", name, fresh)])
        return fresh

    async def require_finished(self, name: str, owner: str | None = None) -> None:
        """Raises NotFound, and NotReady for a resource that has not ended."""
        _check_finished(name, await self.get(name, owner))

    async def delete(self, name: str, owner: str | None = None) -> None:
        """Forget a finished resource and its references to blobs. Raises NotFound and NotReady."""
        async with self._database.write() as connection:
            row = (await connection.execute(self._named(name))).first()
            if row is None or owner not in (None, row.owner):
                raise NotFound(name)
            _check_finished(name, self._parse(row))
            await connection.execute(delete(tables.resource).where(tables.resource.c.name == name))
            await connection.execute(delete(tables.request).where(tables.request.c.resource == name))
            await connection.execute(delete(tables.events).where(tables.events.c.resource == name))
            await connection.execute(delete(tables.child).where(tables.child.c.parent.startswith(f"{name}/")))
            await _put_children(connection, [(f"{self.kind}/{OUTBOX}", name, None)])
            await connection.execute(delete(tables.cursor).where(tables.cursor.c.resource == name))
            await blobs.release(connection, name)
        self.log.forget(name)

    async def _rows(self, query: "Select[AnyRow]", size: int) -> tuple[list[Row[AnyRow]], bool]:
        """A page that fits into a message: fewer rows than asked for where they are long."""
        size = page_size(size)
        rows: list[Row[AnyRow]] = []
        page_bytes = 0
        async with self._database.read() as connection, connection.stream(query.limit(size + 1)) as found:
            async for row in found:
                page_bytes += len(row.body)
                if rows and (len(rows) == size or page_bytes > MAX_PAGE_BYTES):
                    return rows, True
                rows.append(row)
        return rows, False

    def _of_kind(self) -> list[ColumnElement[bool]]:
        return [tables.resource.c.name.startswith(f"{self.kind}/")]

    def _named(self, name: str) -> "Select[AnyRow]":
        return select(tables.resource).where(tables.resource.c.name == name)

    def _parse(self, row: Row[AnyRow]) -> M:
        return cast(M, self._message.FromString(row.body))


def _check_finished(name: str, resource: Resource) -> None:
    if resource.lifecycle.state not in TERMINAL:
        raise NotReady(f"{name} is not finished. Cancel it first.", metadata={"name": name})


def _columns(body: Resource) -> dict[str, object]:
    return {
        "state": body.lifecycle.state,
        "last_sequence": body.lifecycle.last_sequence,
        "body": cast(Message, body).SerializeToString(),
    }


def _child_body(parent: str, name: str) -> "Select[Any]":
    return select(tables.child.c.body).where(tables.child.c.parent == parent, tables.child.c.name == name)


async def _move_cursors(connection: AsyncConnection, name: str, cursors: dict[str, int]) -> None:
    table = tables.cursor
    for upstream, sequence in cursors.items():
        moved = await connection.execute(
            update(table).where(table.c.resource == name, table.c.upstream == upstream).values(sequence=sequence)
        )
        if not moved.rowcount:
            await connection.execute(insert(table).values(resource=name, upstream=upstream, sequence=sequence))


async def _put_children(connection: AsyncConnection, children: Sequence[tuple[str, str, Message | None]]) -> None:
    """Insert or replace children (parent, name, body) inside the caller's transaction; without a body, delete them."""
    parents: dict[str, dict[str, Message | None]] = {}
    for parent, name, body in children:
        parents.setdefault(parent, {})[name] = body
    for parent, bodies in parents.items():
        await _put_below(connection, parent, bodies)


async def _put_below(connection: AsyncConnection, parent: str, bodies: dict[str, Message | None]) -> None:
    child, known = tables.child, set[str]()
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
