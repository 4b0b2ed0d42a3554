"""The command as a process: exit codes, Ctrl-C, terminals, completion, doctor."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from ltxtrain.v1.train_pb2 import Job

from tests.clients.far_side import Act, FarSide, progress_events, serving, stay_silent
from tests.clients.object_host import ObjectHost

COMMAND = (sys.executable, "-m", "ltxtrain_client.cli")
JOB = "jobs/1"
# Libraries that a client's installation lacks; the distribution's own packages are always there.
SERVER_LIBRARIES = (
    "torch",
    "ray",
    "minio",
    "numpy",
    "sqlalchemy",
    "av",
    "diffusers",
    "transformers",
    "safetensors",
    "PIL",
    "grpc_health",
)


def environ(far: FarSide, **more: str) -> dict[str, str]:
    addresses = {f"LTXTRAIN_{name}": far.address for name in ("TRAIN", "INGEST", "PREPROCESS")}
    return {**os.environ, **addresses, "COLUMNS": "120", **more}


@asynccontextmanager
async def watching(far: FarSide, *options: str, **streams: int) -> AsyncIterator[asyncio.subprocess.Process]:
    """`ltxtrain watch` on a job whose first stream falls silent after two of six events."""
    far.jobs[JOB] = Job(name=JOB, display_name="Drone style")
    far.events = progress_events(6)
    far.acts.append(Act(send=2, then=stay_silent))
    channels: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        **streams,
    }
    process = await asyncio.create_subprocess_exec(*COMMAND, "watch", JOB, *options, env=environ(far), **channels)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


class Terminal:
    """A pseudo terminal: `slave` is a process's end, and what the process shows is read as it comes."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        self._shown = b""
        self._news = asyncio.Event()

    def __enter__(self) -> "Terminal":
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self.slave)
        os.close(self._master)

    def _read(self) -> None:
        self._shown += os.read(self._master, 65536)
        self._news.set()

    async def shows(self, text: str) -> None:
        while text.encode() not in self._shown:
            self._news.clear()
            await self._news.wait()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())


async def test_ctrl_c_in_a_pipe_leaves_the_job_running(far: FarSide) -> None:
    async with watching(far) as process:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"train: 1/6\n"
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    assert process.returncode == 130
    assert told.startswith(b"Drone style (jobs/1) is not cancelled.") and b"ltxtrain watch jobs/1 --after" in told
    assert far.requests("CancelJob") == []


async def test_going_on_later_keeps_the_options(far: FarSide) -> None:
    async with watching(far, "--out", "my results", "--patience", "60", "--json") as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
    resume = json.loads(told)["resume"]
    after = resume["after"]
    assert resume["watch"] == f"ltxtrain watch jobs/1 --after {after} --out 'my results' --patience 60 --json"


@pytest.mark.parametrize(("answer", "code", "cancelled"), [("c", 3, 1), ("l", 130, 0), ("", 130, 0), ("w", 0, 0)])
async def test_ctrl_c_on_a_terminal_asks(far: FarSide, answer: str, code: int, cancelled: int) -> None:
    with Terminal() as terminal:
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.slave)
        async with watching(far, **streams) as process:
            await terminal.shows("2/6")
            process.send_signal(signal.SIGINT)
            await terminal.shows("continue to [w]atch?")
            terminal.type(f"{answer}\n")
            assert await process.wait() == code
    assert len(far.requests("CancelJob")) == cancelled
    # It goes on from the cursor, not from the beginning.
    assert [request.after_sequence for request in far.requests("WatchJob")][1:] == ([] if code == 130 else [2])


@pytest.mark.parametrize(("answer", "code", "left"), [("n", 1, [JOB]), ("", 1, [JOB]), ("y", 0, [])])
async def test_deleting_asks_on_a_terminal(far: FarSide, answer: str, code: int, left: list[str]) -> None:
    far.jobs[JOB] = Job(name=JOB)
    with Terminal() as terminal:
        streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), terminal.slave)
        process = await asyncio.create_subprocess_exec(*COMMAND, "delete", JOB, env=environ(far), **streams)
        await terminal.shows("for good?")
        terminal.type(f"{answer}\n")
        assert await process.wait() == code
    assert list(far.jobs) == left


async def test_a_service_that_stays_away_ends_the_command_not_the_job(far: FarSide) -> None:
    far.events = progress_events(6)
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--train", "127.0.0.1:1", "watch", JOB, "--after", "4", "--patience", "1.5"),
        env=environ(far),
        stderr=subprocess.PIPE,
    )
    _, told = await process.communicate()
    assert process.returncode == 4
    lost, *last = told.decode().splitlines()
    absent = "The service at 127.0.0.1:1 does not answer (Connection refused)."
    # However many tries there were.
    assert lost == f"After event 4: {absent} Retrying, for up to 1.5 s."
    assert last[0] == f"{absent} (UNAVAILABLE)"
    assert "ltxtrain up" in last[1]
    assert last[2].startswith("The state of jobs/1 is unknown")
    assert last[2].endswith("ltxtrain --train 127.0.0.1:1 watch jobs/1 --after 4 --patience 1.5")


