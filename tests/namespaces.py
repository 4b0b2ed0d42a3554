"""Hosts that are network namespaces of this machine, on one switch: their own addresses, firewalls and processes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PREFIX = "ltxt"
NETWORK = f"{PREFIX}-net"
READY_SECONDS = 180.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def unavailable() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    if missing := [program for program in ("ip", "nft", "openssl") if shutil.which(program) is None]:
        return f"{', '.join(missing)} is not installed"
    try:
        ip("netns", "add", f"{PREFIX}-probe")
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.decode().strip()}"
    ip("netns", "del", f"{PREFIX}-probe")
    return ""


class Running:
    """A process whose words are read as they come, so that it never waits for a reader."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.said.append(line)
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def says(self, word: str) -> list[str]:
        """Its lines so far, once one of them has the word."""
        with self._news:
            found = self._news.wait_for(lambda: self._ended or self._has(word), READY_SECONDS)
            assert found and self._has(word), f"it does not say {word!r}:\n{''.join(self.said)}"
            return list(self.said)

    def _has(self, word: str) -> bool:
        return any(word in line for line in self.said)

    def wait(self, seconds: float) -> tuple[int, str]:
        """Its exit status, and all that it said."""
        status = self.process.wait(seconds)
        self._thread.join()
        return status, "".join(self.said)


class Host:
    """A network namespace, with a folder and what runs in it."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self.folder, self.namespace = name, address, folder, f"{PREFIX}-{name}"
        self.folder.mkdir()

    def enter(self) -> None:
        """Make it, plugged into the network."""
        ip("netns", "add", self.namespace)
        ip("-n", NETWORK, "link", "add", self.name, "type", "veth", "peer", "eth0", "netns", self.namespace)
        ip("-n", NETWORK, "link", "set", self.name, "master", "switch", "up")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        ip("-n", self.namespace, "address", "add", f"{self.address}/24", "dev", "eth0")
        # Ray asks which of its addresses the machine would go to the world by.
        ip("-n", self.namespace, "route", "add", "default", "via", f"{self.address.rpartition('.')[0]}.1")

    def firewall(self, rules: str) -> None:
        subprocess.run(["ip", "netns", "exec", self.namespace, "nft", "-f", "-"], input=rules, text=True, check=True)

    def environ(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("LTXTRAIN_", "RAY_"))}
        paths = [str(ROOT), str(ROOT / "protos"), str(ROOT / "clients")]
        return kept | {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": os.pathsep.join(paths),
            # Hosts have a file system of their own: what is not named otherwise is below this one's folder.
            "RAY_TMPDIR": str(self.folder),
            "HOME": str(self.folder),
        }

    def start(self, script: str, **environ: str) -> Running:
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environ() | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Running(process)

    def run(self, script: str, **environ: str) -> tuple[int, str]:
        return self.start(script, **environ).wait(600)

    def reaches(self, address: str, port: int) -> bool:
        return self.run(f"timeout 2 bash -c 'exec 3<>/dev/tcp/{address}/{port}'")[0] == 0

    def pids(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True)
        return [int(word) for word in done.stdout.split()]

    def leave(self) -> None:
        """End all that runs in it, and remove it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 30.0
            while self.pids() and time.monotonic() < deadline:
                time.sleep(0.2)
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.namespace)


@contextlib.contextmanager
def network(addresses: Mapping[str, str], folder: Path) -> Iterator[dict[str, Host]]:
    """Hosts by their names, each with a folder; skips where there can be none."""
    if reason := unavailable():
        pytest.skip(reason)
    made = {name: Host(name, address, folder / name) for name, address in addresses.items()}
    try:
        ip("netns", "add", NETWORK)
        ip("-n", NETWORK, "link", "add", "switch", "type", "bridge")
        ip("-n", NETWORK, "link", "set", "switch", "up")
        for host in made.values():
            host.enter()
        yield made
    finally:
        for host in reversed(made.values()):
            host.leave()
        with contextlib.suppress(subprocess.CalledProcessError):
            ip("netns", "del", NETWORK)
