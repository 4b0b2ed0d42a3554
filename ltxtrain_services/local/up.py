"""The whole suite on one machine: object store, Ray, and the three services, started in order and kept running.

It is on loopback unless it is told an address for other hosts: docs/hosts.md.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self, TypeVar

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ltxtrain_client.channel import connect, read_settings
from ltxtrain_client.cli.doctor import SERVICES as SERVICE_NAMES
from ltxtrain_client.cli.doctor import is_serving
from ltxtrain_client.errors import LtxtrainError

from ltxtrain_services.local.child import Child, ChildFailed
from ltxtrain_services.local.door import SuiteRefused as SuiteRefused
from ltxtrain_services.local.door import checked_settings, is_open, port_of, relaying, store_port, tls_context
from ltxtrain_services.local.embedded import EmbeddedStore, StoreRefused
from ltxtrain_services.local.lock import Running, hold, tell
from ltxtrain_services.local.model import (
    POCKET,
    WAY_TO_TRY,
    assemble_pocket_model,
    chosen_model,
    missing,
    pocket_folder,
)
from ltxtrain_services.local.ports import HOST, is_free, remembered_ports
from ltxtrain_services.local.ray_head import RayHead

log = logging.getLogger(__name__)

R = TypeVar("R")

# In the order of their start, with the ports that clients expect.
SERVICES = {"ingest": 7001, "preprocess": 7002, "train": 7003}
# The gateway, beside them where its port is given.
GATEWAY, GATEWAY_PORT = "gateway", 7000
# The object store, for other hosts.
STORE, STORE_PORT = "store", 9000
READY_SECONDS = 120.0
# Above what a service gives the calls and the work that are under way.
GRACE_SECONDS = 30.0
# A service that ends so often without having been ready is given up.
MAX_RESTARTS = 4
# How a service ends when its settings are wrong.
EXIT_SETTINGS = 2


def metrics_bind(bind: str, index: int) -> str:
    """The metrics address of one service: the ports from the given one on; 0 stays any free port."""
    host, _, port = bind.rpartition(":")
    return f"{host}:{int(port) + index}" if port.isdecimal() and int(port) else bind


class Suite:
    """A running suite, whose state is kept in one folder; `async with Suite(folder) as suite`.

    model: a folder, a repo id, or pocket; None: the default one. ports: of the services; 0 is some free one, the same
    at every start; the gateway is started where its port is given. num_cpus, num_gpus: of the own Ray; None: what there
    is. databases: the services' SQLAlchemy URLs; None: SQLite files in the folder. environ: settings of the services
    beside those of this process. Where either has LTXTRAIN_S3_ENDPOINT or LTXTRAIN_RAY_ADDRESS, that is used in place
    of an own object store or an own Ray. host: an address of this machine where services, gateway and store are for
    other hosts, too; the settings then have tokens or mTLS. nodes: other hosts may join the own Ray there.
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        model: str | None = None,
        ports: Mapping[str, int] | None = None,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        databases: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
        host: str = HOST,
        nodes: bool = False,
    ) -> None:
        self.state_dir = state_dir.resolve()
        self._environ = {**os.environ, **(environ or {})}
        if model is not None:
            is_folder = model != POCKET and Path(model).exists()
            self._environ["LTXTRAIN_MODEL"] = str(Path(model).resolve()) if is_folder else model
        self.model = self._environ["LTXTRAIN_MODEL"] = chosen_model(self._environ, self.state_dir)
        self._host = host
        self._ports = {**SERVICES, **(ports or {})}
        self._databases = {**(databases or {})}
        self._lock: IO[str] | None = None
        self.store = EmbeddedStore(self.state_dir)
        self._settings = checked_settings(self._environ, host, nodes=nodes)
        token, open_at = self._settings.ray_token or None, host if nodes else ""
        self.ray = RayHead(self.state_dir, num_cpus=num_cpus, num_gpus=num_gpus, token=token, open_at=open_at)
        self._doors = contextlib.AsyncExitStack()
        self._has_store = "LTXTRAIN_S3_ENDPOINT" not in self._environ
        self._has_ray = not self._environ.keys() & {"LTXTRAIN_RAY_ADDRESS", "RAY_ADDRESS"}
        # Whether Ray may run actors on other hosts.
        self._is_spread = nodes or not self._has_ray
        self.services: dict[str, Child] = {}

    @property
    def ingest_address(self) -> str:
        return self.address("ingest")

    @property
    def preprocess_address(self) -> str:
        return self.address("preprocess")

    @property
    def train_address(self) -> str:
        """The front door."""
        return self.address("train")

    @property
    def gateway_url(self) -> str:
        scheme = "https" if "LTXTRAIN_TLS_CERT" in self._environ else "http"
        return f"{scheme}://{self.address(GATEWAY)}"

    def address(self, service: str) -> str:
        return f"{self._host}:{self._ports[service]}"

    @property
    def store_url(self) -> str:
        """The own store, as other hosts reach it."""
        return f"{'https' if self._settings.tls_cert else 'http'}://{self.address(STORE)}"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the services, each of its latest start."""
        return {name: service.pid for name, service in self.services.items()}

    async def __aenter__(self) -> Self:
        """Return when the three services say SERVING. Raises SuiteRefused, and leaves nothing running then."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        told = Running(model=self.model)
        self._lock = hold(self.state_dir, told)
        try:
            await self._choose_ports_beside_others()
            gateway = self.gateway_url if GATEWAY in self._ports else ""
            tell(self._lock, replace(told, train=self.train_address, gateway=gateway))
            await self._start()
        except (StoreRefused, ChildFailed) as error:
            await self.__aexit__()
            raise SuiteRefused(str(error)) from error
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *exit: object) -> None:
        """Stop in reverse order: whoever uses another ends first."""
        for service in reversed(self.services.values()):
            await _in_thread(lambda service=service: service.stop(GRACE_SECONDS))  # type: ignore[misc]
        await self._doors.aclose()
        await _in_thread(self.ray.stop)
        await _in_thread(self.store.stop)
        if self._lock is not None:
            self._lock.close()

    def lines_for_other_hosts(self) -> list[str]:
        """Addresses that they need beside the services'."""
        lines = [f"store      {self._settings.s3_public_endpoint or self.store_url}"] if STORE in self._ports else []
        return [*lines, f"ray        {self.ray.address}"] if self._has_ray and self._is_spread else lines

    def check(self) -> None:
        """Raises ChildFailed when a service has ended for good."""
        for service in self.services.values():
            service.check()

    def start_service(self, name: str, environ: Mapping[str, str] | None = None) -> Child:
        """Start one service; it is started again when it ends, but not when its settings are wrong.

        environ: settings of this service alone, beside those of the suite.
        """
        state, logs = self.state_dir / name, self.state_dir / "logs"
        state.mkdir(exist_ok=True)
        logs.mkdir(exist_ok=True)
        environ = self._environ | self._common_settings() | dict(environ or {})
        environ |= {"LTXTRAIN_BIND": self.address(name), "LTXTRAIN_STATE_DIR": str(state)}
        if bind := environ.get("LTXTRAIN_METRICS_BIND"):
            environ["LTXTRAIN_METRICS_BIND"] = metrics_bind(bind, [*SERVICES, GATEWAY].index(name))
        if name in self._databases:
            environ["LTXTRAIN_DATABASE_URL"] = self._databases[name]
        self.services[name] = Child(
            f"The service {name}",
            [sys.executable, "-m", f"ltxtrain_services.{name}"],
            environ=environ,
            log_path=logs / f"{name}.log",
            cwd=Path.cwd(),
            final={EXIT_SETTINGS},
        )
        return self.services[name].start()

    async def wait_ready(self, name: str) -> None:
        """Return when the service says so. Raises ChildFailed when it has ended, or does not in time."""
        child, deadline = self.services[name], time.monotonic() + READY_SECONDS
        first = child.starts
        async with connect(self.address(name), read_settings(self._environ).credentials) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel.aio)
            while True:
                child.check()
                if child.starts - first > MAX_RESTARTS:
                    raise child.failure("ends again and again")
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        # From here on its settings are known to be right.
                        child.final = frozenset()
                        return
                if time.monotonic() > deadline:
                    raise child.failure(f"is not ready after {READY_SECONDS:.0f} s")
                await asyncio.sleep(0.1)

    async def _start(self) -> None:
        parts: list[EmbeddedStore | RayHead] = [self.store] if self._has_store else []
        parts += [self.ray] if self._has_ray else []
        starts: list[Callable[[], object]] = [part.start for part in parts]
        if self.model == str(pocket_folder(self.state_dir)):
            starts.append(lambda: assemble_pocket_model(Path(self.model)))
        started = await asyncio.gather(*(_in_thread(start) for start in starts), return_exceptions=True)
        for outcome in started:
            if isinstance(outcome, BaseException):
                raise outcome
        if STORE in self._ports:
            to = HOST, int(self.store.address.endpoint.rpartition(":")[2])
            door = relaying(self._host, self._ports[STORE], to, tls_context(self._settings))
            await self._doors.enter_async_context(door)
        for name in SERVICES:
            self.start_service(name)
        await asyncio.gather(*(self.wait_ready(name) for name in SERVICES))
        if GATEWAY in self._ports:
            await self._start_gateway()

    async def _start_gateway(self) -> None:
        child, deadline = self.start_service(GATEWAY), time.monotonic() + READY_SECONDS
        while not await _listens(self._host, self._ports[GATEWAY]):
            child.check()
            if time.monotonic() > deadline:
                raise child.failure(f"is not ready after {READY_SECONDS:.0f} s")
            await asyncio.sleep(0.1)
        child.final = frozenset()

    async def _choose_ports_beside_others(self) -> None:
        """Raises SuiteRefused, which tells of the suite that answers where the front door of this one would be."""
        try:
            self._choose_ports()
        except SuiteRefused as refused:
            try:
                async with connect(self.train_address, read_settings(self._environ).credentials) as channel:
                    await is_serving(channel, SERVICE_NAMES["train"])
            except LtxtrainError:
                raise refused from None
            raise SuiteRefused(
                f"A suite runs at {self.train_address} already, on another state folder than {self.state_dir}. "
                "Use that one, or stop it with Ctrl-C in its terminal. To run both, set addresses of this one as "
                f"{self._host}:PORT: {', '.join(f'LTXTRAIN_{name.upper()}' for name in self._ports)}."
            ) from None

    def _choose_ports(self) -> None:
        if is_open(self._host) and self._has_store:
            self._ports.setdefault(STORE, STORE_PORT)
        wanted = [name for name, port in self._ports.items() if port == 0]
        self._ports |= remembered_ports(self.state_dir / "ports.json", wanted) if wanted else {}
        for name, port in self._ports.items():
            try:
                free = is_free(port, self._host)
            except OSError as error:
                raise SuiteRefused(f"{self._host}:{port} cannot be listened on: {error.strerror}.") from None
            if not free:
                variable = "LTXTRAIN_S3_PUBLIC_ENDPOINT" if name == STORE else f"LTXTRAIN_{name.upper()}"
                text = f"The port {port} is taken. Set {variable}={self._host}:PORT to use another for {name}."
                raise SuiteRefused(text)

    def _common_settings(self) -> dict[str, str]:
        settings = {f"LTXTRAIN_{name.upper()}": self.address(name) for name in SERVICES}
        if self._has_store:
            address = self.store.address
            settings |= {
                "LTXTRAIN_S3_ENDPOINT": address.endpoint,
                "LTXTRAIN_S3_ACCESS_KEY": address.access_key,
                "LTXTRAIN_S3_SECRET_KEY": address.secret_key,
                "LTXTRAIN_S3_REGION": address.region,
                "LTXTRAIN_S3_BUCKET": address.bucket,
                "LTXTRAIN_S3_FOLDER": str(address.folder),
            }
        if STORE in self._ports:
            settings |= {"LTXTRAIN_S3_PUBLIC_ENDPOINT": self._settings.s3_public_endpoint or self.store_url}
            if self._is_spread:
                # What actors on other hosts get.
                settings |= {"LTXTRAIN_S3_ENDPOINT": self.store_url, "LTXTRAIN_S3_FOLDER": ""}
                settings |= {"LTXTRAIN_S3_TLS_ROOT": str(self._settings.s3_tls_root or self._settings.tls_root or "")}
        if self._has_ray:
            settings |= self.ray.environ()
            settings |= {"LTXTRAIN_RAY_ADDRESS": self.ray.address, "LTXTRAIN_RAY_TOKEN": self.ray.token}
        return settings


