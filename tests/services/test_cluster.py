"""The cluster helper against a real Ray of two CPUs: actors that die, errors, cancellation, a head that is lost."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import ray
from ltxtrain.v1.error_pb2 import ErrorReason

from services.local.ray_head import MAX_FOLDER_BYTES, short_folder
from services.runtime import cluster as module
from services.runtime.cluster import ActorGroup, ActorKilled, Cluster, WorkerLost, kill
from services.runtime.errors import Unavailable
from services.runtime.objects import ObjectMissing
from services.runtime.pool import STARTS, map_bounded
from services.runtime.reach import ask, wait_for_listener

POLL_SECONDS = 0.02


def remote_worker() -> Any:
    class Worker:
        """Does what tests want to see: counts, fails, dies, hangs."""

        def __init__(self, *_: object) -> None:
            self.calls = 0

        def pid(self) -> int:
            return os.getpid()

        def square(self, number: int) -> int:
            self.calls += 1
            return number * number

        def fail(self, key: str) -> None:
            raise ObjectMissing(f"There is no object {key}.")

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def die_once(self, mark: Path) -> str:
            if not mark.exists():
                mark.touch()
                self.die()
            return "second try"

        def hang(self, mark: Path) -> None:
            mark.write_text(str(os.getpid()))
            time.sleep(600)

        def count(self, end: int, die_at: int = -1) -> Iterator[int]:
            for number in range(end):
                if number == die_at:
                    self.die()
                yield number

        def count_for_ever(self, mark: Path) -> Iterator[int]:
            mark.write_text(str(os.getpid()))
            number = 0
            while True:
                yield number
                number += 1
                time.sleep(POLL_SECONDS)

        def count_or_hang(self, rank_of: dict[int, str], mark: Path) -> Iterator[int]:
            """The first yields and waits for ever, the second dies."""
            yield 0
            if rank_of[os.getpid()] == "dies":
                self.die()
            time.sleep(600)

    return ray.remote(Worker)


@pytest.fixture(scope="module")
def worker_class() -> Any:
    return remote_worker()


async def until(holds: Callable[[], object]) -> None:
    """Return when a condition holds; the test's own timeout is the limit."""
    while not holds():  # noqa: ASYNC110 (other processes set no event)
        await asyncio.sleep(POLL_SECONDS)


async def until_gone(pid: int) -> None:
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def written(mark: Path) -> int:
    """The pid that an actor leaves when its call has begun."""
    await until(lambda: mark.exists() and mark.read_text())
    return int(mark.read_text())


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))  # type: ignore[no-untyped-call]


async def test_a_cluster_without_gpus(ray_cluster: Cluster) -> None:
    assert (ray_cluster.gpu_count, ray_cluster.cpu_count) == (0, 2)
    assert ray_cluster.model_options() == {"num_cpus": 0}
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}  # type: ignore[no-untyped-call]


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


async def test_a_stream_gives_values_and_tells_a_death(ray_cluster: Cluster, worker_class: Any) -> None:
    actor = worker_class.remote()
    stream = ray_cluster.stream(actor.count.options(num_returns="streaming").remote(5))
    assert [number async for number in stream] == [0, 1, 2, 3, 4]
    dying = ray_cluster.stream(actor.count.options(num_returns="streaming").remote(5, die_at=3))
    seen = []
    with pytest.raises(WorkerLost):
        async for number in dying:
            seen.append(number)
    # What it had not sent yet is lost with it.
    assert seen == [0, 1, 2][: len(seen)]


