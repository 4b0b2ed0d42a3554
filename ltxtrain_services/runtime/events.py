"""The durable, ordered events of each resource, and followers of them.

Progress is a table with a cursor, not a broadcast: replay, resume, slow readers and restarts are one code path.
Followers of one resource share one tail of its newest events, so five hundred of them read the table once.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from itertools import islice
from weakref import WeakValueDictionary

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.work_pb2 import Event
from ltxtrain_client.watch import TERMINAL, is_terminal
from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import metrics, tables
from ltxtrain_services.runtime.errors import CursorOutOfRange, Draining, NotFound

HEARTBEAT_SECONDS = 15.0
PAGE = 256


class _Tail:
    """The newest events of one resource in memory, and a bell that rings when there are more."""

    def __init__(self) -> None:
        self.events: deque[tuple[int, Event]] = deque(maxlen=PAGE)
        self.bell: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def publish(self, events: Sequence[tuple[int, Event]]) -> None:
        self.events.extend(events)
        self.ring()

    def ring(self) -> None:
        bell, self.bell = self.bell, asyncio.get_running_loop().create_future()
        bell.set_result(None)

    def after(self, sequence: int) -> list[tuple[int, Event]] | None:
        """Events after sequence, or None when the tail does not reach back that far."""
        if not self.events or (first := self.events[0][0]) > sequence + 1:
            return None
        # Sequences are dense.
        return list(islice(self.events, sequence + 1 - first, None))


class EventLog:
    """One writer process; any number of followers."""

    def __init__(self, database: tables.Database, heartbeat_seconds: float = HEARTBEAT_SECONDS) -> None:
        self._database = database
        self.heartbeat_seconds = heartbeat_seconds
        self._tails: WeakValueDictionary[str, _Tail] = WeakValueDictionary()
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

    def publish(self, resource: str, events: Sequence[tuple[int, Event]]) -> None:
        """Wake the followers, whom durable events come to in the order of their transactions."""
        if not events:
            return
        metrics.observe(resource, events)
        if (tail := self._tails.get(resource)) is not None:
            tail.publish(events)

    def drain(self) -> None:
        """End every follower with Draining."""
        self._draining = True
        for tail in list(self._tails.values()):
            tail.ring()

    def forget(self, resource: str) -> None:
        """Wake the followers of a deleted resource; they end with NotFound."""
        if (tail := self._tails.get(resource)) is not None:
            tail.events.clear()
            tail.ring()

    async def follow(self, resource: str, after: int) -> AsyncGenerator[tuple[int, Event | None], None]:
        """Events after `after`, then news as it comes; None is a heartbeat. Ends after the terminal event.

        Raises NotFound, CursorOutOfRange, and Draining when the server shuts down.
        """
        tail = self._tails.get(resource) or self._tails.setdefault(resource, _Tail())
        # The first read is from the table, which checks the cursor.
        fresh: list[tuple[int, Event]] | None = None
        ended = False
        self.followers += 1
        try:
            while not self._draining:
                bell = tail.bell
                if fresh is None:
                    fresh, ended = await self._page(resource, after)
                for after, event in fresh:
                    yield after, event
                    if is_terminal(event):
                        return
                if ended and not fresh:
                    return
                if not fresh and not bell.done():
                    await asyncio.wait({bell}, timeout=self.heartbeat_seconds)
                    if not bell.done():
                        yield after, None
                fresh = tail.after(after)
            raise Draining
        finally:
            self.followers -= 1

    async def _page(self, resource: str, after: int) -> tuple[list[tuple[int, Event]], bool]:
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
        return [(event.sequence, Event.FromString(event.body)) for event in rows], row.state in TERMINAL
