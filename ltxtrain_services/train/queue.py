"""Jobs get workers in turn: owner by owner, each owner's in the order in which they were created."""

import asyncio
import contextlib
import heapq
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# How long free GPUs are kept for an older job that is still being prepared. A restart prepares all that wait within
# seconds, and jobs that were sent together are ready within a minute; a download of hours holds nobody up.
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Room:
    """Workers that there is room for: one a GPU, or some on CPUs where no GPU is there or may be asked for."""

    present: int
    # Of a cluster that grows: as many as there can be.
    most: int = 0
    on_gpus: bool = True

    @property
    def limit(self) -> int:
        return max(self.present, self.most)


@dataclass(frozen=True)
class Waiting:
    """Why a job waits: jobs ahead of it, the workers that it needs, and those that there are."""

    ahead: int
    needed: int
    present: int


# Workers that a job takes of so many. It is asked again at each turn: nodes come and go.
Choose = Callable[[int], int]


@dataclass(eq=False)
class _Entry:
    job: str
    owner: str
    created: int
    # Set while the job is prepared and waits.
    choose: Choose | None = None
    ready_at: float = 0.0
    # It has run, and goes on before others begin.
    resumed: bool = False
    # Set when its turn has come.
    room: Room | None = None
    units: int = 0
    waiting: Waiting | None = None
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def rank(self) -> tuple[bool, int, str]:
        return not self.resumed, self.created, self.job