async def _in_thread(call: Callable[[], R]) -> R:
    """Result of a blocking call in a thread. Cancellation still waits for it, since it may have started processes."""
    task = asyncio.create_task(asyncio.to_thread(call))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


async def _listens(host: str, port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    return True


async def up(state_dir: Path, *, model: str | None = None, host: str = HOST, nodes: bool = False) -> None:
    """Run a suite until SIGINT or SIGTERM. Raises SuiteRefused, and ChildFailed when a part ends for good."""
    task = asyncio.current_task()
    assert task is not None

    def stop() -> None:
        first = not task.cancelling()
        task.cancel()
        # Whoever read what it says may have gone.
        with contextlib.suppress(OSError):
            if first:
                print("Stopping …", flush=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    ports = {
        name: port_of(f"LTXTRAIN_{name.upper()}", port, host, os.environ)
        for name, port in {**SERVICES, GATEWAY: GATEWAY_PORT}.items()
    }
    if (port := store_port(host, os.environ)) is not None:
        ports[STORE] = port
    suite = Suite(state_dir, model=model, ports=ports, host=host, nodes=nodes)
    print("Starting the object store, Ray and the services …", flush=True)
    with contextlib.suppress(asyncio.CancelledError):
        async with suite:
            for name in reversed(suite.services):
                print(f"{name:<11}{suite.gateway_url if name == GATEWAY else suite.address(name)}")
            for line in suite.lines_for_other_hosts():
                print(line)
            for line in await _in_thread(lambda: _model_lines(suite)):
                print(line)
            print(f"State and logs are in {suite.state_dir}. Ctrl-C stops the suite.", flush=True)
            while True:
                suite.check()
                await asyncio.sleep(1.0)


def _model_lines(suite: Suite) -> list[str]:
    """The model that jobs are trained with; where it is not here, why, and what to do for a try."""
    lines = [f"model      {suite.model}"]
    if lack := missing(suite.model, os.environ.get("LTXTRAIN_MODEL_REVISION")):
        lines += [f"           {lack}", f"           to try things out: {WAY_TO_TRY}"]
    return lines


def run(state_dir: Path, model: str | None = None, host: str = HOST, nodes: bool = False) -> int:
    """`ltxtrain up`: returns the exit status."""
    return run_to_end(up(state_dir, model=model, host=host, nodes=nodes))


def run_to_end(work: Coroutine[Any, Any, int | None]) -> int:
    """The exit status of work that runs a suite: 1 when it cannot run, which is told on stderr; 130 interrupted."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        return asyncio.run(work) or 0
    except (SuiteRefused, ChildFailed, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
