"""The CPU time of the callbacks of this process's event loops, by their own thread's clock."""

import asyncio.events
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def timed_callbacks() -> Iterator[list[tuple[float, str]]]:
    """The longest callbacks of the block, ascending, as milliseconds of CPU and a name; other threads are not in it.

    A collection of garbage takes what all tests of a process have left behind, so there is none meanwhile.
    """
    found: list[tuple[float, str]] = []
    run = asyncio.events.Handle._run

    def timed(self: Any) -> None:
        began = time.thread_time()
        try:
            run(self)
        finally:
            took = 1000 * (time.thread_time() - began)
            if not found or took > found[-1][0]:
                found.append((took, repr(self)[:300]))

    gc.disable()
    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        gc.enable()
