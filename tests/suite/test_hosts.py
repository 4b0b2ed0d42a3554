"""docs/hosts.md, word for word: three hosts, which are network namespaces with firewalls that drop all else.

A server with TLS, tokens and an open Ray; a laptop that sends a job, watches it and gets its files; a node that joins
and takes work.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import title
from tests.shapes import make_clips
from tests.suite.conftest import SHEET

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/hosts.md").read_text()
ADDRESSES = {"server": "10.77.0.10", "laptop": "10.77.0.20", "node": "10.77.0.30"}
NETWORK = "ltxt-net"
READY_SECONDS = 180.0


def block(kind: str, name: str) -> str:
    (found,) = re.findall(rf"^```{kind} {name}\n(.*?)^```", PAGE, re.M | re.S)
    return str(found)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def unavailable() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces are made by root"
    if missing := [program for program in ("ip", "nft", "openssl") if shutil.which(program) is None]:
        return f"{', '.join(missing)} is not installed"
    try:
        ip("netns", "add", "ltxt-probe")
    except subprocess.CalledProcessError as error:
        return f"no network namespace can be made: {error.stderr.decode().strip()}"
    ip("netns", "del", "ltxt-probe")
    return ""


class Host:
    """A network namespace, with a folder and what runs in it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder, self.namespace = name, folder, f"ltxt-{name}"
        self.folder.mkdir()

    def enter(self) -> None:
        """Make it, plugged into the network."""
        ip("netns", "add", self.namespace)
        ip("-n", NETWORK, "link", "add", self.name, "type", "veth", "peer", "eth0", "netns", self.namespace)
        ip("-n", NETWORK, "link", "set", self.name, "master", "switch", "up")
        for device in ("lo", "eth0"):
            ip("-n", self.namespace, "link", "set", device, "up")
        ip("-n", self.namespace, "address", "add", f"{ADDRESSES[self.name]}/24", "dev", "eth0")
        # Ray asks which of its addresses the machine would go to the world by.
        ip("-n", self.namespace, "route", "add", "default", "via", "10.77.0.1")

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

    def start(self, script: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, "bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self.environ() | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, script: str, **environ: str) -> tuple[int, str]:
        process = self.start(script, **environ)
        said, _ = process.communicate(timeout=600)
        return process.returncode, said

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


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    if reason := unavailable():
        pytest.skip(reason)
    made = {name: Host(name, tmp_path / name) for name in ADDRESSES}
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


def lines_until(process: subprocess.Popen[str], word: str) -> list[str]:
    """Lines of a process up to the first with the word."""
    assert process.stdout is not None
    killer = threading.Timer(READY_SECONDS, process.kill)
    killer.start()
    said: list[str] = []
    while not said or word not in said[-1]:
        line = process.stdout.readline()
        assert line, f"it ended:\n{''.join(said)}"
        said.append(line)
    killer.cancel()
    return said


class Sightings:
    """Titles of Ray's actors that were seen on a host, until the block is left."""

    def __init__(self, host: Host) -> None:
        self.titles: set[str] = set()
        self._host, self._ended = host, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def _look(self) -> None:
        while not self._ended.wait(0.3):
            titles = {title(pid).strip("\0 ") for pid in self._host.pids()}
            self.titles |= {text for text in titles if text.startswith("ray::") and "IDLE" not in text}

    def __enter__(self) -> "Sightings":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_a_server_a_laptop_and_a_node(hosts: dict[str, Host], tiny_model: Path) -> None:
    server, laptop, node = hosts["server"], hosts["laptop"], hosts["node"]
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=server.folder, check=True, capture_output=True)
    status, said = server.run(block("bash", "certificates"))
    assert status == 0, said
    # Each has what the page says, and no more.
    shutil.copy(server.folder / "ca.pem", laptop.folder)
    (laptop.folder / "token").write_text((server.folder / "secrets/tokens").read_text().split()[1])
    (node.folder / "secrets").mkdir()
    shutil.copy(server.folder / "secrets/ray_token", node.folder / "secrets")
    (laptop.folder / "job.json").write_text(json.dumps(SHEET))
    make_clips(laptop.folder)
    for name in ("server", "node"):
        hosts[name].firewall(block("nft", name))
    laptop.firewall(re.sub(r"^.* tcp dport .*\n", "", block("nft", "node"), flags=re.M))

    up = server.start(block("bash", "server"), LTXTRAIN_MODEL=str(tiny_model), LTXTRAIN_TORCH_THREADS="1")
    told = dict(line.split(maxsplit=1) for line in lines_until(up, "State and logs")[:-1])
    assert told["store"].strip() == "https://10.77.0.10:9000" and told["ray"].strip() == "10.77.0.10:6379"
    joined = node.start(block("bash", "node"))
    lines_until(joined, "Ray runtime started")

    # Without a token, and without TLS, there is no way in; and what is not in the table is closed.
    addresses = "LTXTRAIN_TRAIN=10.77.0.10:7003 LTXTRAIN_INGEST=10.77.0.10:7001"
    assert laptop.run(f"{addresses} LTXTRAIN_TLS_ROOT=ca.pem ltxtrain jobs")[0] != 0
    assert laptop.run("LTXTRAIN_TRAIN=http://10.77.0.10:7003 LTXTRAIN_TOKEN_FILE=token ltxtrain jobs")[0] != 0
    ports = json.loads(next(server.folder.rglob("store/ports.json")).read_text())
    closed = [6379, 6380, 6381, 10002, *ports.values()]
    assert [port for port in closed if laptop.reaches(ADDRESSES["server"], port)] == []
    assert [port for port in ports.values() if node.reaches(ADDRESSES["server"], port)] == []
    assert node.reaches(ADDRESSES["server"], 6379) and not laptop.reaches(ADDRESSES["node"], 6380)

    with Sightings(node) as seen:
        status, said = laptop.run(block("bash", "laptop"))
    assert status == 0, said
    assert (laptop.folder / "results/lora.safetensors").stat().st_size > 0
    assert seen.titles, "the node has taken no work"

    page = "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='ca.pem'); "
    page += "print(r.urlopen('https://10.77.0.10:7000/sign-in', context=c).status)"
    assert laptop.run(f'python -c "{page}"') == (0, "200\n")
    # For whoever runs it with -s.
    print(said, "on the node:", *sorted(seen.titles), sep="\n  ")
