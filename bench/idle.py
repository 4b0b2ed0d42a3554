"""The suite at rest: what `ltxtrain up` costs a machine on which nobody does anything.

Every process that `ltxtrain up` started is looked at, by /proc: CPU time between two moments, and its share of the
memory at the second one (PSS: pages that several processes map are divided among them). Prints one line of JSON:

cpu_percent   of one core, all processes together
memory_mb     of all processes together, in MB
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from ltxtrain_services.local.ports import HOST, remembered_ports  # noqa: E402 (the path comes first)

PARTS = ("ingest", "preprocess", "train", "gateway")
READY = "Ctrl-C stops the suite"
READY_SECONDS = 180.0
STOP_SECONDS = 60.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Process:
    """One process now: seconds of CPU since its start with those of children that it has waited for, and MB."""

    name: str
    seconds: float
    megabytes: float


@contextmanager
def suite(folder: Path, settings: Mapping[str, str] = MappingProxyType({})) -> Iterator[tuple[int, dict[str, str]]]:
    """A running `ltxtrain up` with its own ports: its process id, and the environment of its callers."""
    ports = remembered_ports(folder / "bench-ports.json", PARTS)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("LTXTRAIN_", "RAY_"))}
    environ |= {f"LTXTRAIN_{name.upper()}": f"{HOST}:{port}" for name, port in ports.items()}
    environ |= settings
    command = [sys.executable, "-m", "ltxtrain_client.cli", "up", "--state-dir", str(folder / "state")]
    # A bench that is told to end, as by `timeout`, ends what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        deadline, said = time.monotonic() + READY_SECONDS, ""
        while READY not in said:
            line = process.stdout.readline()
            if not line or time.monotonic() > deadline:
                raise SystemExit(f"`ltxtrain up` is not ready:\n{said}")
            said += line
        yield process.pid, environ
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_SECONDS)


def processes(root: int) -> dict[int, Process]:
    """The process and all that descend from it, by id."""
    parents = {pid: int(fields[1]) for pid in _pids() if (fields := _stat(pid))}
    ours, found = {root}, {}
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    for pid in ours:
        if fields := _stat(pid):
            found[pid] = Process(_name(pid), sum(map(int, fields[11:15])) / TICKS, _megabytes(pid))
    return found


def measure(root: int, seconds: float) -> tuple[dict[int, Process], dict[int, float]]:
    """The processes at the end of so many seconds, and the percent of a core that each used in them."""
    before, began = processes(root), time.monotonic()
    time.sleep(seconds)
    after, lasted = processes(root), time.monotonic() - began
    idle = Process("", 0.0, 0.0)
    return after, {pid: 100 * (now.seconds - before.get(pid, idle).seconds) / lasted for pid, now in after.items()}


def _pids() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").glob("[0-9]*")]


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; none when it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except OSError:
        return []


def _megabytes(pid: int) -> float:
    try:
        (kilobytes,) = re.findall(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M)
    except (OSError, ValueError):  # the kernel has no such file: resident memory, shared pages counted by each process
        try:
            (kilobytes,) = re.findall(r"^VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
        except (OSError, ValueError):
            return 0.0
    return int(kilobytes) * 1024 / 1e6


def _name(pid: int) -> str:
    """The word in its command that tells what it is."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return "ended"
    line = " ".join(words)
    known = {
        "tether.py": "supervisor of Ray",
        "ltxtrain_client.cli": "ltxtrain up",
        "weed": "object store",
        "gcs_server": "Ray: GCS",
        "raylet/raylet": "Ray: raylet",
        "dashboard/dashboard": "Ray: dashboard",
        "log_monitor": "Ray: log monitor",
        "ray_hook.py nothing": "Ray: agent",
        "ray_hook.py when-asked": "Ray: agent",
        "bin/ray": "Ray: ray start",
        "ray_hook.py": "Ray: ray start",
    }
    if service := re.search(r"-m ltxtrain_services\.(\w+)", line):
        return service[1]
    return next((name for mark, name in known.items() if mark in line), words[0][-30:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fifteen seconds in place of a minute")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="ltxtrain-idle-") as folder, suite(Path(folder)) as (root, _):
        # Starting leaves some work behind: caches that are filled, workers that Ray started ahead.
        time.sleep(8.0 if quick else 30.0)
        found, percent = measure(root, 15.0 if quick else 60.0)
    print(f"{'process':26s} {'CPU, % of a core':>17s} {'memory, MB':>11s}")
    for pid, process in sorted(found.items(), key=lambda item: -item[1].megabytes):
        print(f"{process.name:26s} {percent[pid]:17.2f} {process.megabytes:11.1f}")
    figures = {
        "cpu_percent": round(sum(percent.values()), 2),
        "memory_mb": round(sum(process.megabytes for process in found.values()), 1),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