@pytest.mark.parametrize("arguments", [("jobs", "--json"), ("watch", JOB, "--json"), ("watch", JOB)])
async def test_a_reader_that_went_away_ends_the_command_quietly(far: FarSide, arguments: tuple[str, ...]) -> None:
    far.jobs[JOB] = Job(name=JOB)
    far.events = progress_events(6)
    reader, writer = os.pipe()
    os.close(reader)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, env=environ(far), stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    _, told = await process.communicate()
    assert (process.returncode, told) == (141, b"")


def test_the_client_needs_no_server_library() -> None:
    """Every module of the package imports without the server's libraries and packages."""
    code = f"""
import importlib, pkgutil, sys
for name in {(*SERVER_LIBRARIES, "ltxtrain_services", "ltxtrain_trainer")!r}:
    sys.modules[name] = None
import ltxtrain_client
for module in pkgutil.walk_packages(ltxtrain_client.__path__, "ltxtrain_client."):
    importlib.import_module(module.name)
print(sorted(ltxtrain_client.__all__) == sorted(set(ltxtrain_client.__all__)))
print([name for name in ltxtrain_client.__all__ if not hasattr(ltxtrain_client, name)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("True\n[]\n", 0), done.stderr


@pytest.mark.parametrize("arguments", [("up",), ("demo",), ("model", "tiny", "folder")])
def test_what_needs_the_server_says_how_to_get_it(arguments: tuple[str, ...], tmp_path: Path) -> None:
    code = f"""
import sys
for name in {SERVER_LIBRARIES!r}:
    sys.modules[name] = None
from ltxtrain_client.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'ltxtrain[server,embedded]'" in done.stderr


def test_a_shell_can_complete() -> None:
    environment = {
        **os.environ,
        "_LTXTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "ltxtrain jobs --state ca",
        "COMP_CWORD": "3",
    }
    done = subprocess.run(COMMAND, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["cancelling", "cancelled"], done.stderr


@pytest.mark.parametrize(("begun", "offered"), [("jo", ["jobs/a1", "jobs/b2"]), ("b", ["b2"]), ("x", [])])
async def test_a_shell_can_complete_jobs(far: FarSide, begun: str, offered: list[str]) -> None:
    far.jobs = {name: Job(name=name) for name in ("jobs/a1", "jobs/b2")}
    more = {"_LTXTRAIN_COMPLETE": "complete_bash", "COMP_WORDS": f"ltxtrain job {begun}", "COMP_CWORD": "2"}
    process = await asyncio.create_subprocess_exec(
        *COMMAND, env=environ(far, **more), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, told = await process.communicate()
    assert (output.decode().split(), told) == (offered, b"")


def test_completing_jobs_of_nobody_is_silent() -> None:
    more = {
        "_LTXTRAIN_COMPLETE": "complete_bash",
        "COMP_WORDS": "ltxtrain --train 127.0.0.1:1 job j",
        "COMP_CWORD": "4",
    }
    done = subprocess.run(COMMAND, env={**os.environ, **more}, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([], "")


async def doctor(far: FarSide, **more: str) -> tuple[int | None, dict[str, dict[str, str]]]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "doctor", "--json", env=environ(far, **more), stdout=subprocess.PIPE
    )
    output, _ = await process.communicate()
    findings = [json.loads(line) for line in output.splitlines()]
    return process.returncode, {finding["subject"]: finding for finding in findings}


@asynccontextmanager
async def healthy(far: FarSide, store: ObjectHost, *, ready: bool = True) -> AsyncIterator[FarSide]:
    far.store = store.url
    servicer = health.aio.HealthServicer()
    async with serving(far, also=lambda server: health_pb2_grpc.add_HealthServicer_to_server(servicer, server)):
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("TrainService", "IngestService", "PreprocessService"):
            await servicer.set(f"ltxtrain.v1.{name}", state)
        yield far


async def test_doctor_finds_a_working_suite(store: ObjectHost) -> None:
    async with healthy(FarSide(), store) as far:
        code, findings = await doctor(far)
    assert code == 0
    for subject in ("service train", "service ingest", "service preprocess", "access", "object store", "client"):
        assert findings[subject]["verdict"] == "ok", findings[subject]
    assert list(store.objects.values()) == [b"\n"]


async def test_doctor_says_what_to_do_about_each_fault(store: ObjectHost) -> None:
    async with healthy(FarSide(), store) as far:
        far.store = "http://127.0.0.1:1"
        code, findings = await doctor(far, LTXTRAIN_PREPROCESS="127.0.0.1:1", RAY_ADDRESS="ray://head:10001")
    assert code == 1
    failed = {subject for subject, finding in findings.items() if finding["verdict"] == "failed"}
    assert failed == {"ray", "service preprocess", "object store"}
    assert "ltxtrain up" in findings["service preprocess"]["advice"]
    assert "LTXTRAIN_S3_PUBLIC_ENDPOINT" in findings["object store"]["advice"]


async def test_doctor_tells_running_from_ready(store: ObjectHost) -> None:
    async with healthy(FarSide(), store, ready=False) as far:
        code, findings = await doctor(far)
    assert code == 1
    assert "not ready" in findings["service train"]["detail"]


async def test_doctor_tells_a_service_that_is_something_else(far: FarSide) -> None:
    code, findings = await doctor(far)
    assert code == 1
    assert findings["service train"]["advice"] == "Does LTXTRAIN_TRAIN name this service?"
