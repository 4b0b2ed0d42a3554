"""The encoders of one training set: loaded before anything that holds a CPU, each given work as it is free."""

import asyncio
from collections.abc import Callable
from typing import Any

from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.preprocess.actors import Phase
from ltxtrain_services.runtime.cluster import ATTEMPTS, ActorKilled, Cluster, WorkerLost, kill
from ltxtrain_services.runtime.errors import Unavailable
from ltxtrain_services.runtime.trainer_errors import api_error
from ltxtrain_trainer.errors import TrainerError


class Encoders:
    """Interchangeable encoders, all in one phase. One that dies is replaced; all end with the block that they serve."""

    def __init__(self, cluster: Cluster, make_actor: Callable[[], Any]) -> None:
        self._cluster = cluster
        self._make_actor = make_actor
        self._phase: Phase | None = None
        self._free: asyncio.Queue[Any] = asyncio.Queue()
        self._actors: set[Any] = set()
        self._loading: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def __aenter__(self) -> "Encoders":
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = list(self._loading)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for actor in self._actors:
            kill(actor)
        if self._failure.done():
            self._failure.exception()  # retrieved: asyncio warns of exceptions never retrieved
        else:
            self._failure.cancel()

    async def turn_to(self, phase: Phase, size: int) -> None:
        """Have up to `size` actors in a phase; returns when the first is. No call may be under way.

        Raises the status of a TrainerError (the model is not there, the device is too small), and Unavailable
        (WORKER_LOST).
        """
        self._phase = phase
        while not self._free.empty():
            self._load_soon(self._free.get_nowait())
        self.grow(size)
        self._free.put_nowait(await self._take())

    def grow(self, size: int) -> None:
        """Have up to `size` actors from now on, in the same phase."""
        for _ in range(size - len(self._actors)):
            self._load_soon(self._make())

    async def call(self, method: str, argument: Any) -> Any:
        """Call a method of a free actor. Raises ActorKilled when three actors ended, and all that the method raises."""
        for remaining in reversed(range(ATTEMPTS)):
            actor = await self._take()
            try:
                made = await self._cluster.value(getattr(actor, method).remote(argument))
            except WorkerLost as error:
                self._drop(actor)
                self._load_soon(self._make())
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

    def _make(self) -> Any:
        actor = self._make_actor()
        self._actors.add(actor)
        return actor

    def _drop(self, actor: Any) -> None:
        kill(actor)
        self._actors.discard(actor)

    def _load_soon(self, actor: Any) -> None:
        task = asyncio.create_task(self._load(actor))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load(self, actor: Any) -> None:
        """Brings an actor into the phase and sets it free; a model that does not load fails all."""
        for remaining in reversed(range(ATTEMPTS)):
            try:
                loaded = None
                while loaded is not self._phase:
                    loaded = self._phase
                    await self._cluster.value(actor.turn_to.remote(loaded))
            except WorkerLost as error:
                self._drop(actor)
                if not remaining:
                    text = f"A worker that loads the model was lost {ATTEMPTS} times: {error}. It may lack memory."
                    self._fail(Unavailable(ErrorReason.ERROR_REASON_WORKER_LOST, text))
                    return
                actor = self._make()
            except TrainerError as error:
                self._fail(api_error(error))
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
