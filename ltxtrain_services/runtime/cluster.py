"""Ray: attach to a cluster, notice when it is lost, and call actors that may die at any moment.

Nothing holds a CPU or a GPU while it waits: actors live in pools made for one piece of work and end with it.
"""

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

log = logging.getLogger(__name__)

NAMESPACE = "ltxtrain"
# The raylets beside services have the label ltxtrain=service (docker/entrypoint); nodes without any are meant.
NOT_A_SERVICE = {"ltxtrain": "!service"}
# Without a CPU to ask for, Ray might place an actor on the raylet beside a service, whose memory is not meant for it.
ON_CPU: dict[str, Any] = {"num_cpus": 0, "label_selector": NOT_A_SERVICE}
PROBE_SECONDS = 5.0
# Probes in a row without an answer until the cluster counts as lost: a busy head may miss one.
PROBES = 2
PROBE_TIMEOUT_SECONDS = 5.0
# A whole number: how long Ray is asked at a time whether GPUs are set aside.
PLACE_SECONDS = 1
# A head that is started again beside this process takes about five.
ATTACH_SECONDS = 30.0
ATTEMPTS = 3

R = TypeVar("R")


class ClusterRefused(Exception):
    """The address is not one that this suite can use; the text says what to do."""


class ClusterLost(Exception):
    """The head of the cluster does not answer any more: the process ends, is started again, and goes on."""


class WorkerLost(Exception):
    """An actor ended in the midst of its work."""


class ActorKilled(Exception):
    """One item has ended as many actors as are tried."""


