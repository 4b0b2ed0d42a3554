"""The durable, ordered events of each resource, the feeds of all resources of an owner, and followers of both.

Progress is a table with a cursor, not a broadcast: replay, resume, slow readers and restarts are one code path.
Followers of one resource, or of one feed, share one tail of its newest entries, so five hundred of them read the table
once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.work_pb2 import Event
from ltxtrain_client.watch import TERMINAL, is_terminal
from sqlalchemy import and_, delete, func, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import metrics, tables
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.errors import CursorOutOfRange, Draining, NotFound

HEARTBEAT_SECONDS = 15.0
PAGE = 256
T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """An event in the feed of an owner; without one, the resource was deleted."""

    resource: str
    sequence: int
    event: Event | None


@dataclass(frozen=True)
class Page(Generic[T]):
    """A read of the table: entries, up to where all that match were read, and whether nothing can follow."""

    entries: Sequence[tuple[int, T]]
    reached: int
    ended: bool = False


class _Tail(Generic[T]):
    """The newest entries of one log in memory, densely numbered, and a bell that rings when there are more."""

    def __init__(self) -> None:
        self.entries: deque[tuple[int, T]] = deque(maxlen=PAGE)
        self.bell: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def publish(self, entries: Sequence[tuple[int, T]]) -> None:
        self.entries.extend(entries)
        self.ring()

    def ring(self) -> None:
        bell, self.bell = self.bell, asyncio.get_running_loop().create_future()
        bell.set_result(None)

    def after(self, number: int) -> Page[T] | None:
        """Entries after a number, or None when the tail does not reach back that far."""
        if not self.entries or (first := self.entries[0][0]) > number + 1:
            return None
        found = list(islice(self.entries, number + 1 - first, None))
        return Page(found, found[-1][0] if found else number)


class EventLog:
    """One writer process; any number of followers."""

    def __init__(self, database: Database, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._database = database
        self.heartbeat_seconds = heartbeat_seconds
        self._tails: WeakValueDictionary[str, _Tail[Any]] = WeakValueDictionary()
        self._draining = False
        self.followers = 0

    async def write(
        self, connection: AsyncConnection, resource: str, last: int, events: Sequence[Event]
    ) -> list[tuple[int, Event]]:
        """Add events after sequence `last` inside the caller's transaction; `publish` them once it is committed."""
        now = Timestamp()
        now.GetCurrentTime()
        numbered = list(enumerate(events, start=last + 1))
        for _, event in numbered:
            event.time.CopyFrom(now)
        if numbered:
            rows = [
                {"resource": resource, "sequence": sequence, "body": event.SerializeToString()}
                for sequence, event in numbered
            ]
            await connection.execute(insert(tables.events), rows)
        return numbered

    async def feed(
        self, connection: AsyncConnection, owner: str, resource: str, events: Sequence[tuple[int, Event]]
    ) -> list[tuple[int, Entry]]:
        """Add events to the feed of an owner inside the transaction that writes them; none: the resource is deleted."""
        # Before the deletion: a position is never given twice.
        newest = await _newest(connection, owner)
        if not events:
            await connection.execute(delete(tables.feed).where(tables.feed.c.resource == resource))
        entries = [Entry(resource, sequence, event) for sequence, event in events] or [Entry(resource, 0, None)]
        numbered = list(enumerate(entries, start=newest + 1))
        rows = [
            {
                "owner": owner,
                "position": position,
                "resource": resource,
                "sequence": entry.sequence,
                "kind": event_kind(entry.event),
            }
            for position, entry in numbered
        ]
        await connection.execute(insert(tables.feed), rows)
        return numbered

    def publish(self, resource: str, events: Sequence[tuple[int, Event]]) -> None:
        """Wake the followers, whom durable events come to in the order of their transactions."""
        if not events:
            return
        metrics.observe(resource, events)
        if (tail := self._tails.get(resource)) is not None:
            tail.publish(events)

    def publish_feed(self, owner: str, entries: Sequence[tuple[int, Entry]]) -> None:
        """Wake the followers of an owner's feed."""
        if entries and (tail := self._tails.get(_feed_of(owner))) is not None:
            tail.publish(entries)

    def drain(self) -> None:
        """End every follower with Draining."""
        self._draining = True
        for tail in list(self._tails.values()):
            tail.ring()

    def forget(self, resource: str) -> None:
        """Wake the followers of a deleted resource; they end with NotFound."""
        if (tail := self._tails.get(resource)) is not None:
            tail.entries.clear()
            tail.ring()

    def follow(self, resource: str, after: int) -> AsyncGenerator[tuple[int, Event | None], None]:
        """Events after `after`, then news as it comes; None is a heartbeat. Ends after the terminal event.

        Raises NotFound, CursorOutOfRange, and Draining when the server shuts down.
        """
        return self._follow(resource, after, partial(self._page, resource), is_terminal)

    def follow_feed(
        self, owner: str, after: int, kinds: Collection[int] = ()
    ) -> AsyncGenerator[tuple[int, Entry | None], None]:
        """Entries of the feed of an owner after `after`, then news as it comes; None is a heartbeat.

        What was before is of these EventKinds alone; news is of all. Raises CursorOutOfRange and Draining.
        """
        return self._follow(
            _feed_of(owner), after, lambda number: self._feed_page(owner, number, kinds), lambda _: False
        )

    async def _follow(
        self, key: str, after: int, read: Callable[[int], Awaitable[Page[T]]], is_last: Callable[[T], bool]
    ) -> AsyncGenerator[tuple[int, T | None], None]:
        tail: _Tail[T] = self._tails.get(key) or self._tails.setdefault(key, _Tail())
        # The first read is from the table, which checks the cursor.
        fresh: Page[T] | None = None
        self.followers += 1
        try:
            while not self._draining:
                bell = tail.bell
                page = fresh or await read(after)
                for number, entry in page.entries:
                    yield number, entry
                    if is_last(entry):
                        return
                after = page.reached
                if page.ended and not page.entries:
                    return
                if not page.entries and not bell.done():
                    await asyncio.wait({bell}, timeout=self.heartbeat_seconds)
                    if not bell.done():
                        yield after, None
                fresh = tail.after(after)
            raise Draining
        finally:
            self.followers -= 1

    async def _page(self, resource: str, after: int) -> Page[Event]:
        """Events after `after`, and whether the resource has ended."""
        query = (
            select(tables.events.c.sequence, tables.events.c.body)
            .where(tables.events.c.resource == resource, tables.events.c.sequence > after)
            .order_by(tables.events.c.sequence)
            .limit(PAGE)
        )
        async with self._database.read() as connection:
            row = (await connection.execute(select(tables.resource).where(tables.resource.c.name == resource))).first()
            if row is None:
                raise NotFound(resource)
            if not 0 <= after <= row.last_sequence:
                raise CursorOutOfRange(after, 1, row.last_sequence)
            rows = (await connection.execute(query)).all()
        found = [(event.sequence, Event.FromString(event.body)) for event in rows]
        return Page(found, found[-1][0] if found else after, row.state in TERMINAL)

    async def newest(self, owner: str) -> int:
        """The cursor at the end of an owner's feed."""
        async with self._database.read() as connection:
            return await _newest(connection, owner)

    async def _feed_page(self, owner: str, after: int, kinds: Collection[int]) -> Page[Entry]:
        feed, events = tables.feed.c, tables.events.c
        matched = and_(events.resource == feed.resource, events.sequence == feed.sequence)
        query = (
            select(feed.position, feed.resource, feed.sequence, events.body)
            .join_from(tables.feed, tables.events, matched, isouter=True)
            .where(feed.owner == owner, feed.position > after)
            .order_by(feed.position)
            .limit(PAGE)
        )
        if kinds:
            query = query.where(feed.kind.in_({0, *kinds}))
        async with self._database.read() as connection:
            newest = await _newest(connection, owner)
            if not 0 <= after <= newest:
                raise CursorOutOfRange(after, 1, newest)
            rows = (await connection.execute(query)).all()
        entries = [
            (row.position, Entry(row.resource, row.sequence, None if row.body is None else Event.FromString(row.body)))
            for row in rows
        ]
        # What became durable between the two reads is in the next page.
        return Page(entries, entries[-1][0] if len(rows) == PAGE or (rows and rows[-1].position > newest) else newest)


async def _newest(connection: AsyncConnection, owner: str) -> int:
    last = select(func.coalesce(func.max(tables.feed.c.position), 0)).where(tables.feed.c.owner == owner)
    return await connection.scalar(last) or 0


def _feed_of(owner: str) -> str:
    """The key of a feed among those of resources, whose names hold a slash and no space."""
    return f"feed of {owner}"


def event_kind(event: Event | None) -> int:
    """The EventKind of an event: the number of its detail's field; 0 without one."""
    name = None if event is None else event.WhichOneof("detail")
    return 0 if name is None else int(Event.DESCRIPTOR.fields_by_name[name].number)