class GpuQueue:
    """Hands out the room of a cluster, which changes.

    The owner who has the fewest workers is next, and of several the one who has waited longest for a turn; nobody has
    more than `most_of_an_owner` (0: no such limit). Nobody overtakes the job that is next: when it needs two workers,
    others wait with it until two are free. One that is still being prepared keeps its turn for as long as the patience
    of those behind it lasts. But a job that needs more than there can be now is let through, to ask Ray for it: it
    waits there, seen by whoever adds nodes, and holds nobody up.
    """

    def __init__(
        self, room: Callable[[], Room], *, most_of_an_owner: int = 0, patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self._room = room
        self._most_of_an_owner = most_of_an_owner
        self._patience_seconds = patience_seconds
        self._line: list[_Entry] = []
        self._holders: list[_Entry] = []
        self._turns = 0
        # By owner: the number of its last turn.
        self._last_turn: dict[str, int] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.Handle | None = None

    @contextmanager
    def place(self, job: str, owner: str, created: int, *, resumed: bool = False) -> Iterator["Place"]:
        """A place in line, from before a job is prepared until it has ended; before all others for one that has run."""
        entry = _Entry(job, owner, created, resumed=resumed)
        self._line.append(entry)
        self._settle_soon()
        try:
            yield Place(self, entry)
        finally:
            self._leave(entry)

    def settle(self) -> None:
        """Give turns to those whose they are, and tell the others what they wait for. Call it when the room changes."""
        for handle in (self._timer, self._soon):
            if handle is not None:
                handle.cancel()
        self._timer = self._soon = None
        room, now, blocked = self._room(), asyncio.get_running_loop().time(), False
        unprepared = ahead = 0
        for entry in self._order(room):
            if entry.choose is None:
                unprepared += 1
                ahead += 1
                continue
            units = entry.choose(self._share(room))
            beyond, over_share = units > room.limit, self._over_share(entry.owner, units)
            fits = room.on_gpus if beyond else not blocked and units <= room.limit - self._held(room)
            if fits and not over_share:
                patience = entry.ready_at + self._patience_seconds - now if unprepared else 0.0
                if patience <= 0:
                    self._grant(entry, room, units)
                    continue
                if self._timer is None:
                    self._timer = asyncio.get_running_loop().call_later(patience, self.settle)
            # Those whose owner has as much as it may have hold nobody up.
            blocked = blocked or not (beyond or over_share)
            if (told := Waiting(ahead, units, room.present)) != entry.waiting:
                entry.waiting = told
                entry.news.set()
            ahead += 1

    def _settle_soon(self) -> None:
        """Once for all that happens now: a service that starts has every unfinished job come at the same moment."""
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_soon(self.settle)

    def _order(self, room: Room) -> list[_Entry]:
        """Those in line in the order of their turns, as if each got what it needs."""
        lines: dict[str, deque[_Entry]] = {}
        for entry in sorted(self._line, key=lambda entry: entry.rank):
            lines.setdefault(entry.owner, deque()).append(entry)
        loads = dict.fromkeys(lines, 0)
        for holder in self._holders:
            if holder.owner in loads:
                loads[holder.owner] += holder.units
        share, last_turn = self._share(room), self._last_turn.copy()

        def key(owner: str) -> tuple[bool, int, int, int, str]:
            first = lines[owner][0]
            return not first.resumed, loads[owner], last_turn.get(owner, 0), first.created, owner

        heap = [key(owner) for owner in lines]
        heapq.heapify(heap)
        order: list[_Entry] = []
        while heap:
            owner = heapq.heappop(heap)[-1]
            entry = lines[owner].popleft()
            order.append(entry)
            loads[owner] += entry.choose(share) if entry.choose is not None else 1
            last_turn[owner] = self._turns + len(order)
            if lines[owner]:
                heapq.heappush(heap, key(owner))
        return order

    def _share(self, room: Room) -> int:
        """Workers that one job may choose from: at least one, for which it then waits."""
        return max(1, min(room.present, self._most_of_an_owner or room.present))

    def _held(self, room: Room) -> int:
        """Units that have been given out of this room; those that wait for more than there can be have nothing."""
        return sum(
            holder.units
            for holder in self._holders
            if holder.room is not None and holder.room.on_gpus == room.on_gpus and holder.units <= room.limit
        )

    def _over_share(self, owner: str, units: int) -> bool:
        if not self._most_of_an_owner:
            return False
        held = sum(holder.units for holder in self._holders if holder.owner == owner)
        return held > 0 and held + units > self._most_of_an_owner

    def _grant(self, entry: _Entry, room: Room, units: int) -> None:
        self._turns += 1
        self._last_turn[entry.owner] = self._turns
        self._line.remove(entry)
        self._holders.append(entry)
        entry.room, entry.units, entry.waiting = room, units, None
        entry.news.set()

    def turn(self, entry: _Entry, choose: Choose) -> "Turn":
        """See Place.turn."""
        if entry in self._holders:
            # At once, so that nobody comes between.
            self._holders.remove(entry)
            self._line.append(entry)
            entry.room, entry.resumed = None, True
        entry.choose, entry.ready_at = choose, asyncio.get_running_loop().time()
        self._settle_soon()
        return Turn(entry)

    def _leave(self, entry: _Entry) -> None:
        for entries in (self._line, self._holders):
            with contextlib.suppress(ValueError):
                entries.remove(entry)
        if not any(other.owner == entry.owner for other in (*self._line, *self._holders)):
            self._last_turn.pop(entry.owner, None)
        self._settle_soon()


class Place:
    """A job's place in line."""

    def __init__(self, queue: GpuQueue, entry: _Entry) -> None:
        self._queue = queue
        self._entry = entry

    def turn(self, choose: Choose) -> "Turn":
        """The job is prepared: its turn, which lasts until the place is left, or another turn is asked for.

        After a loss that one comes before those of others who have not begun.
        """
        return self._queue.turn(self._entry, choose)


class Turn:
    """A job's turn, which it waits for by iterating over `waiting`."""

    def __init__(self, entry: _Entry) -> None:
        self._entry = entry

    async def waiting(self) -> AsyncIterator[Waiting]:
        """Each cause of the waiting as it comes, until the turn has come."""
        told: Waiting | None = None
        while self._entry.room is None:
            self._entry.news.clear()
            if (waiting := self._entry.waiting) is not None and waiting != told:
                told = waiting
                yield waiting
                continue
            await self._entry.news.wait()

    @property
    def workers(self) -> int:
        return self._entry.units

    @property
    def on_gpus(self) -> bool:
        assert self._entry.room is not None, "the turn has not come"
        return self._entry.room.on_gpus
