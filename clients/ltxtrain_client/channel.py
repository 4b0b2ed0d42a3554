"""Connections to the services: addresses, credentials, deadlines, retries and keepalive."""

import ipaddress
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2

from ltxtrain_client.errors import SettingsInvalid

# Metadata key under which a service names the owner it acts for; refused from any other caller.
OWNER_KEY = "ltxtrain-owner"
UNARY_DEADLINE_SECONDS = 10.0
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Token and certificates of a client. A suite on loopback without tokens needs none of them."""

    token: str = field(default="", repr=False)
    """Bearer token sent with every call; empty: none."""

    tls_root: Path | None = None
    """PEM file of the certificate authorities to trust; None: the public ones, for https:// addresses."""

    tls_cert: Path | None = None
    """PEM file of the client certificate (mTLS); set together with `tls_key`."""

    tls_key: Path | None = None
    """PEM file of the client certificate's private key."""


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Addresses of the three services and the credentials for them; see read_settings."""

    train: str = "127.0.0.1:7003"
    """TrainService: host:port, http://host:port, https://host:port or unix:path."""

    ingest: str = "127.0.0.1:7001"
    """IngestService, in the same form."""

    preprocess: str = "127.0.0.1:7002"
    """PreprocessService, in the same form."""

    credentials: Credentials = Credentials()
    """Sent to all three."""


def read_settings(environ: Mapping[str, str] = os.environ) -> ClientSettings:
    """Read LTXTRAIN_TRAIN, _INGEST, _PREPROCESS, _TOKEN (or _TOKEN_FILE), _TLS_ROOT, _TLS_CERT and _TLS_KEY.

    Raises SettingsInvalid when the token file cannot be read.
    """
    token = environ.get("LTXTRAIN_TOKEN", "")
    if token_file := environ.get("LTXTRAIN_TOKEN_FILE"):
        token = _read(Path(token_file), "LTXTRAIN_TOKEN_FILE").decode().strip()
    paths = {name: _path(environ.get(f"LTXTRAIN_{name.upper()}")) for name in ("tls_root", "tls_cert", "tls_key")}
    addresses = {
        name: value
        for name in ("train", "ingest", "preprocess")
        if (value := environ.get(f"LTXTRAIN_{name.upper()}", "").strip())
    }
    return ClientSettings(credentials=Credentials(token=token, **paths), **addresses)


