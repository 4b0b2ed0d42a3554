"""Ray's head as a supervised child: `ray start --head --block` without what is not needed.

It is on loopback, on free ports, unless nodes of other hosts are to join it: then on ports that a firewall can name.
"""

import hashlib
import logging
import os
import secrets
import shutil
import sysconfig
import tempfile
import time
from pathlib import Path
from typing import Self

from ltxtrain_services.local.child import Child
from ltxtrain_services.local.ports import HOST, remembered_ports
from ltxtrain_services.runtime import ray_hook

log = logging.getLogger(__name__)

PORTS = ("port", "node-manager-port", "object-manager-port")
OPEN_PORTS = {"port": 6379, "node-manager-port": 6380, "object-manager-port": 6381}
# Of workers: one each.
WORKER_PORTS = range(10_002, 11_000)
# The sockets in it may have paths of 107 bytes, and Ray adds about 70.
MAX_FOLDER_BYTES = 36
GIB = 2**30
READY_SECONDS = 90.0
GRACE_SECONDS = 10.0
# What every process of this Ray, its drivers included, must have in its environment before it imports ray.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
# The same, of what is gathered for a dashboard, for an autoscaler and for others: here is none of them.
UNWATCHED = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "10000",
}
# Of its workers: threads that wait for each other by spinning make a machine that has other work ten times slower.
WORKERS = {"OMP_WAIT_POLICY": "PASSIVE"}


class RayHead:
    """A running head whose processes end with this one. Use `with`, or start and stop."""

    def __init__(
        self,
        state_dir: Path,
        *,
        num_cpus: int | None = None,
        num_gpus: int | None = None,
        object_store_bytes: int | None = None,
        token: str | None = None,
        open_at: str = "",
    ) -> None:
        """open_at: an address of this machine, for nodes of other hosts, which have the token; empty: loopback."""
        self._state = state_dir.resolve() / "ray"
        self._counts = {"num-cpus": num_cpus, "num-gpus": num_gpus}
        self._object_store_bytes = object_store_bytes or default_object_store_bytes()
        self._folder = short_folder(self._state)
        self._child: Child | None = None
        self._host, self._open = open_at or HOST, bool(open_at)
        self._ports: dict[str, int] = {}
        # Whoever has it may run code here.
        self.token = token or secrets.token_hex(32)

    @property
    def address(self) -> str:
        return f"{self._host}:{self._ports['port']}"

    @property
    def pid(self) -> int:
        assert self._child is not None, "it was not started"
        return self._child.pid

    def environ(self) -> dict[str, str]:
        """Environment for a process that attaches to this Ray."""
        return LOOPBACK | UNWATCHED | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def start(self) -> Self:
        """Return when drivers may attach. Raises ChildFailed."""
        self._state.mkdir(parents=True, exist_ok=True)
        _own(self._folder)
        self._ports = OPEN_PORTS if self._open else remembered_ports(self._state / "ports.json", PORTS)
        command: list[str | Path] = [Path(sysconfig.get_path("scripts")) / "ray", "start", "--head", "--block"]
        options = [f"--{name}={port}" for name, port in self._ports.items()]
        options += [
            f"--node-ip-address={self._host}",
            f"--temp-dir={self._folder}",
            f"--object-store-memory={self._object_store_bytes}",
            "--include-dashboard=false",
            "--include-log-monitor=false",
            "--no-monitor",
            "--disable-usage-stats",
        ]
        if self._open:
            options += [f"--min-worker-port={WORKER_PORTS[0]}", f"--max-worker-port={WORKER_PORTS[-1]}"]
        # What is not named is counted by Ray.
        options += [f"--{name}={count}" for name, count in self._counts.items() if count is not None]
        environ = {name: value for name, value in os.environ.items() if not name.startswith(("LTXTRAIN_", "RAY_"))}
        # An actor that is killed leaves its temporary files; they go with the head.
        temporary = self._folder / "tmp"
        temporary.mkdir()
        environ |= self.environ() | WORKERS | {"RAY_START_HOOK": f"{ray_hook.__name__}.trim", "TMPDIR": str(temporary)}
        self._child = Child(
            "Ray",
            [*command, *options],
            environ=environ,
            log_path=self._state / "head.log",
            cwd=self._state,
            session=True,
        ).start()
        try:
            self._wait_until_ready(self._child)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(GRACE_SECONDS)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exit: object) -> None:
        self.stop()

    def _wait_until_ready(self, child: Child) -> None:
        # `ray start` writes its address there as the last thing before it blocks.
        ready = self._folder / "ray_current_cluster"
        deadline = time.monotonic() + READY_SECONDS
        while not ready.exists():
            child.check()
            if time.monotonic() > deadline:
                raise child.failure(f"is not ready after {READY_SECONDS:.0f} s")
            time.sleep(0.05)


def short_folder(key: Path) -> Path:
    """A folder for sockets whose path is short, however long that of the state is; one for each state."""
    name = f"ltxtrain-{os.getuid()}-{hashlib.sha256(bytes(key)).hexdigest()[:10]}"
    folder = Path(tempfile.gettempdir()) / name
    return folder if len(bytes(folder)) <= MAX_FOLDER_BYTES else Path("/tmp") / name


def _own(folder: Path) -> None:
    """Make an empty folder that is ours alone, in a place where anybody may make folders."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def default_object_store_bytes() -> int:
    """A GiB: three clips of 960 × 960 × 121 frames in flight; less where shared memory is small."""
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return GIB
    return max(GIB // 8, min(GIB, free // 2))
