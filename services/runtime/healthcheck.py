"""python -m services.runtime.healthcheck: exit status 0 when the service of this environment is ready.

For health checks of containers. Behind TLS it only looks whether the port is open, since it has no name to expect.
"""

import socket
import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.settings import Settings, read_settings

SECONDS = 3.0


def is_healthy(settings: Settings) -> bool:
    """Whether the service says SERVING at its own address."""
    port = settings.bind.rsplit(":", 1)[-1]
    address = settings.bind if settings.bind.startswith("unix:") else f"127.0.0.1:{port}"
    if settings.tls_cert is not None:
        try:
            socket.create_connection(("127.0.0.1", int(port)), timeout=SECONDS).close()
        except OSError:
            return False
        return True
    with grpc.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_healthy(read_settings()) else 1)
