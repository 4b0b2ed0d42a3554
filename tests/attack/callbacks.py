"""The CPU time of the callbacks of this process's event loops, by their own thread's clock."""

import asyncio.events
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def timed_callbacks() -> Iterator[list[tuple[float, str]]]:
    """Every callback that runs in the block, as milliseconds of CPU and its name; what other threads do is not in it.

    A collection of garbage takes what all tests of a process have left behind, so there is none meanwhile.
    """
    found: list[tuple[float, str]] = []
    run = asyncio.events.Handle._run

    def timed(self: Any) -> None:
        began = time.thread_time()
        try:
            run(self)
        finally:
            found.append((1000 * (time.thread_time() - began), repr(self)[:300]))

    gc.collect()
    gc.disable()
    asyncio.events.Handle._run = timed  # type: ignore[method-assign]
    try:
        yield found
    finally:
        asyncio.events.Handle._run = run  # type: ignore[method-assign]
        gc.enable()
