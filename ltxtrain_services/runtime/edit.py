"""The changes of one resource that become durable together, and how its children and cursors are written."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from ltxtrain.v1.work_pb2 import Event, Lifecycle, State
from ltxtrain_client.watch import TERMINAL
from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from ltxtrain_services.runtime import tables

# Children in one statement: a dataset may have a hundred thousand report lines, SQLite takes so many variables.
CHUNK = 500
# The collection of what is still to be sent, each by the name of its resource.
OUTBOX = "outbox"


class Resource(Protocol):
    """A message of the contract with a name and a life: Dataset, TrainingSet or Job."""

    name: str

    @property
    def lifecycle(self) -> Lifecycle: ...


M = TypeVar("M", bound=Resource)


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


async def move_cursors(connection: AsyncConnection, name: str, cursors: dict[str, int]) -> None:
    table = tables.cursor
    for upstream, sequence in cursors.items():
        moved = await connection.execute(
            update(table).where(table.c.resource == name, table.c.upstream == upstream).values(sequence=sequence)
        )
        if not moved.rowcount:
            await connection.execute(insert(table).values(resource=name, upstream=upstream, sequence=sequence))


async def put_children(connection: AsyncConnection, children: Sequence[tuple[str, str, Message | None]]) -> None:
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
