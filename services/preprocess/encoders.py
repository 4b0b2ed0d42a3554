"""Actors that hold a model: made and loaded before anything that holds a CPU, each given work as it is free."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from ltxtrain.v1.error_pb2 import ErrorReason

from services.runtime.cluster import ATTEMPTS, ActorKilled, Cluster, WorkerLost, kill
from services.runtime.errors import FailedPrecondition, Unavailable
from trainer.errors import ModelUnavailable, ModelUnsupported


class Encoders:
    """Interchangeable actors with `ready` and `encode`. One that dies is replaced."""

    def __init__(self, cluster: Cluster, make_actor: Callable[[], Any]) -> None:
        self._cluster = cluster
        self._make_actor = make_actor
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._actors: set[Any] = set()
        self._loading: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    @contextlib.asynccontextmanager
    async def start(cls, cluster: Cluster, make_actor: Callable[[], Any], size: int) -> AsyncIterator["Encoders"]:
        """Begins when the first of `size` actors has its model; all end with the block.

        Raises FailedPrecondition (MODEL_UNAVAILABLE, MODEL_UNSUPPORTED), and Unavailable (WORKER_LOST).
        """
        encoders = cls(cluster, make_actor)
        try:
            for _ in range(size):
                encoders._add_actor()
            encoders._free.put_nowait(await encoders._take())
            yield encoders
        finally:
            await encoders._stop()

    async def encode(self, argument: Any) -> Any:
        """What a free actor makes of it. Raises ActorKilled when it has ended three, and what `encode` raises."""
        for remaining in reversed(range(ATTEMPTS)):
            actor = await self._take()
            try:
                made = await self._cluster.value(actor.encode.remote(argument))
            except WorkerLost as error:
                self._drop(actor)
                self._add_actor()
                if not remaining:
                    raise ActorKilled(str(error)) from error
            except Exception:
                self._free.put_nowait(actor)
                raise
            else:
                self._free.put_nowait(actor)
                return made
        raise AssertionError

    async def _take(self) -> Any:
        """The next free actor, or why there will be none."""
        taking = asyncio.ensure_future(self._free.get())
        try:
            waiting: set[asyncio.Future[Any]] = {taking, self._failure}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not taking.done():
                self._failure.result()
            return taking.result()
        finally:
            taking.cancel()

    def _add_actor(self) -> None:
        task = asyncio.create_task(self._load())
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load(self) -> None:
        """Makes an actor, loads its model and sets it free; a model that does not load fails all."""
        for remaining in reversed(range(ATTEMPTS)):
            actor = self._make_actor()
            self._actors.add(actor)
            try:
                await self._cluster.value(actor.ready.remote())
            except WorkerLost as error:
                self._drop(actor)
                if not remaining:
                    text = f"A worker that loads the model was lost {ATTEMPTS} times: {error}. It may lack memory."
                    self._fail(Unavailable(ErrorReason.ERROR_REASON_WORKER_LOST, text))
            except ModelUnavailable as error:
                self._fail(FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE, str(error)))
                return
            except ModelUnsupported as error:
                self._fail(FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED, str(error)))
                return
            except Exception as error:
                self._fail(error)
                return
            else:
                self._free.put_nowait(actor)
                return

    def _fail(self, error: Exception) -> None:
        if not self._failure.done():
            self._failure.set_exception(error)

    def _drop(self, actor: Any) -> None:
        kill(actor)
        self._actors.discard(actor)

    async def _stop(self) -> None:
        tasks = list(self._loading)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for actor in self._actors:
            kill(actor)
        if self._failure.done():
            self._failure.exception()  # retrieved, so that nobody is warned
        else:
            self._failure.cancel()