class Cluster:
    """The Ray cluster that this process is attached to, with the nodes that it has now.

    needs_gpus: models wait for a GPU where there is none, and are never taken to a CPU.
    """

    def __init__(self, *, needs_gpus: bool = False) -> None:
        self.lost = asyncio.Event()
        self.needs_gpus = needs_gpus
        self._node_id = ray.get_runtime_context().get_node_id()
        self._nodes = _living_nodes()
        self._changed: list[Callable[[], None]] = []

    @classmethod
    def attach(cls, address: str, token: str, *, needs_gpus: bool = False) -> "Cluster":
        """Attach before any gRPC server starts. Raises ClusterRefused."""
        if address.startswith("ray://"):
            raise ClusterRefused(
                f"LTXTRAIN_RAY_ADDRESS={address}: streaming does not work through ray://. "
                "Start a raylet beside this service (ray start --address=HEAD:PORT --num-cpus=0) and name HEAD:PORT."
            )
        if not address:
            raise ClusterRefused("LTXTRAIN_RAY_ADDRESS is empty. `ltxtrain up` sets it; otherwise name HEAD:PORT.")
        if not ray.is_initialized():
            try:
                # Where nobody listens, ray.init tries for ten minutes.
                wait_for_listener(address, ATTACH_SECONDS)
                ray.init(
                    address=address,
                    namespace=NAMESPACE,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
                # The first object that is serialized imports pyarrow where it is installed, whose tables no service
                # sends: 20 MB less without.
                with _not_found("pyarrow"):
                    ray.put(None)
            except (OSError, RuntimeError, ValueError, RayError) as error:
                raise ClusterRefused(f"LTXTRAIN_RAY_ADDRESS={address}: {str(error).splitlines()[0]}") from error
        return cls(needs_gpus=needs_gpus)

    @property
    def gpu_count(self) -> int:
        return int(self._total("GPU"))

    @property
    def cpu_count(self) -> int:
        return max(1, int(self._total("CPU")))

    @property
    def object_store_bytes(self) -> int:
        """Memory for what goes from one actor to another, over all nodes."""
        return int(self._total("object_store_memory"))

    @property
    def can_work(self) -> bool:
        """False while there is no node with CPUs, as when a head has lost its raylet: all work would wait for ever."""
        return self._total("CPU") > 0

    @property
    def uses_gpus(self) -> bool:
        """Whether models go to GPUs, and wait for one where there is none."""
        return self.needs_gpus or self.gpu_count > 0

    def model_options(self) -> dict[str, Any]:
        """Ray resources of a model actor: a GPU, or on CPU-only clusters no CPU, so that it is scheduled at once."""
        return {"num_gpus": 1, "num_cpus": 0} if self.uses_gpus else ON_CPU

    async def watch(self) -> None:
        """Follow the nodes; set `lost` when the cluster stops answering, or is another one. Runs until then."""
        missed = 0
        while missed < PROBES:
            await asyncio.sleep(0 if missed else PROBE_SECONDS)
            if await self.refresh() and self._node_id in self._nodes:
                missed = 0
            else:
                missed += 1
                log.warning("the Ray cluster does not answer")
        self.lost.set()

    async def refresh(self) -> bool:
        """Ask Ray for the nodes that there are now; whether it answered. Without a head, the question hangs."""
        before = self._nodes
        answered = await ask(self._look, PROBE_TIMEOUT_SECONDS)
        if self._nodes != before:
            log.info("the cluster has %d nodes, %d CPUs, %d GPUs", len(self._nodes), self._total("CPU"), self.gpu_count)
            if not self.can_work:
                log.warning("the Ray cluster has no node with CPUs")
            for call in list(self._changed):
                call()
        return answered

    @contextlib.contextmanager
    def calling(self, call: Callable[[], None]) -> Iterator[None]:
        """Have something called in the event loop, during the block, whenever nodes have come or gone."""
        self.on_change(call)
        try:
            yield
        finally:
            self._changed.remove(call)

    def on_change(self, call: Callable[[], None]) -> None:
        """Have something called in the event loop whenever nodes have come or gone."""
        self._changed.append(call)

    def _look(self) -> bool:
        self._nodes = _living_nodes()
        return True

    def _total(self, resource: str) -> float:
        return sum(resources.get(resource, 0.0) for resources in self._nodes.values())

    async def value(self, reference: Any) -> Any:
        """The result of a call. Raises WorkerLost, ClusterLost, and the call's own exception."""
        with _translated():
            return await self.or_lost(asyncio.wrap_future(reference.future()))

    async def reference(self, references: Any) -> Any:
        """The next reference of a streaming call, None after the last. Raises as `value`.

        The value stays where it is: Ray's own `anext` would fetch it to this node.
        """
        with _translated():
            return await self.or_lost(in_thread(lambda: next(references, None)))

    async def stream(self, references: Any) -> AsyncGenerator[Any, None]:
        """The values of a streaming call. Raises as `value`."""
        items = aiter(references)
        while True:
            with _translated():
                try:
                    reference = await self.or_lost(asyncio.ensure_future(anext(items)))
                except StopAsyncIteration:
                    return
                item = await self.or_lost(asyncio.wrap_future(reference.future()))
            yield item

    async def or_lost(self, future: "asyncio.Future[R]") -> R:
        """The result of a future. Raises ClusterLost once the cluster is lost."""
        lost = asyncio.ensure_future(self.lost.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {future, lost}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ClusterLost
            return future.result()
        finally:
            lost.cancel()
            future.cancel()


class ActorGroup:
    """Actors that work together, one a GPU where there are any; all end when the context is left."""

    def __init__(self, cluster: Cluster, actors: Sequence[Any]) -> None:
        self._cluster = cluster
        self._actors = actors

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        cluster: Cluster,
        actor_class: Any,
        arguments: Sequence[tuple[Any, ...]],
        placement: "Placement | None" = None,
    ) -> AsyncIterator["ActorGroup"]:
        """One actor for each tuple of arguments, each on a GPU of the placement; without one, on CPUs."""
        actors: list[Any] = []
        try:
            for rank, argument in enumerate(arguments):
                options = placement.options(rank) if placement else ON_CPU
                actors.append(actor_class.options(**options).remote(*argument))
            yield cls(cluster, actors)
        finally:
            for actor in actors:
                kill(actor)

    async def call(self, rank: int, method: str, *arguments: Any) -> Any:
        return await self._cluster.value(getattr(self._actors[rank], method).remote(*arguments))

    async def stream(self, method: str, *arguments: Any) -> AsyncGenerator[Any, None]:
        """All that the call yields in any actor, until the last has ended. Raises WorkerLost for one that is lost."""
        calls = [getattr(actor, method).options(num_returns="streaming").remote(*arguments) for actor in self._actors]
        streams = [self._cluster.stream(call) for call in calls]
        following = {asyncio.ensure_future(anext(stream)): stream for stream in streams}
        try:
            while following:
                done, _ = await asyncio.wait(following, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    stream = following.pop(future)
                    try:
                        yield future.result()
                    except StopAsyncIteration:
                        continue
                    following[asyncio.ensure_future(anext(stream))] = stream
        finally:
            for future in following:
                future.cancel()
            await asyncio.gather(*following, return_exceptions=True)
            for stream in streams:
                await stream.aclose()


class Placement:
    """GPUs that Ray sets aside for a group of actors: a demand that its autoscaler sees, until they are there."""

    def __init__(self, cluster: Cluster, group: Any) -> None:
        self._cluster = cluster
        self._group = group

    @classmethod
    @contextlib.asynccontextmanager
    async def request(cls, cluster: Cluster, gpu_count: int) -> AsyncIterator["Placement"]:
        """Ask for so many GPUs, on as few nodes as can be; they are given back when the context is left."""
        made: list[Any] = []
        left = threading.Event()

        def create() -> None:
            made.append(placement_group([{"GPU": 1}] * gpu_count, "PACK"))
            # Nobody may have waited for it.
            if left.is_set():
                remove_placement_group(made[0])

        try:
            with _translated():
                await cluster.or_lost(in_thread(create))
            yield cls(cluster, made[0])
        finally:
            left.set()
            for group in made:
                remove_placement_group(group)

    async def waiting(self) -> AsyncIterator[None]:
        """Iterate until the GPUs are set aside: an item about each second. Raises WorkerLost and ClusterLost."""
        with _translated():
            while not await self._cluster.or_lost(in_thread(lambda: self._group.wait(PLACE_SECONDS))):
                yield

    def options(self, rank: int) -> dict[str, Any]:
        """Ray options of the group's actor of that rank."""
        strategy = PlacementGroupSchedulingStrategy(self._group, rank)
        return {"num_gpus": 1, "num_cpus": 0, "scheduling_strategy": strategy}


def _living_nodes() -> dict[str, dict[str, float]]:
    """Resources of each node that lives, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def gpu_assigned() -> bool:
    """Whether Ray has given this process a GPU."""
    return bool(ray.is_initialized() and ray.get_gpu_ids())


def kill(actor: Any) -> None:
    """End an actor's process at once; one that has ended already is fine."""
    with contextlib.suppress(RayError, ValueError):
        ray.kill(actor)


@contextlib.contextmanager
def _not_found(module: str) -> Iterator[None]:
    """Have imports of a module that is not loaded yet fail, as if it were not installed."""
    absent = module not in sys.modules
    if absent:
        sys.modules[module] = None  # type: ignore[assignment] # Python's own way to say so
    try:
        yield
    finally:
        if absent:
            del sys.modules[module]


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, Exception):
            raise error.cause from error
        raise WorkerLost(str(error).splitlines()[-1]) from error
    except RayActorError as error:
        raise WorkerLost(f"an actor ended: {type(error).__name__}") from error
    except RayError as error:
        raise WorkerLost(type(error).__name__) from error


def wait_for_listener(address: str, seconds: float) -> None:
    """Return when somebody listens at host:port. Raises OSError after the seconds, and ValueError for another form."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


async def ask(question: Callable[[], bool], seconds: float) -> bool:
    """The answer of a blocking call; False when it raises, or has not returned in time."""
    try:
        return await asyncio.wait_for(in_thread(question), seconds)
    except Exception:
        return False


def in_thread(call: Callable[[], R]) -> "asyncio.Future[R]":
    """Run a blocking call in a thread; the future gets its result or its exception.

    Its thread is not one of the loop's pool, which would hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast(R, result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="blocking call", daemon=True).start()
    return future
