"""The Ingest service as a process of its own, and what it and its actors take of memory."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ltxtrain_services.runtime.objects import StoreAddress
from tests.processes import find

READY_SECONDS = 120.0
PROBER = "ray::Prober"
DEAD_PROXY = "http://127.0.0.1:9"


@dataclass
class ServiceProcess:
    """`start` and `kill` it as often as needed; state, port and settings stay."""

    port: int
    environ: dict[str, str]
    log: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "ltxtrain_services.ingest", env=self.environ, stdout=log, stderr=log
            )
        async with asyncio.timeout(READY_SECONDS), grpc.aio.insecure_channel(self.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            serving = health_pb2.HealthCheckResponse.SERVING
            state = None
            while state != serving:
                assert self.process.returncode is None, self.log.read_text()
                with suppress(grpc.aio.AioRpcError):
                    request = health_pb2.HealthCheckRequest()
                    state = (await stub.Check(request, wait_for_ready=True, timeout=1.0)).status

    async def kill(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


def service_process(state_dir: Path, port: int, store: StoreAddress, ray_address: str, **more: str) -> ServiceProcess:
    """`more` are further settings, by the name of the variable without its prefix."""
    settings = {
        "BIND": f"127.0.0.1:{port}",
        "STATE_DIR": str(state_dir),
        "S3_ENDPOINT": store.endpoint,
        "S3_ACCESS_KEY": store.access_key,
        "S3_SECRET_KEY": store.secret_key,
        "S3_BUCKET": store.bucket,
        "RAY_ADDRESS": ray_address,
    } | more
    environ = dict(os.environ) | {f"LTXTRAIN_{name}": value for name, value in settings.items()}
    # As containers get it in offices, without an exception: everything has to work past a proxy that is not there.
    proxies = [f"{scheme}_proxy" for scheme in ("http", "https", "grpc", "all")]
    environ |= dict.fromkeys([*proxies, *map(str.upper, proxies)], DEAD_PROXY) | {"no_proxy": "", "NO_PROXY": ""}
    return ServiceProcess(port, environ, state_dir.with_suffix(".log"))


@dataclass
class Peaks:
    """Largest resident sizes in MiB by pid: of the service, and of every probing actor of this session's Ray."""

    service: int
    actors: dict[int, float] = field(default_factory=dict)

    @property
    def service_mb(self) -> float:
        return peak_mb(self.service)

    @property
    def actor_mb(self) -> float:
        return max(self.actors.values(), default=0.0)


@asynccontextmanager
async def watched(service: int) -> AsyncIterator[Peaks]:
    """Looks at the actors for as long as the block runs; they are gone with their dataset."""
    peaks = Peaks(service)

    async def look() -> None:
        while True:
            for pid in find(PROBER):
                peaks.actors[pid] = max(peaks.actors.get(pid, 0.0), peak_mb(pid))
            await asyncio.sleep(0.05)

    looking = asyncio.create_task(look())
    try:
        yield peaks
    finally:
        looking.cancel()


def peak_mb(pid: int) -> float:
    """VmHWM of a process; 0 when it is gone."""
    with suppress(OSError):
        for row in (Path("/proc") / str(pid) / "status").read_text().splitlines():
            if row.startswith("VmHWM:"):
                return int(row.split()[1]) / 1024
    return 0.0
