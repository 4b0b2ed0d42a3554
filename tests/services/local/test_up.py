"""The suite as processes of one machine: started, refused, killed, stopped."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import ray
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ltxtrain_client.channel import connect

from ltxtrain_services.local.child import Child, ChildFailed
from ltxtrain_services.local.demo import run as run_demo
from ltxtrain_services.local.lock import Running, hold
from ltxtrain_services.local.model import running_model
from ltxtrain_services.local.up import SERVICES, Suite, SuiteRefused, metrics_bind
from ltxtrain_services.local.up import run as run_up
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.loops import loop_kept

FREE = dict.fromkeys(SERVICES, 0)


@pytest.mark.parametrize(
    ("bind", "expected"),
    [
        ("127.0.0.1:9100", ["127.0.0.1:9100", "127.0.0.1:9101", "127.0.0.1:9102"]),
        ("[::1]:9100", ["[::1]:9100", "[::1]:9101", "[::1]:9102"]),
        ("127.0.0.1:0", ["127.0.0.1:0"] * 3),
    ],
)
def test_each_service_has_a_port_for_its_metrics(bind: str, expected: list[str]) -> None:
    assert [metrics_bind(bind, index) for index in range(3)] == expected


@pytest.fixture
def shared(object_store: StoreAddress, ray_cluster: Cluster) -> dict[str, str]:
    """Settings of a suite that has its store and its Ray from elsewhere."""
    return {
        "LTXTRAIN_S3_ENDPOINT": object_store.endpoint,
        "LTXTRAIN_S3_ACCESS_KEY": object_store.access_key,
        "LTXTRAIN_S3_SECRET_KEY": object_store.secret_key,
        "LTXTRAIN_RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "LTXTRAIN_RAY_TOKEN": os.environ["RAY_AUTH_TOKEN"],
    }


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[asyncio.subprocess.Process, Path]]:
    """`ltxtrain up` in a process of its own, and its state."""
    state = tmp_path_factory.mktemp("up")
    code = (
        "import sys; from pathlib import Path; from ltxtrain_services.local import ports, up\n"
        "free = ports.remembered_ports(Path(sys.argv[1]) / 'test-ports.json', [*up.SERVICES, up.GATEWAY])\n"
        "up.GATEWAY_PORT = free.pop(up.GATEWAY)\n"
        "up.SERVICES.update(free)\n"
        "sys.exit(up.run(Path(sys.argv[1])))\n"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LTXTRAIN_", "RAY_"))}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, str(state), env=environ, stdout=asyncio.subprocess.PIPE
    )
    yield process, state
    if process.returncode is None:
        process.kill()
        await process.wait()


async def serving(address: str) -> bool:
    async with connect(address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel.aio)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=20, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def descendants(pid: int) -> set[int]:
    """Living processes that a process started, and those that they started."""
    children = set()
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        children |= {int(word) for word in thread.read_text().split()}
    return children.union(*(descendants(child) for child in children))


async def test_up_serves_until_it_is_interrupted_and_leaves_nothing(
    running: tuple[asyncio.subprocess.Process, Path], tmp_path: Path
) -> None:
    process, state = running
    assert process.stdout is not None
    told = dict([(await process.stdout.readline()).decode().split(maxsplit=1) for _ in range(6)])
    assert list(told) == ["Starting", "gateway", "train", "preprocess", "ingest", "model"]
    assert told["model"].strip() == running_model(state)
    for name in SERVICES:
        assert await serving(told[name].strip())
    async with aiohttp.ClientSession() as session, session.get(f"{told['gateway'].strip()}/jobs") as answer:
        assert answer.status == 200 and "No jobs yet" in await answer.text()
    with pytest.raises(SuiteRefused) as refused:
        await Suite(state, ports=FREE).__aenter__()
    at = f"{told['train'].strip()} and {told['gateway'].strip()}"
    assert f"A suite runs on {state.resolve()} already, at {at}." in str(refused.value)
    assert f"Ctrl-C in its terminal, or: kill {process.pid}." in str(refused.value)
    # A second folder has ports of its own only where they are given.
    port = int(told["train"].strip().rpartition(":")[2])
    with pytest.raises(SuiteRefused, match=f"A suite runs at {told['train'].strip()} already, on another state folder"):
        await Suite(tmp_path / "other", ports=FREE | {"train": port}).__aenter__()
    made = descendants(process.pid)
    assert len(made) >= 10
    while (line := await process.stdout.readline()) and not line.startswith(b"State and logs"):
        pass
    process.send_signal(signal.SIGINT)
    assert await process.stdout.readline() == "Stopping …\n".encode()
    assert await process.wait() == 0
    assert running_model(state) == ""
    assert not [pid for pid in made if Path(f"/proc/{pid}").exists()]
    # Restarts find what was there.
    assert {path.name for path in state.iterdir()} >= {"ingest", "preprocess", "train", "store", "ray"}


@pytest.fixture
def restored_loop() -> Iterator[None]:
    with loop_kept():
        yield


@pytest.mark.usefixtures("restored_loop")
@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_state_in_use_is_refused_in_one_line(command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "demo" / "model"
    model.mkdir(parents=True)
    (model / "model_index.json").touch()
    with hold(tmp_path, Running(model=str(model))):
        assert running_model(tmp_path) == str(model)
        status = run_demo(tmp_path / "out", tmp_path) if command == "demo" else run_up(tmp_path)
        assert status == 1
    (told,) = capfd.readouterr().err.splitlines()
    assert told.startswith("A suite runs on") and f"kill {os.getpid()}." in told and "--state-dir DIR" in told


@pytest.mark.usefixtures("restored_loop")
def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_demo(tmp_path / "out", tmp_path / "file" / "state") == run_up(tmp_path / "file" / "state") == 1
    assert all("Not a directory" in line for line in capfd.readouterr().err.splitlines())


async def test_a_service_that_dies_is_started_again(shared: dict[str, str], tmp_path: Path) -> None:
    async with Suite(tmp_path, ports=FREE, environ=shared) as suite:
        assert not (tmp_path / "store").exists()
        assert not (tmp_path / "ray").exists()
        before, addresses = suite.pids, [suite.address(name) for name in SERVICES]
        os.kill(before["ingest"], signal.SIGKILL)
        while suite.pids["ingest"] == before["ingest"]:  # noqa: ASYNC110 (another process sets no event)
            await asyncio.sleep(0.02)
        await suite.wait_ready("ingest")
        assert suite.pids == before | {"ingest": suite.pids["ingest"]}
        suite.check()
    pids = {*before.values(), *suite.pids.values()}
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    again = Suite(tmp_path, ports=FREE, environ=shared)
    again._choose_ports()
    assert [again.address(name) for name in SERVICES] == addresses


async def test_wrong_settings_end_the_start_with_the_services_own_words(shared: dict[str, str], tmp_path: Path) -> None:
    """The setting is well-formed: what is not is refused before anything is started (test_door.py)."""
    environ = shared | {"LTXTRAIN_METRICS_BIND": "127.0.0.1:door"}
    suite = Suite(tmp_path, ports=FREE, environ=environ)
    with pytest.raises(SuiteRefused, match=r"LTXTRAIN_METRICS_BIND=127\.0\.0\.1:door"):
        await suite.__aenter__()
    with pytest.raises(ChildFailed):
        suite.check()


async def test_a_taken_port_names_the_setting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SuiteRefused, match=rf"{port} is taken. Set LTXTRAIN_TRAIN="):
            await Suite(tmp_path, ports=FREE | {"train": port}).__aenter__()
    # It gave the lock back.
    with pytest.raises(SuiteRefused, match="is taken"), socket.create_server(("127.0.0.1", port)):
        await Suite(tmp_path, ports=FREE | {"train": port}).__aenter__()


def test_a_child_is_started_again_until_it_ends_for_good(tmp_path: Path) -> None:
    """It fails twice, and then ends with a status that a new start would not change."""
    count = tmp_path / "count"
    script = f'echo x >> {count}; echo "start $(wc -l < {count})"; [ $(wc -l < {count}) -ge 3 ] && exit 2; exit 1'
    child = Child(
        "The child", ["/bin/sh", "-c", script], environ={}, log_path=tmp_path / "log", cwd=tmp_path, final={2}
    ).start()
    child._thread.join(timeout=30)
    with pytest.raises(ChildFailed, match="start 3"):
        child.check()
    assert child.starts == 3
    child.stop(1.0)


@pytest.mark.parametrize("hangs", [False, True])
def test_a_child_that_does_not_heed_is_killed(hangs: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Which is told, unless it is known to hang."""
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    log = tmp_path / "log"
    child = Child(
        "The child", ["/bin/sh", "-c", script], environ={"PATH": os.environ["PATH"]}, log_path=log, cwd=tmp_path
    )
    child.start()
    while b"ready" not in log.read_bytes():
        pass
    child.stop(0.2, hangs=hangs)
    assert ("The child did not end" in caplog.text) is not hangs
    assert not Path(f"/proc/{child.pid}").exists()
