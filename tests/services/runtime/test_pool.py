"""A pool of actors on a real Ray: each item once, actors that die and are replaced, errors, cancellation."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime.cluster import ActorKilled, Cluster, WorkerLost, kill
from ltxtrain_services.runtime.errors import Unavailable
from ltxtrain_services.runtime.objects import ObjectMissing
from ltxtrain_services.runtime.pool import STARTS, map_bounded
from tests.services.runtime.ray_workers import free_cpus, remote_worker, until, until_gone, written


@pytest.fixture(scope="module")
def worker_class() -> Any:
    return remote_worker()


async def test_every_item_comes_back_once_from_few_actors(ray_cluster: Cluster, worker_class: Any) -> None:
    made = []

    def make_actor() -> Any:
        made.append(worker_class.options(num_cpus=1).remote())
        return made[-1]

    async def call(actor: Any, number: int) -> int:
        return int(await ray_cluster.value(actor.square.remote(number)))

    async with aclosing(map_bounded(ray_cluster, make_actor, range(50), call, size=2)) as results:
        found = dict([result async for result in results])
    assert found == {number: number * number for number in range(50)}
    assert len(made) == 2
    await until(lambda: free_cpus() == 2)


async def test_no_more_items_are_taken_than_are_worked_on(ray_cluster: Cluster, worker_class: Any) -> None:
    taken = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    async def call(actor: Any, number: int) -> int:
        return int(await ray_cluster.value(actor.square.remote(number)))

    other = worker_class.remote()
    async with aclosing(map_bounded(ray_cluster, worker_class.remote, items(), call, size=2)) as results:
        await anext(results)
        # All that may go on without a reader goes on.
        for number in range(50):
            await ray_cluster.value(other.square.remote(number))
        assert len(taken) <= 6


async def test_errors_are_results_and_an_item_that_kills_is_told(ray_cluster: Cluster, worker_class: Any) -> None:
    async def call(actor: Any, what: str) -> Any:
        reference = actor.die.remote() if what == "kills" else actor.fail.remote(what)
        return await ray_cluster.value(reference)

    items = ["a", "kills", "b"]
    async with aclosing(map_bounded(ray_cluster, worker_class.remote, items, call, size=1, attempts=2)) as results:
        found = dict([result async for result in results])
    assert {item: type(error) for item, error in found.items()} == {
        "a": ObjectMissing,
        "kills": ActorKilled,
        "b": ObjectMissing,
    }
    assert str(found["b"]) == "There is no object b."


async def test_an_actor_that_dies_costs_a_retry(ray_cluster: Cluster, worker_class: Any, tmp_path: Path) -> None:
    async def call(actor: Any, mark: Path) -> Any:
        return await ray_cluster.value(actor.die_once.remote(mark))

    mark = tmp_path / "mark"
    async with aclosing(map_bounded(ray_cluster, worker_class.remote, [mark], call, size=1)) as results:
        assert [result async for result in results] == [(mark, "second try")]


async def test_an_actor_that_dies_with_nothing_to_do_costs_no_item_a_retry(
    ray_cluster: Cluster, worker_class: Any
) -> None:
    made: list[Any] = []

    def make_actor() -> Any:
        made.append(worker_class.remote())
        if len(made) in (1, 2):
            kill(made[-1])
        return made[-1]

    async def call(actor: Any, number: int) -> int:
        squared = int(await ray_cluster.value(actor.square.remote(number)))
        if number == 1:
            kill(actor)
            # It may answer for some time yet.
            with pytest.raises(WorkerLost):
                while True:
                    await ray_cluster.value(actor.square.remote(number))
        return squared

    found = map_bounded(ray_cluster, make_actor, [1, 2], call, size=1, attempts=1)
    async with aclosing(found) as results:
        assert [result async for result in results] == [(1, 1), (2, 4)]
    assert len(made) == 4


async def test_actors_that_never_live_end_the_map_and_no_item_is_to_blame(
    ray_cluster: Cluster, worker_class: Any
) -> None:
    made: list[Any] = []

    def make_actor() -> Any:
        made.append(worker_class.remote())
        kill(made[-1])
        return made[-1]

    async def call(actor: Any, number: int) -> None:
        raise AssertionError

    with pytest.raises(Unavailable, match="before they had anything to do") as raised:
        async with aclosing(map_bounded(ray_cluster, make_actor, [1], call, size=1)) as results:
            async for _ in results:
                pass
    assert raised.value.reason == ErrorReason.ERROR_REASON_WORKER_LOST
    assert len(made) == STARTS


async def test_a_source_that_fails_ends_the_map(ray_cluster: Cluster, worker_class: Any) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("no more clips")

    async def call(actor: Any, number: int) -> int:
        return int(await ray_cluster.value(actor.square.remote(number)))

    with pytest.raises(LookupError, match="no more clips"):
        async with aclosing(map_bounded(ray_cluster, worker_class.remote, items(), call, size=2)) as results:
            async for _ in results:
                pass


async def test_closing_a_map_ends_its_actors(ray_cluster: Cluster, worker_class: Any, tmp_path: Path) -> None:
    marks = [tmp_path / "one", tmp_path / "two"]

    async def call(actor: Any, mark: Path) -> Any:
        return await ray_cluster.value(actor.hang.remote(mark))

    async def run() -> None:
        async with aclosing(map_bounded(ray_cluster, worker_class.remote, marks, call, size=2)) as results:
            async for _ in results:
                pass

    task = asyncio.create_task(run())
    pids = [await written(mark) for mark in marks]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in pids:
        await until_gone(pid)
