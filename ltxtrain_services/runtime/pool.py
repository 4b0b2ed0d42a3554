"""A pool of actors for one piece of work: each item goes to one that is free, and those that die are replaced."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, Generic, TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime.cluster import ATTEMPTS, ActorKilled, Cluster, ClusterLost, WorkerLost, kill
from ltxtrain_services.runtime.errors import Unavailable

# Actors in a row that end before they have anything to do, until none is started any more.
STARTS = 10

I = TypeVar("I")  # noqa: E741 (an item)
R = TypeVar("R")


async def map_bounded(
    cluster: Cluster,
    make_actor: Callable[[], Any],
    items: Iterable[I] | AsyncIterable[I],
    call: Callable[[Any, I], Awaitable[R]],
    *,
    size: int | Callable[[], int],
    attempts: int = ATTEMPTS,
) -> AsyncGenerator[tuple[I, R | Exception], None]:
    """Each item with what `call(actor, item)` gave or raised, as they come, on `size` actors.

    A callable size is asked again whenever nodes have come or gone, and more actors are made where it has grown. No
    more than `size` items are under way or unread. An actor that dies in a call costs its item a retry on a new one; an
    item that has killed `attempts` comes with ActorKilled. One that dies before costs no item anything. Closing the
    iterator kills the actors. Raises ClusterLost, Unavailable (WORKER_LOST) when no actor stays alive until it has an
    item, and what `items` and `make_actor` raise.
    """
    queue: asyncio.Queue[tuple[I, R | Exception] | BaseException | None] = asyncio.Queue(maxsize=1)
    source = Shared(items)

    async def worker() -> None:
        place: _Place[I, R] = _Place(cluster, make_actor)
        try:
            async for item in source:
                await queue.put((item, await place.tried(call, item, attempts)))
        finally:
            place.clear()

    async def all_workers() -> None:
        workers: list[asyncio.Task[None]] = []
        try:
            async with asyncio.TaskGroup() as group:

                def grow() -> None:
                    # Once one has found no more items, there are none for another.
                    if not any(task.done() for task in workers):
                        wanted = size() if callable(size) else size
                        workers.extend(group.create_task(worker()) for _ in range(wanted - len(workers)))

                grow()
                with cluster.calling(grow):
                    await asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
        except* Exception as errors:
            await queue.put(errors.exceptions[0])
        else:
            await queue.put(None)

    running = asyncio.create_task(all_workers())
    try:
        while (got := await queue.get()) is not None:
            if isinstance(got, BaseException):
                raise got
            yield got
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


class _Place(Generic[I, R]):
    """One of a pool's actors, or room for it."""

    def __init__(self, cluster: Cluster, make_actor: Callable[[], Any]) -> None:
        self._cluster = cluster
        self._make_actor = make_actor
        self._actor: Any = None

    async def tried(self, call: Callable[[Any, I], Awaitable[R]], item: I, attempts: int) -> R | Exception:
        """The result of the call, or its exception as a value. Raises ClusterLost and Unavailable."""
        for remaining in reversed(range(attempts)):
            actor = await self._living()
            try:
                return await call(actor, item)
            except WorkerLost as error:
                self.clear()
                if not remaining:
                    return ActorKilled(str(error))
            except ClusterLost:
                raise
            except Exception as error:
                return error
        raise AssertionError

    def clear(self) -> None:
        """End the actor that is there."""
        if self._actor is not None:
            kill(self._actor)
            self._actor = None

    async def _living(self) -> Any:
        """The actor, alive and with all that it needs; another one when it has ended."""
        for remaining in reversed(range(STARTS)):
            self._actor = self._actor or self._make_actor()
            try:
                await self._cluster.value(self._actor.__ray_ready__.remote())
                return self._actor
            except WorkerLost as error:
                self.clear()
                if not remaining:
                    text = f"{STARTS} workers in a row ended before they had anything to do: {error}."
                    raise Unavailable(ErrorReason.ERROR_REASON_WORKER_LOST, text) from error
        raise AssertionError


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
