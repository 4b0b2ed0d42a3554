"""python -m ltxtrain_services.runtime.healthcheck: exit status 0 when the service of this environment is ready.

With the argument `http`, it is the gateway that is asked.
For health checks of containers. Behind TLS it trusts the service's own certificate and expects a name that is in it.
"""

import http.client
import socket
import ssl
import sys
from contextlib import suppress
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ltxtrain_services.runtime.settings import Settings, read_settings

SECONDS = 3.0
# A proxy of the environment is for the world outside.
PAST_PROXIES = ("grpc.enable_http_proxy", 0)


def is_healthy(settings: Settings) -> bool:
    """Whether the service says SERVING at its own address.

    A service with mTLS may refuse its own certificate as a caller's: then an open port has to be enough.
    """
    port = settings.bind.rsplit(":", 1)[-1]
    address = settings.bind if settings.bind.startswith("unix:") else f"127.0.0.1:{port}"
    try:
        with _channel(settings, address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    except (grpc.RpcError, OSError):
        return settings.tls_client_root is not None and _listens(int(port))


def is_answering(settings: Settings) -> bool:
    """Whether the gateway answers at its own port."""
    port = int(settings.bind.rsplit(":", 1)[-1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _channel(settings: Settings, address: str) -> grpc.Channel:
    """Raises OSError when the service does not listen, or shows another certificate than its own."""
    if settings.tls_cert is None or settings.tls_key is None:
        return grpc.insecure_channel(address, [PAST_PROXIES])
    cert = settings.tls_cert.read_bytes()
    pair = (settings.tls_key.read_bytes(), cert) if settings.tls_client_root is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(cert, *pair)
    options = [PAST_PROXIES, ("grpc.ssl_target_name_override", _name_of(settings, address))]
    return grpc.secure_channel(address, credentials, options)


def _name_of(settings: Settings, address: str) -> str:
    """A name or an address that the service's certificate is for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(settings.tls_cert)
    # The certificate is trusted itself, whoever signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.set_alpn_protocols(["h2"])
    if settings.tls_client_root is not None and settings.tls_cert is not None:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as plain, context.wrap_socket(plain) as secure:
        certificate: Any = secure.getpeercert() or {}
    names = [name for _, name in certificate.get("subjectAltName", ())]
    return str(names[0]) if names else host


def _listens(port: int) -> bool:
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
        return True
    return False


if __name__ == "__main__":
    check = is_answering if sys.argv[1:] == ["http"] else is_healthy
    sys.exit(0 if check(read_settings()) else 1)
