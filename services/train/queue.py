"""Jobs wait for GPUs in the order in which they were created."""

import asyncio
import bisect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class GpuQueue:
    """`capacity` units, e.g. GPUs; each job takes some of them, the oldest waiting job first.

    Nobody overtakes: a job that needs two units waits with the rest behind it until two are free.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = capacity
        self._waiting: list[tuple[int, str, int]] = []  # creation time, job, units
        self._news = asyncio.Condition()

    @asynccontextmanager
    async def turn(self, job: str, created: int, units: int) -> AsyncIterator[AsyncIterator[int]]:
        """Wait in line; yields the number of jobs ahead each time it changes, ends when the units are taken.

        The units are given back when the context is left.
        """
        entry = (created, job, units)
        taken = False

        async def positions() -> AsyncIterator[int]:
            nonlocal taken
            last = -1
            while True:
                async with self._news:
                    ahead = self._waiting.index(entry)
                    if not ahead and self._free >= units:
                        self._waiting.remove(entry)
                        self._free -= units
                        taken = True
                        self._news.notify_all()
                        return
                    if ahead == last:
                        await self._news.wait()
                        continue
                    last = ahead
                yield ahead

        bisect.insort(self._waiting, entry)
        try:
            async with self._news:
                self._news.notify_all()
            yield positions()
        finally:
            if taken:
                self._free += units
            else:
                self._waiting.remove(entry)
            async with self._news:
                self._news.notify_all()
