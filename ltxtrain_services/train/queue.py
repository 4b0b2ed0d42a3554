"""Jobs get GPUs in the order in which they were created."""

import asyncio
import bisect
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

# How long free GPUs are kept for an older job that is still being prepared. A restart prepares all that wait within
# seconds, and jobs that were sent together are ready within a minute; a download of hours holds nobody up.
PATIENCE_SECONDS = 60.0


@dataclass(order=True)
class _Entry:
    created: int
    job: str
    # Set when the job is prepared.
    units: int = field(default=0, compare=False)
    ready_at: float = field(default=0.0, compare=False)


class GpuQueue:
    """`capacity` units, e.g. GPUs, of which each job takes some; the oldest job first.

    Nobody overtakes a job that waits: one that needs two units waits with the rest behind it until two are free. One
    that is still being prepared keeps its place for as long as the patience of those behind it lasts.
    """

    def __init__(self, capacity: int, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.capacity = capacity
        self._patience_seconds = patience_seconds
        self._free = capacity
        self._line: list[_Entry] = []
        self._news = asyncio.Event()

    @contextmanager
    def place(self, job: str, created: int) -> Iterator["Place"]:
        """A place in line, from before a job is prepared until it has ended."""
        entry = _Entry(created, job)
        bisect.insort(self._line, entry)
        self._ring()
        try:
            yield Place(self, entry)
        finally:
            if entry in self._line:
                self._line.remove(entry)
            self._ring()

    @asynccontextmanager
    async def turn(self, entry: _Entry, units: int) -> AsyncIterator[AsyncIterator[int]]:
        """See Place.turn."""
        entry.units, entry.ready_at = units, self._now()
        self._ring()
        try:
            yield self._positions(entry)
        finally:
            if entry not in self._line:
                self._free += units
                self._ring()

    async def _positions(self, entry: _Entry) -> AsyncIterator[int]:
        last = -1
        while (patience := self._patience_left(entry)) is None or patience > 0:
            news = self._news
            if (ahead := self._line.index(entry)) != last:
                last = ahead
                yield ahead
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news.wait(), patience)
        self._line.remove(entry)
        self._free -= entry.units
        self._ring()

    def _patience_left(self, entry: _Entry) -> float | None:
        """Seconds until the entry may take its units, 0 for now; None when that depends on others."""
        ahead = self._line[: self._line.index(entry)]
        if self._free < entry.units or any(other.units for other in ahead):
            return None
        return max(0.0, entry.ready_at + self._patience_seconds - self._now()) if ahead else 0.0

    def _ring(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class Place:
    """A job's place in line."""

    def __init__(self, queue: GpuQueue, entry: _Entry) -> None:
        self._queue = queue
        self._entry = entry

    def turn(self, units: int) -> contextlib.AbstractAsyncContextManager[AsyncIterator[int]]:
        """The job is prepared: the number of jobs ahead each time it changes, until it has its units.

        They are given back when the context is left.
        """
        return self._queue.turn(self._entry, units)
