"""The operator's settings, read once from environment variables LTXTRAIN_*.

A secret may also come from a file: LTXTRAIN_S3_SECRET_KEY_FILE names a file that holds LTXTRAIN_S3_SECRET_KEY.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from decimal import Decimal
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ltxtrain_trainer.model.folder import DEFAULT_MODEL

PREFIX = "LTXTRAIN_"
GIB = 2**30


class SettingsError(Exception):
    """A setting is missing or wrong; the text names the variable and what to set it to."""


@dataclass(frozen=True)
class UnitPrice:
    """The price of a billable unit."""

    amount: Decimal
    # ISO 4217.
    currency: str

    @classmethod
    def parse(cls, text: str) -> "UnitPrice":
        """Read an amount and a currency, as in "0.0062 USD". Raises ValueError."""
        if (found := re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?) ([A-Z]{3})", text.strip())) is None:
            raise ValueError(text)
        return cls(Decimal(found[1]), found[2])


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One frozen object for a service. The variable of each field is LTXTRAIN_ and its name in capitals."""

    # Where this service listens. Anything but loopback needs mTLS or tokens.
    bind: str = "127.0.0.1:0"
    # Databases and scratch files.
    state_dir: Path = Path(".ltxtrain")
    # SQLAlchemy URL; empty: a SQLite file in state_dir. Each service needs a database or schema of its own.
    database_url: str = field(default="", repr=False)
    # Seconds that running calls get after SIGTERM.
    grace_seconds: float = 10.0
    # Whether gRPC reflection tells the contract to whoever asks, as grpcurl does.
    reflection: bool = False
    # DEBUG, INFO, WARNING or ERROR.
    log_level: str = "INFO"
    # host:port for Prometheus; empty: none.
    metrics_bind: str = ""
    # OTLP endpoint (http) for traces; empty: none.
    otlp_endpoint: str = ""

    # Address of Ingest, for the services that call it.
    ingest: str = "127.0.0.1:7001"
    # Address of Preprocess, for Train.
    preprocess: str = "127.0.0.1:7002"
    # Address of Train, for the gateway.
    train: str = "127.0.0.1:7003"

    # Address that people reach the gateway by, as in https://train.example.com; empty: the one that a request names.
    gateway_url: str = ""

    # PEM file of the certificate that this service shows; with its key, it listens with TLS.
    tls_cert: Path | None = None
    # PEM file of the certificate's private key.
    tls_key: Path | None = None
    # PEM file of a certificate authority: with it, callers must show a certificate that it signed (mTLS).
    tls_client_root: Path | None = None
    # PEM file of the authorities that this service trusts when it calls another, to which it shows its certificate.
    tls_root: Path | None = None
    # Lines "subject token"; the subject owns what is made with the token.
    tokens_file: Path | None = None
    # Shown between services; a caller with it may act for any owner.
    service_token: str = field(default="", repr=False)

    # host:port of the object store (https://host:port with TLS), as services and Ray's nodes reach it.
    s3_endpoint: str = "127.0.0.1:9000"
    # What clients reach the store by; empty: s3_endpoint. Presigned URLs hold it.
    s3_public_endpoint: str = ""
    # Its access key.
    s3_access_key: str = ""
    # Its secret key.
    s3_secret_key: str = field(default="", repr=False)
    # Region that requests are signed for.
    s3_region: str = "us-east-1"
    # Bucket of all objects of the suite; it is made where it is not there.
    s3_bucket: str = "ltxtrain"
    # Whether the object store is reached by https.
    s3_secure: bool = False
    # PEM file of the authorities that the store's certificate is trusted by, beside the public ones.
    s3_tls_root: Path | None = None
    # Where a store on this machine keeps its data, for errors that say that there is no space left; None: elsewhere.
    s3_folder: Path | None = None

    # HEAD:PORT of the Ray cluster; empty: RAY_ADDRESS. `ltxtrain up` starts one of its own.
    ray_address: str = ""
    # Ray's token: whoever has it may run code in the cluster.
    ray_token: str = field(default="", repr=False)
    # Whether models wait for a GPU where the cluster has none, and are never taken to a CPU.
    require_gpus: bool = False
    # GPUs that a cluster with an autoscaler may come to have, so that jobs ask for them; 0: those that it has now.
    max_gpus: int = 0
    # Encoder actors where the cluster has no GPU.
    cpu_encoders: int = 1
    # Trainer actors where the cluster has no GPU.
    cpu_trainers: int = 1
    # Torch threads of one encoder or trainer.
    torch_threads: int = 2

    # A folder or a repo id in diffusers layout.
    model: str = DEFAULT_MODEL
    # Commit or tag of the repository; empty: its newest.
    model_revision: str = ""

    # "host:port,host:port" that may be fetched from although private or on another port.
    fetch_allow: tuple[str, ...] = ()
    # Buckets that s3:// sources may name.
    fetch_buckets: tuple[str, ...] = ()
    # http://host:port of a proxy that URLs are fetched through; empty: none, whatever http_proxy says. A proxy resolves
    # names itself, so that it has to keep callers from private addresses. Hosts of fetch_allow are reached past it.
    fetch_proxy: str = field(default="", repr=False)
    # Size of one download or upload at most.
    fetch_max_bytes: int = 100 * GIB
    # Time of one download at most.
    fetch_seconds: float = 6 * 3600.0
    # Time without a byte, after which a download is given up.
    fetch_idle_seconds: float = 60.0
    # Files of one archive at most.
    archive_max_entries: int = 100_000
    # Size of all that one archive holds at most.
    archive_max_bytes: int = 400 * GIB
    # Size of a file over its size in the archive at most.
    archive_max_ratio: float = 100.0
    # Time of one probe or fit of one clip at most.
    clip_seconds: float = 600.0
    # Memory of one probe or fit of one clip at most.
    clip_memory_bytes: int = 4 * GIB

    # Jobs of all callers that are not finished yet.
    max_queued_jobs: int = 100
    # Of these, jobs of one caller; 0: no limit of its own.
    max_owner_jobs: int = 0
    # GPUs that the jobs of one caller may have at the same time; 0: no limit.
    max_owner_gpus: int = 0
    # Open watches of one caller.
    max_watches: int = 1000
    # Calls of one caller that are answered at the same time.
    max_calls: int = 200
    # Keep the last optimizer state of jobs that succeeded, from which they can be continued exactly, until they are
    # deleted. Those that failed or were cancelled keep theirs.
    keep_optimizer_state: bool = True
    # Price of a billable unit, as in "0.0062 USD"; unset: no price is shown anywhere.
    unit_price: UnitPrice | None = None

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite+aiosqlite:///{self.state_dir / 'state.db'}"

    @property
    def source_buckets(self) -> frozenset[str]:
        """The buckets that s3:// sources may name: never the suite's own, which holds what belongs to others."""
        return frozenset(self.fetch_buckets) - {self.s3_bucket}

    @property
    def public_endpoint(self) -> str:
        return self.s3_public_endpoint or self.s3_endpoint


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from the environment. Raises SettingsError with every wrong variable, not only the first."""
    hints = get_type_hints(Settings)
    values: dict[str, Any] = {}
    wrong: list[str] = []
    for item in fields(Settings):
        variable = PREFIX + item.name.upper()
        text = environ.get(variable)
        if (file := environ.get(f"{variable}_FILE")) is not None:
            try:
                text = Path(file).read_text().strip()
            except OSError as error:
                wrong.append(f"{variable}_FILE: {error.strerror}: {file}")
        if text is None or text == "":
            continue
        try:
            values[item.name] = _parse(hints[item.name], text)
        except ValueError:
            wrong.append(f"{variable}: {text!r} is not {_expected(hints[item.name])}")
    if wrong:
        raise SettingsError("Wrong settings:\n  " + "\n  ".join(wrong))
    if "ray_address" not in values and environ.get("RAY_ADDRESS"):
        values["ray_address"] = environ["RAY_ADDRESS"]
    return Settings(**values)


def _parse(kind: Any, text: str) -> object:
    if kind is bool:
        if text.lower() in {"1", "true", "yes", "on"}:
            return True
        if text.lower() in {"0", "false", "no", "off"}:
            return False
        raise ValueError(text)
    if kind == tuple[str, ...]:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if Path in (kind, *get_args(kind)):
        return Path(text).expanduser()
    if UnitPrice in get_args(kind):
        return UnitPrice.parse(text)
    parsed: object = kind(text)
    return parsed


def _expected(kind: Any) -> str:
    known: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number"}
    known[UnitPrice | None] = "an amount and a currency, as in 0.0062 USD"
    return known.get(kind, "what was expected")
