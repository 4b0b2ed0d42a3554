"""The whole suite on one machine, on loopback: object store, Ray head and the three services, supervised."""

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.local.child import Child, ChildFailed
from services.local.embedded import EmbeddedStore, StoreRefused
from services.local.ports import HOST, remembered_ports
from services.local.ray_head import RayHead
from services.runtime.service import EXIT_SETTINGS

log = logging.getLogger(__name__)

# In the order of their start; stopped the other way round.
SERVICES = {"ingest": 7001, "preprocess": 7002, "train": 7003}
READY_SECONDS = 120.0
GRACE_SECONDS = 15.0


class SuiteRefused(Exception):
    """The suite cannot run here; the text says why."""


class Suite:
    """A running suite; use `async with`. State stays in `state_dir`, the processes end with this one.

    model: folder or repo id; None: the default model. ports: of the services; 0: any that are free, the same again at
    the next start. environ: further settings of the services, by variable.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        model: str | None = None,
        ports: Mapping[str, int] | None = None,
        num_cpus: int | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.state_dir = state_dir.resolve()
        self._model = model
        self._wanted = {**SERVICES, **(ports or {})}
        self._environ = dict(environ or {})
        self.store = EmbeddedStore(self.state_dir)
        self.ray = RayHead(self.state_dir, num_cpus=num_cpus)
        self.services: dict[str, Child] = {}
        self._ports: dict[str, int] = {}
        self._lock: IO[str] | None = None

    @property
    def ingest_address(self) -> str:
        return f"{HOST}:{self._ports['ingest']}"

    @property
    def preprocess_address(self) -> str:
        return f"{HOST}:{self._ports['preprocess']}"

    @property
    def train_address(self) -> str:
        return f"{HOST}:{self._ports['train']}"

    @property
    def pids(self) -> dict[str, int]:
        """Of the newest start of each service."""
        return {name: child.pid for name, child in self.services.items()}

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._start)
            await asyncio.gather(*(self.wait_ready(name) for name in SERVICES))
        except BaseException:
            await asyncio.to_thread(self._stop)
            raise
        return self

    async def __aexit__(self, *exit: object) -> None:
        await asyncio.to_thread(self._stop)

    async def wait_ready(self, name: str) -> None:
        """Until a service says SERVING. Raises ChildFailed when it has ended for good, or is not ready in time."""
        child = self.services[name]
        deadline = time.monotonic() + READY_SECONDS
        async with grpc.aio.insecure_channel(f"{HOST}:{self._ports[name]}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            while True:
                child.check()
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                if time.monotonic() > deadline:
                    raise child.failure(f"is not ready after {READY_SECONDS:.0f} s")
                await asyncio.sleep(0.1)

    def _start(self) -> None:
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._lock = (self.state_dir / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SuiteRefused(f"Another suite runs with the state in {self.state_dir}.") from None
        free = remembered_ports(self.state_dir / "ports.json", list(SERVICES))
        self._ports = {name: wanted or free[name] for name, wanted in self._wanted.items()}
        self.store.start()
        self.ray.start()
        for name in SERVICES:
            self.services[name] = self._service(name)

    def _service(self, name: str) -> Child:
        address = self.store.address
        settings = {
            "BIND": f"{HOST}:{self._ports[name]}",
            "STATE_DIR": str(self.state_dir / name),
            "INGEST": self.ingest_address,
            "PREPROCESS": self.preprocess_address,
            "S3_ENDPOINT": address.endpoint,
            "S3_ACCESS_KEY": address.access_key,
            "S3_SECRET_KEY": address.secret_key,
            "S3_REGION": address.region,
            "S3_BUCKET": address.bucket,
            "RAY_ADDRESS": self.ray.address,
            "RAY_TOKEN": self.ray.token,
        }
        if self._model:
            settings["MODEL"] = self._model
        environ = dict(os.environ) | {f"LTXTRAIN_{key}": value for key, value in settings.items()}
        environ |= self.ray.environ() | self._environ
        return Child(
            f"The {name} service",
            [sys.executable, "-m", f"services.{name}"],
            environ=environ,
            log_path=self.state_dir / f"{name}.log",
            cwd=self.state_dir,
            final={0, EXIT_SETTINGS},
        ).start()

    def _stop(self) -> None:
        for child in reversed(self.services.values()):
            child.stop(GRACE_SECONDS)
        self.ray.stop()
        self.store.stop()
        if self._lock is not None:
            self._lock.close()


def run(state_dir: Path, model: str | None) -> int:
    """`ltxtrain up`: run until Ctrl-C or SIGTERM; the exit status."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return asyncio.run(_run(state_dir, model))
    except (SuiteRefused, StoreRefused, ChildFailed) as error:
        print(error, file=sys.stderr)
        return 1


async def _run(state_dir: Path, model: str | None) -> int:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    print("Starting object store, Ray and services …", flush=True)
    async with Suite(state_dir, model=model) as suite:
        print(f"Train       {suite.train_address}\nPreprocess  {suite.preprocess_address}")
        print(f"Ingest      {suite.ingest_address}\nLogs and state in {suite.state_dir}. Ctrl-C stops it.", flush=True)
        while not stop.is_set():
            for child in suite.services.values():
                child.check()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 1.0)
        print("Stopping …", flush=True)
    return 0
