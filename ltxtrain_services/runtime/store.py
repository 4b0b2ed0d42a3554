"""Resources, their children and their events: every query of the suite is here, in `events` and in `blobs`."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar, cast

from google.protobuf.message import Message
from ltxtrain.v1.work_pb2 import Event, ListOrder, State
from ltxtrain_client.watch import TERMINAL
from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import blobs, paging, tables
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.edit import OUTBOX as OUTBOX
from ltxtrain_services.runtime.edit import Edit as Edit
from ltxtrain_services.runtime.edit import M, move_cursors, put_children
from ltxtrain_services.runtime.edit import Resource as Resource
from ltxtrain_services.runtime.errors import NotFound, NotReady, QueueFull, RequestIdReused
from ltxtrain_services.runtime.events import Entry, EventLog
from ltxtrain_services.runtime.paging import MAX_PAGE_BYTES, make_token, page_size, read_token

C = TypeVar("C", bound=Message)
AnyRow = tuple[object, ...]


class StaleAttempt(Exception):
    """A newer attempt of this work runs, or it has ended: nothing more may be written."""


class Store(Generic[M]):
    """The resources of one kind: `kind` is their collection, e.g. "jobs"; `fed`: their owners have a feed of them."""

    def __init__(self, database: Database, log: EventLog, kind: str, message: type[M], *, fed: bool = False) -> None:
        self._database = database
        self.log = log
        self.kind = kind
        self._message = cast(type[Message], message)
        self._fed = fed

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
        entries: list[tuple[int, Entry]] = []
        async with self._database.write(lambda: self._publish(body.name, events, owner, entries)) as connection:
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
            body.lifecycle.created_by = owner
            events += await self.log.write(connection, body.name, 0, [Event(lifecycle=body.lifecycle)])
            if self._fed:
                entries += await self.log.feed(connection, owner, body.name, events)
            row = {"name": body.name, "owner": owner, "created": time.time_ns(), "attempt": 0}
            row["display_name"] = getattr(body, "display_name", "").casefold()
            await connection.execute(insert(tables.resource).values(**row, **_columns(body)))
            if labels := getattr(body, "labels", {}):
                rows = [{"resource": body.name, "key": key, "value": value} for key, value in labels.items()]
                await connection.execute(insert(tables.label), rows)
            if request_id:
                await connection.execute(
                    insert(tables.request).values(owner=owner, id=request_id, digest=digest, resource=body.name)
                )
            if outgoing is not None:
                await put_children(connection, [(f"{self.kind}/{OUTBOX}", body.name, outgoing)])
        return body

    def _publish(
        self, name: str, events: Sequence[tuple[int, Event]], owner: str, entries: Sequence[tuple[int, Entry]]
    ) -> None:
        self.log.publish(name, events)
        self.log.publish_feed(owner, entries)

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
        self,
        owner: str | None,
        size: int,
        token: str,
        states: Sequence["State"] = (),
        *,
        labels: Sequence[str] = (),
        text: str = "",
        order: "ListOrder" = ListOrder.LIST_ORDER_NEWEST_FIRST,
    ) -> tuple[list[M], str]:
        """One page of the resources that match, and the token of the next. Raises PageTokenInvalid.

        `states` may be long, repeat itself, and name states that are none: no resource is in those. `labels` are
        "key=value" or "key", all of which a resource has; `text` is in its name or display_name.
        """
        wanted = sorted(set(states) & set(State.values()))
        key = f"{self.kind}|{owner}|{wanted}|{sorted(set(labels))}|{text}|{order}"
        query = select(tables.resource).where(*self._of_kind(), *paging.matching(labels, text))
        if owner is not None:
            query = query.where(tables.resource.c.owner == owner)
        if states:
            query = query.where(tables.resource.c.state.in_(wanted))
        if token:
            created, place = read_token(key, token)
            query = query.where(paging.after(order, created, *place.partition("|")[::2]))
        rows, more = await self._rows(query.order_by(*paging.ordered(order)), size)
        last = f"{rows[-1].name}|{rows[-1].display_name}" if more else ""
        return [self._parse(row) for row in rows], make_token(key, rows[-1].created, last) if more else ""

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
        entries: list[tuple[int, Entry]] = []
        owner = ""
        async with self._database.write(lambda: self._publish(name, events, owner, entries)) as connection:
            # Locked, should another process have the database by an operator's mistake.
            row = (await connection.execute(self._named(name).with_for_update())).first()
            if row is None:
                raise NotFound(name)
            if row.state in TERMINAL or attempt not in (None, row.attempt):
                raise StaleAttempt(name)
            owner = row.owner
            edit: Edit[M] = Edit(self._parse(row), owner, row.attempt)
            yield edit
            edit.body.lifecycle.last_sequence = row.last_sequence + len(edit.events)
            for event in edit.events:
                if event.WhichOneof("detail") == "lifecycle":
                    event.lifecycle.CopyFrom(edit.body.lifecycle)
            events += await self.log.write(connection, name, row.last_sequence, edit.events)
            if self._fed and events:
                entries += await self.log.feed(connection, owner, name, events)
            await connection.execute(
                update(tables.resource)
                .where(tables.resource.c.name == name)
                .values(attempt=edit.attempt, **_columns(edit.body))
            )
            await put_children(connection, edit.children)
            await move_cursors(connection, name, edit.cursors)
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
                await put_children(connection, [(f"{self.kind}/{OUTBOX}", name, None)])

    async def keep(self, collection: str, name: str, fresh: C) -> C:
        """The message kept under this name for all resources; `fresh`, from now on, when there is none yet."""
        async with self._database.write() as connection:
            if (body := await connection.scalar(_child_body(f"{self.kind}/{collection}", name))) is not None:
                return type(fresh).FromString(body)
            await put_children(connection, [(f"{self.kind}/{collection}", name, fresh)])
        return fresh

    async def require_finished(self, name: str, owner: str | None = None) -> None:
        """Raises NotFound, and NotReady for a resource that has not ended."""
        _check_finished(name, await self.get(name, owner))

    async def delete(self, name: str, owner: str | None = None) -> None:
        """Forget a finished resource and its references to blobs. Raises NotFound and NotReady."""
        entries: list[tuple[int, Entry]] = []
        holder = ""
        async with self._database.write(lambda: self.log.publish_feed(holder, entries)) as connection:
            row = (await connection.execute(self._named(name))).first()
            if row is None or owner not in (None, row.owner):
                raise NotFound(name)
            _check_finished(name, self._parse(row))
            await connection.execute(delete(tables.resource).where(tables.resource.c.name == name))
            await connection.execute(delete(tables.label).where(tables.label.c.resource == name))
            await connection.execute(delete(tables.request).where(tables.request.c.resource == name))
            await connection.execute(delete(tables.events).where(tables.events.c.resource == name))
            await connection.execute(delete(tables.child).where(tables.child.c.parent.startswith(f"{name}/")))
            await put_children(connection, [(f"{self.kind}/{OUTBOX}", name, None)])
            await connection.execute(delete(tables.cursor).where(tables.cursor.c.resource == name))
            await blobs.release(connection, name)
            holder = row.owner
            if self._fed:
                entries += await self.log.feed(connection, holder, name, [])
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
