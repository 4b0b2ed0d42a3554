"""The event loop that async tests share, kept for them by tests that run loops of their own."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def loop_kept() -> Iterator[None]:
    """asyncio.run, in a test or in a command that it calls, leaves this thread without a loop: give it back."""
    loop = asyncio.get_event_loop_policy().get_event_loop()
    try:
        yield
    finally:
        asyncio.set_event_loop(loop)


def run(work: Coroutine[Any, Any, T]) -> T:
    """asyncio.run for tests that are not async themselves."""
    with loop_kept():
        return asyncio.run(work)
