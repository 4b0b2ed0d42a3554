"""docs/hosts.md, word for word: three hosts, which are network namespaces with firewalls that drop all else.

A server with TLS, tokens and an open Ray; a laptop that sends a job, watches it and gets its files; a node that joins
and takes work.
"""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.namespaces import ROOT, Host, network
from tests.processes import title
from tests.shapes import make_clips
from tests.suite.conftest import SHEET

PAGE = (ROOT / "docs/hosts.md").read_text()
ADDRESSES = {"server": "10.77.0.10", "laptop": "10.77.0.20", "node": "10.77.0.30"}


def block(kind: str, name: str) -> str:
    (found,) = re.findall(rf"^```{kind} {name}\n(.*?)^```", PAGE, re.M | re.S)
    return str(found)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[dict[str, Host]]:
    with network(ADDRESSES, tmp_path) as made:
        yield made


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
    told = dict(line.split(maxsplit=1) for line in up.says("State and logs")[:-1])
    assert told["store"].strip() == "https://10.77.0.10:9000" and told["ray"].strip() == "10.77.0.10:6379"
    joined = node.start(block("bash", "node"))
    joined.says("Ray runtime started")

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
    # Both hosts have CPUs, so both look at clips and fit them.
    assert {"ray::Prober.probe", "ray::ClipFitter.fit"} <= seen.titles

    page = "import ssl, urllib.request as r; c = ssl.create_default_context(cafile='ca.pem'); "
    page += "print(r.urlopen('https://10.77.0.10:7000/sign-in', context=c).status)"
    assert laptop.run(f'python -c "{page}"') == (0, "200\n")
    # For whoever runs it with -s.
    print(said, "on the node:", *sorted(seen.titles), sep="\n  ")
