"""The cluster helper against a real Ray of two CPUs: actors that die, errors, cancellation, a head that is lost."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import ray

from ltxtrain_services.local.ray_head import MAX_FOLDER_BYTES, short_folder
from ltxtrain_services.runtime import cluster as module
from ltxtrain_services.runtime.cluster import NOT_A_SERVICE, ActorGroup, Cluster, WorkerLost, ask, wait_for_listener
from tests.services.runtime.ray_workers import remote_worker, until, until_gone


@pytest.fixture(scope="module")
def worker_class() -> Any:
    return remote_worker()


async def test_a_cluster_without_gpus(ray_cluster: Cluster) -> None:
    assert (ray_cluster.gpu_count, ray_cluster.cpu_count) == (0, 2)
    assert ray_cluster.model_options() == {"num_cpus": 0, "label_selector": NOT_A_SERVICE}
    assert ray_cluster.can_work
    assert {node["NodeManagerAddress"] for node in ray.nodes()} == {"127.0.0.1"}


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
        "from ltxtrain_services.runtime import cluster\n"
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
from ltxtrain_services.local.ray_head import RayHead
head = RayHead(Path(sys.argv[1]), num_cpus=1).start()
print(head.pid, head.address, head.token, flush=True)
time.sleep(600)
"""
DRIVER = """
import asyncio, sys
from ltxtrain_services.runtime import cluster
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

    def late() -> bool:
        time.sleep(1.0)
        return True

    assert await ask(lambda: True, 5.0)
    assert not await ask(lambda: False, 5.0)
    assert not await ask(fail, 5.0)
    assert not await ask(late, 0.01)
    with pytest.raises(OSError):
        wait_for_listener("127.0.0.1:1", 0.0)


def test_the_namespace_is_ours(ray_cluster: Cluster) -> None:
    assert ray.get_runtime_context().namespace == module.NAMESPACE
