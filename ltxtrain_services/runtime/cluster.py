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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

log = logging.getLogger(__name__)

NAMESPACE = "ltxtrain"
# The raylets beside services have the label ltxtrain=service (docker/entrypoint); nodes without any are meant.
NOT_A_SERVICE = {"ltxtrain": "!service"}
PROBE_SECONDS = 5.0
# Probes in a row without an answer until the cluster counts as lost: a busy head may miss one.
PROBES = 2
PROBE_TIMEOUT_SECONDS = 5.0
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
    """The Ray cluster that this process is attached to."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()
        self._node_id = ray.get_runtime_context().get_node_id()
        # False while there is no node with CPUs, as when a head has lost its raylet: all work would wait for ever.
        self.can_work = _can_work(_nodes())

    @classmethod
    def attach(cls, address: str, token: str) -> "Cluster":
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
        return cls()

    @property
    def gpu_count(self) -> int:
        return int(_resources().get("GPU", 0))

    @property
    def cpu_count(self) -> int:
        return max(1, int(_resources().get("CPU", 1)))

    @property
    def object_store_bytes(self) -> int:
        """Memory for what goes from one actor to another, over all nodes."""
        return int(_resources().get("object_store_memory", 0))

    def model_options(self) -> dict[str, Any]:
        """Ray resources of a model actor: a GPU, or on CPU-only clusters no CPU, so that it is scheduled at once.

        Without a CPU to ask for, Ray might place it on the raylet beside a service, whose memory is not meant for it.
        """
        return {"num_gpus": 1, "num_cpus": 0} if self.gpu_count else {"num_cpus": 0, "label_selector": NOT_A_SERVICE}

    async def watch(self) -> None:
        """Set `lost` when the cluster stops answering, or is another one; runs until then."""
        missed = 0
        while missed < PROBES:
            await asyncio.sleep(0 if missed else PROBE_SECONDS)
            if await ask(self._has_node, PROBE_TIMEOUT_SECONDS):
                missed = 0
            else:
                missed += 1
                log.warning("the Ray cluster does not answer")
        self.lost.set()

    def _has_node(self) -> bool:
        """Whether the cluster still has the node that this process is attached to. Without a head it hangs."""
        nodes = _nodes()
        could, self.can_work = self.can_work, _can_work(nodes)
        if could != self.can_work:
            log.warning("the Ray cluster has %s node with CPUs", "a" if self.can_work else "no")
        return any(node["NodeID"] == self._node_id and node["Alive"] for node in nodes)

    async def value(self, reference: Any) -> Any:
        """The result of a call. Raises WorkerLost, ClusterLost, and the call's own exception."""
        with _translated():
            return await self._or_lost(asyncio.wrap_future(reference.future()))

    async def reference(self, references: Any) -> Any:
        """The next reference of a streaming call, None after the last. Raises as `value`.

        The value stays where it is: Ray's own `anext` would fetch it to this node.
        """
        with _translated():
            return await self._or_lost(in_thread(lambda: next(references, None)))

    async def stream(self, references: Any) -> AsyncGenerator[Any, None]:
        """The values of a streaming call. Raises as `value`."""
        items = aiter(references)
        while True:
            with _translated():
                try:
                    reference = await self._or_lost(asyncio.ensure_future(anext(items)))
                except StopAsyncIteration:
                    return
                item = await self._or_lost(asyncio.wrap_future(reference.future()))
            yield item

    async def _or_lost(self, future: "asyncio.Future[R]") -> R:
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
        cls, cluster: Cluster, actor_class: Any, arguments: Sequence[tuple[Any, ...]]
    ) -> AsyncIterator["ActorGroup"]:
        """One actor for each tuple of arguments, in one placement group; waits for its GPUs in Ray's queue."""
        options: list[dict[str, Any]] = [cluster.model_options() for _ in arguments]
        group = None
        actors: list[Any] = []
        try:
            if cluster.gpu_count:
                group = placement_group([{"GPU": 1} for _ in arguments], strategy="PACK")
                await cluster.value(group.ready())
                for rank, option in enumerate(options):
                    option["scheduling_strategy"] = PlacementGroupSchedulingStrategy(group, rank)
            actors += [
                actor_class.options(**option).remote(*argument)
                for option, argument in zip(options, arguments, strict=True)
            ]
            yield cls(cluster, actors)
        finally:
            for actor in actors:
                kill(actor)
            if group is not None:
                remove_placement_group(group)

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


def _nodes() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ray.nodes()
    return found


def _can_work(nodes: Sequence[Mapping[str, Any]]) -> bool:
    return any(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in nodes)


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()
    return found


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
