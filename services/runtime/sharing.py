"""Items that several workers of one event loop take from."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Generic, TypeVar

I = TypeVar("I")  # noqa: E741 (an item)


class Shared(Generic[I]):
    """Each item goes to one of those who iterate."""

    def __init__(self, items: Iterable[I] | AsyncIterable[I]) -> None:
        self._items = aiter(items) if isinstance(items, AsyncIterable) else _later(items)
        # A generator cannot be asked by two at once.
        self._taking = asyncio.Lock()

    def __aiter__(self) -> "Shared[I]":
        return self

    async def __anext__(self) -> I:
        async with self._taking:
            return await anext(self._items)


async def _later(items: Iterable[I]) -> AsyncIterator[I]:
    for item in items:
        yield item