async def test_a_group_streams_what_each_actor_yields(ray_cluster: Cluster, worker_class: Any, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    async with ActorGroup.start(ray_cluster, worker_class, [(0,), (1,)]) as group:
        pids = {await group.call(rank, "pid") for rank in range(2)}
        assert len(pids) == 2
        async with aclosing(group.stream("count_for_ever", mark)) as numbers:
            seen = [await anext(numbers) for _ in range(6)]
    # Two counts from 0 on, one into the other.
    assert sorted(set(seen)) == list(range(max(seen) + 1)) and all(seen.count(number) <= 2 for number in seen)
    for pid in pids:
        await until_gone(pid)


async def test_a_group_ends_when_any_of_its_actors_dies(
    ray_cluster: Cluster, worker_class: Any, tmp_path: Path
) -> None:
    async with ActorGroup.start(ray_cluster, worker_class, [(0,), (1,)]) as group:
        roles = {await group.call(0, "pid"): "hangs", await group.call(1, "pid"): "dies"}
        with pytest.raises(WorkerLost):
            async for number in group.stream("count_or_hang", roles, tmp_path):
                assert number == 0


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("ray://127.0.0.1:10001", "streaming does not work through ray://"),
        ("", "LTXTRAIN_RAY_ADDRESS is empty"),
        ("127.0.0.1:1", "no|refused|listens"),
        ("nonsense", "nonsense"),
    ],
)
def test_addresses_that_cannot_work_say_why(address: str, says: str) -> None:
    """In a process of its own, for this one is attached already."""
    code = (
        "import sys\n"
        "from services.runtime import cluster\n"
        "cluster.ATTACH_SECONDS = 0.0\n"
        "try:\n"
        "    cluster.Cluster.attach(sys.argv[1], '')\n"
        "except cluster.ClusterRefused as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, address], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert any(word in done.stdout for word in says.split("|")), done.stdout


OWNER = """
import sys, time
from pathlib import Path
from services.local.ray_head import RayHead
head = RayHead(Path(sys.argv[1]), num_cpus=1).start()
print(head.pid, head.address, head.token, flush=True)
time.sleep(600)
"""
DRIVER = """
import asyncio, sys
from services.runtime import cluster
cluster.PROBE_SECONDS, cluster.PROBE_TIMEOUT_SECONDS = 0.2, 1.0
attached = cluster.Cluster.attach(sys.argv[1], "")
print("attached", flush=True)
asyncio.run(attached.watch())
print("lost", flush=True)
sys.exit(3)
"""


async def started(code: str, *arguments: str, **environ: str) -> tuple[asyncio.subprocess.Process, list[str]]:
    """A Python program, and the words of its first line."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, *arguments, env=os.environ | environ, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, (await process.stdout.readline()).decode().split()


async def test_a_head_ends_with_its_owner_and_its_drivers_notice_and_can_end(tmp_path: Path) -> None:
    owner, (pid, address, token) = await started(OWNER, str(tmp_path))
    driver, words = await started(DRIVER, address, RAY_AUTH_TOKEN=token)
    assert words == ["attached"]
    assert len(processes_of(int(pid))) > 3
    owner.kill()
    await owner.wait()
    await until(lambda: not processes_of(int(pid)))
    shutil.rmtree(short_folder(tmp_path / "ray"))
    assert driver.stdout is not None
    assert await driver.stdout.readline() == b"lost\n"
    assert await driver.wait() == 3


def processes_of(session: int) -> list[int]:
    """Living processes of a session, by /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_the_folder_of_sockets_is_short_however_long_the_state_is(monkeypatch: pytest.MonkeyPatch) -> None:
    long = Path("/" + "/".join(["folder"] * 60))
    assert len(bytes(short_folder(long))) <= MAX_FOLDER_BYTES
    assert short_folder(long) != short_folder(long / "other")
    monkeypatch.setattr("tempfile.gettempdir", lambda: f"/tmp/{'a' * 80}")
    assert len(bytes(short_folder(long))) <= MAX_FOLDER_BYTES


async def test_a_question_without_an_answer_is_a_no() -> None:
    def fail() -> bool:
        raise RuntimeError

    assert await ask(lambda: True, 5.0)
    assert not await ask(lambda: False, 5.0)
    assert not await ask(fail, 5.0)
    assert not await ask(lambda: time.sleep(1.0) is None, 0.01)
    with pytest.raises(OSError):
        wait_for_listener("127.0.0.1:1", 0.0)


def test_the_namespace_is_ours(ray_cluster: Cluster) -> None:
    assert ray.get_runtime_context().namespace == module.NAMESPACE
