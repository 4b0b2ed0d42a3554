"""Jobs and clips of known length on nodes that are declared: what the queue and the pools make of a cluster."""

import asyncio
import logging
import os
import random
import selectors
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ltxtrain_services.runtime.cluster import NAMESPACE, Cluster, Placement
from ltxtrain_services.runtime.pool import map_bounded
from ltxtrain_services.train.queue import GpuQueue, Room

GPUS = 16
OWNERS = 6
# Jobs of the first owner, who comes before all others with this share of them.
GREEDY_SHARE = 0.6


@dataclass(frozen=True)
class Task:
    """A job: so many GPUs for so many seconds."""

    owner: str
    units: int
    seconds: float


@dataclass(frozen=True)
class Ran:
    """When a task had its GPUs, in seconds since all were queued."""

    task: Task
    began: float
    ended: float


@contextmanager
def declared_cluster() -> Iterator[Any]:
    """A head of two CPUs and sixteen GPUs that are none, and room for more nodes (`add_node`)."""
    os.environ |= {"RAY_prestart_worker_first_driver": "0", "RAY_num_workers_soft_limit": "0"}
    import ray
    from ray.cluster_utils import Cluster as Nodes

    memory = 100 * 2**20
    nodes = Nodes(
        initialize_head=True,
        head_node_args={
            "num_cpus": 2,
            "num_gpus": GPUS,
            "include_dashboard": False,
            "object_store_memory": memory,
            "resources": {"head": 1},
        },
    )
    ray.init(address=nodes.address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def tasks(count: int, mean_seconds: float) -> list[Task]:
    """Equal at every run: one owner has most, and comes first; a fifth of the jobs need two or four GPUs."""
    choose = random.Random(17)
    greedy = int(count * GREEDY_SHARE)
    owners = ["owner 0"] * greedy + [f"owner {1 + number % (OWNERS - 1)}" for number in range(count - greedy)]
    return [
        Task(owner, choose.choice((1, 1, 1, 1, 1, 1, 1, 1, 2, 4)), mean_seconds * choose.uniform(0.5, 1.5))
        for owner in owners
    ]


class _Jump(selectors.DefaultSelector):
    """Waits for nothing: the clock jumps to when the next timer is due."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += timeout or 0.0
        return super().select(0)


def simulate_jobs(work: Sequence[Task]) -> list[Ran]:
    """Every task in its turn, in simulated time: what the queue's order alone costs, whatever the machine."""
    jump = _Jump()
    loop = asyncio.SelectorEventLoop(jump)
    loop.time = lambda: jump.now  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(run_jobs(None, work))
    finally:
        loop.close()


async def run_jobs(cluster: Cluster | None, work: Sequence[Task]) -> list[Ran]:
    """Every task in its turn, in a placement group of its own, as Train does; the work itself is to wait."""
    queue = GpuQueue(lambda: Room(cluster.gpu_count if cluster else GPUS))
    if cluster:
        cluster.on_change(queue.settle)
    clock = asyncio.get_running_loop().time
    origin = clock()

    async def run(number: int, task: Task) -> Ran:
        with queue.place(str(number), task.owner, number) as place:
            turn = place.turn(lambda available: task.units)
            async for _ in turn.waiting():
                pass
            async with Placement.request(cluster, turn.workers) if cluster else nullcontext() as placement:
                if placement:
                    async for _ in placement.waiting():
                        pass
                began = clock() - origin
                await asyncio.sleep(task.seconds)
            return Ran(task, began, clock() - origin)

    return list(await asyncio.gather(*(run(number, task) for number, task in enumerate(work))))


def jobs_share(ran: Sequence[Ran]) -> float:
    """The ideal time, in which no GPU is ever free, over the time from the first to the last second of work."""
    ideal = sum(item.task.units * item.task.seconds for item in ran) / GPUS
    return ideal / max(item.ended for item in ran)


def fair_share(ran: Sequence[Ran]) -> dict[str, float]:
    """By owner: GPU seconds had until its last job began, over its part of all GPUs for that time; 1 at most."""
    shares = {}
    for owner in sorted({item.task.owner for item in ran}):
        own = [item for item in ran if item.task.owner == owner]
        until = max(item.began for item in own)
        if until < own[0].task.seconds:
            shares[owner] = 1.0
            continue
        had = sum(item.task.units * max(0.0, min(item.ended, until) - item.began) for item in own)
        shares[owner] = min(1.0, had / (GPUS / OWNERS * until))
    return shares


async def run_clips(cluster: Cluster, nodes: int, clips: int, seconds: float) -> tuple[float, float]:
    """Share of the ideal time with one actor a node, once all work; and the seconds until then."""
    import ray

    class Clerk:
        def work(self, seconds: float) -> float:
            began = time.time()
            time.sleep(seconds)
            return began

    clerk = ray.remote(num_cpus=1, resources={"declared": 1})(Clerk)
    began = time.time()
    first: dict[Any, float] = {}

    async def call(actor: Any, clip: int) -> tuple[float, float]:
        at: float = await cluster.value(actor.work.remote(seconds))
        first.setdefault(actor, at)
        return at, time.time()

    async with aclosing(
        map_bounded(cluster, clerk.remote, range(clips), call, size=lambda: min(nodes, cluster.cpu_count))
    ) as results:
        done = [result async for _, result in results if not isinstance(result, Exception)]
    assert len(done) == clips
    full = max(first.values())
    counted = [ended for at, ended in done if at >= full]
    return len(counted) * seconds / len(first) / (max(counted) - full), full - began
