"""The containers as they run: the store with the flags of compose.yaml, and all of them where there is an engine."""

import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.common.engine import NoEngine, container_of, opened
from bench.containers import NOTHING_TO_RUN_WITH, base_images, image_of, megabytes
from ltxtrain_services.local.embedded import weed_program
from ltxtrain_services.local.ports import remembered_ports
from ltxtrain_services.runtime.objects import Objects, ObjectStoreUnavailable, StoreAddress
from tests.test_deployment import ROOT, SERVICES, is_pinned

# Those that `weed server` listens on beside S3's own, from the defaults that the image leaves as they are.
INNER = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
STORE_SECONDS = 60.0


def inspected(health: dict[str, Any], check: dict[str, Any] | None) -> dict[str, Any]:
    """Answer of `inspect` about a container, as far as it is read."""
    labels = {"com.docker.compose.service": "train"}
    state = {"Status": "running", "StartedAt": "2026-01-01T00:00:00Z", **health}
    return {"Name": "/suite-train-1", "State": state, "Config": {"Labels": labels, "Healthcheck": check}}


def test_a_container_is_healthy_by_its_check_or_without_one() -> None:
    check = {"Test": ["CMD", "true"], "Interval": 10 * 10**9}
    well = container_of(inspected({"Health": {"Status": "healthy"}}, check))
    assert (well.name, well.service, well.running, well.healthy) == ("suite-train-1", "train", True, True)
    assert well.interval_seconds == 10.0
    assert not container_of(inspected({"Health": {"Status": "starting"}}, check)).healthy
    assert not container_of(inspected({}, check)).healthy
    assert container_of(inspected({}, None)).healthy and container_of(inspected({}, None)).interval_seconds == 0.0


def test_images_are_those_of_the_files_or_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("PYTHON_IMAGE", "STORE_IMAGE", "POSTGRES_IMAGE"):
        monkeypatch.delenv(variable, raising=False)
    images = base_images(ROOT)
    assert len(images) == 3 and all(map(is_pinned, images))
    monkeypatch.setenv("STORE_IMAGE", "mirror.example/seaweedfs:1")
    assert "mirror.example/seaweedfs:1" in base_images(ROOT)
    assert image_of((ROOT / "compose.yaml").read_text()) == f"docker.io/library/{SERVICES['train']['image']}"


def test_sizes_are_read_as_engines_print_them() -> None:
    said = ("1.5GiB ", "12.3MB", "900kB", "12B")
    assert [round(megabytes(text), 3) for text in said] == [1610.613, 12.3, 0.9, 0.0]


def test_without_an_engine_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoEngine, match="neither a Docker engine nor podman"), opened(tmp_path, "none"):
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tuple[StoreAddress, dict[str, int]]]:
    """The store of compose.yaml with the secrets of docker/make-secrets, on free ports; its inner ports."""
    subprocess.run(["sh", str(ROOT / "docker/make-secrets")], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "data").mkdir()
    ports = remembered_ports(tmp_path / "ports.json", ("s3.port", "s3.port.grpc", *INNER))
    given = [flag for flag in SERVICES["store"]["command"] if not flag.startswith("-s3.port=")]
    flags = [flag.replace("/run/secrets", str(tmp_path / "secrets")) for flag in given]
    # As the entrypoint of the image calls it.
    command = [str(weed_program()), "-logtostderr=true", *flags, f"-dir={tmp_path / 'data'}", "-volume.max=0"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **SERVICES["store"]["environment"]}
    address = StoreAddress(
        endpoint=f"127.0.0.1:{ports['s3.port']}",
        public_endpoint=f"127.0.0.1:{ports['s3.port']}",
        access_key=(tmp_path / "secrets/s3_access_key").read_text(),
        secret_key=(tmp_path / "secrets/s3_secret_key").read_text(),
        region="us-east-1",
        bucket="ltxtrain",
        secure=False,
        folder=None,
    )
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, env=environ, stderr=log) as process:
        try:
            wait_until_healthy(process, ports["s3.port"], tmp_path / "log")
            yield address, ports
        finally:
            process.kill()
            for port in ports.values():
                for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    left.unlink(missing_ok=True)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Ask as the healthcheck of compose.yaml does."""
    url = SERVICES["store"]["healthcheck"]["test"][-1].replace(":9000", f":{port}")
    deadline = time.monotonic() + STORE_SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=3).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)


def listens_beyond_loopback(ports: dict[str, int]) -> set[str]:
    """Names of the ports that a socket of this machine offers to others."""
    names = {port: name for name, port in ports.items()}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if (
                line.split()[3] == "0A"
                and int(port, 16) in names
                and address not in ("0100007F", "0" * 24 + "01000000")
            ):
                found.add(names[int(port, 16)])
    return found


def test_the_store_of_compose_serves_its_bucket_and_nothing_else(
    store: tuple[StoreAddress, dict[str, int]],
) -> None:
    address, ports = store
    objects = Objects(address)
    objects.ensure_bucket()
    objects.ping()
    objects.put_bytes("train/one", b"one", "text/plain")
    objects.copy("train/one", "train/two")
    assert objects.get_bytes("train/two") == b"one"
    upload = objects.start_multipart("ingest/three")
    assert objects.list_parts("ingest/three", upload) == {}
    objects.abort_multipart("ingest/three", upload)
    objects.expire_stale_uploads()
    objects.delete("train/one")
    assert [blob.key for blob in objects.list_prefix("train/")] == ["train/two"]
    # Its keys are for this bucket, and no others are taken.
    for wrong in (replace(address, bucket="another"), replace(address, secret_key="no")):
        with pytest.raises(ObjectStoreUnavailable, match=r"AccessDenied|SignatureDoesNotMatch"):
            Objects(wrong).ensure_bucket()
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"http://{address.endpoint}/ltxtrain/train/two", timeout=10)
    # What asks for no credentials is on loopback. S3's control port cannot be: docs/threat-model.md.
    assert listens_beyond_loopback(ports) == {"s3.port", "s3.port.grpc"}


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_the_containers_run(tmp_path: Path) -> None:
    """Build, job by the published ports, second node, kills, down and up: the LoRA is the undisturbed job's."""
    figures = tmp_path / "figures.json"
    command = [str(ROOT / "docker/rehearse"), "--json", str(figures)]
    done = subprocess.run(command, env=os.environ | {"PYTHON": sys.executable}, capture_output=True, text=True)
    if done.returncode == NOTHING_TO_RUN_WITH:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert re.fullmatch(r"[0-9a-f]{12}", found["lora"]) and found["files"] > 5
    for port in (7000, 7001, 7002, 7003, 9000):
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