class Channel:
    """A connection to one service, shared by any number of clients and calls. Close it, or use `async with`."""

    def __init__(
        self, aio: grpc.aio.Channel, address: str, metadata: Metadata = (), tls_root: Path | None = None
    ) -> None:
        self.aio = aio
        """The underlying gRPC channel."""
        self.address = address
        """Target that was connected to."""
        self.metadata = metadata
        """Metadata sent with every call."""
        self.tls_root = tls_root
        """PEM file of authorities that files are up- and downloaded by too, beside the public ones."""

    def acting_for(self, owner: str) -> "Channel":
        """The same connection for calls on behalf of `owner`. Only a service's token may do so."""
        kept = tuple(item for item in self.metadata if item[0] != OWNER_KEY)
        return Channel(self.aio, self.address, (*kept, (OWNER_KEY, owner)), self.tls_root)

    async def close(self) -> None:
        """Close the connection and end its calls."""
        await self.aio.close()

    async def __aenter__(self) -> "Channel":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def connect(
    address: str,
    credentials: Credentials = Credentials(),
    *,
    deadline_seconds: float = UNARY_DEADLINE_SECONDS,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    use_proxy: bool = True,
) -> Channel:
    """Open a channel to host:port, [v6]:port or unix:path; call it inside a running event loop.

    Plaintext unless `credentials` has a certificate or the address begins with https://. A token is sent unencrypted
    to loopback only, or to an address that begins with http://, which declares the network trusted.
    Nothing is dialled before the first call. A proxy of the environment (http_proxy) is used for addresses other than
    loopback, unless `use_proxy` is false.
    Raises SettingsInvalid when the address, the token or a certificate cannot be used.
    """
    scheme, target = _split(address)
    options = [
        ("grpc.service_config", service_config(deadline_seconds)),
        # The servers accept a ping each 5 s.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.min_reconnect_backoff_ms", 200),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.enable_http_proxy", int(use_proxy and not is_loopback(target))),
    ]
    shown = _channel_credentials(scheme, target, credentials)
    aio = (
        grpc.aio.insecure_channel(target, options=options, interceptors=interceptors)
        if shown is None
        else grpc.aio.secure_channel(target, shown, options=options, interceptors=interceptors)
    )
    metadata = (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()
    return Channel(aio, target, metadata, credentials.tls_root)


def service_config(deadline_seconds: float = UNARY_DEADLINE_SECONDS) -> str:
    """gRPC service config: a deadline for unary calls, and retries for idempotent ones.

    Watches get neither: they last as long as the work and resume by cursor.
    """
    idempotent: list[dict[str, str]] = []
    once: list[dict[str, str]] = []
    for file in (ingest_pb2, preprocess_pb2, train_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                if not method.server_streaming:
                    name = {"service": service.full_name, "method": method.name}
                    (idempotent if _idempotent(method) else once).append(name)
    timeout = f"{deadline_seconds}s"
    return json.dumps(
        {
            "methodConfig": [
                {"name": idempotent, "timeout": timeout, "retryPolicy": RETRY_POLICY},
                {"name": once, "timeout": timeout},
            ]
        }
    )


def is_loopback(target: str) -> bool:
    """Whether host:port, [v6]:port or unix:path stays on this machine."""
    if target.startswith("unix:"):
        return True
    host = target.rsplit(":", 1)[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _idempotent(method: MethodDescriptor) -> bool:
    # A Create call is idempotent by its request_id, or by the content that it announces.
    fields = method.input_type.fields_by_name
    safe = method.name.startswith(("Get", "List", "Estimate", "Cancel", "Complete"))
    return safe or "request_id" in fields or "sha256" in fields


def _split(address: str) -> tuple[str, str]:
    scheme, mark, target = address.rpartition("://")
    if mark and scheme not in ("http", "https"):
        raise SettingsInvalid(f"{address}: an address is host:port, http://host:port, https://host:port or unix:path.")
    target = target.rstrip("/")
    host, colon, port = target.rpartition(":")
    if not target.startswith("unix:") and not (host and colon and port.isdecimal() and int(port) < 65536):
        raise SettingsInvalid(f"{address!r}: an address needs a host and a port, as in 127.0.0.1:7003.")
    return scheme, target


def _channel_credentials(scheme: str, target: str, given: Credentials) -> grpc.ChannelCredentials | None:
    """TLS, local, or None for plaintext."""
    if (given.tls_cert is None) != (given.tls_key is None):
        raise SettingsInvalid("LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY belong together: set both, or none.")
    if scheme == "https" or (scheme != "http" and (given.tls_root or given.tls_cert)):
        return grpc.ssl_channel_credentials(
            root_certificates=_read(given.tls_root, "LTXTRAIN_TLS_ROOT") if given.tls_root else None,
            private_key=_read(given.tls_key, "LTXTRAIN_TLS_KEY") if given.tls_key else None,
            certificate_chain=_read(given.tls_cert, "LTXTRAIN_TLS_CERT") if given.tls_cert else None,
        )
    if not given.token or scheme == "http":
        return None
    if not is_loopback(target):
        raise SettingsInvalid(
            f"The token would go to {target} unencrypted. Set LTXTRAIN_TLS_ROOT, or write https://{target}; "
            f"on a network that you trust, write http://{target}."
        )
    # Refuses a peer that is not on this machine, so that the token cannot leave it.
    return grpc.local_channel_credentials()


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser() if text else None


def _read(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsInvalid(f"{setting}: {error.strerror}: {path}") from None
