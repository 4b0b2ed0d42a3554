"""The gRPC server of a service: listen, serve, drain."""

import asyncio
import logging
import resource
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.json_format import MessageToJson, Parse
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import _async, reflection, reflection_pb2

from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.auth import Tokens, server_credentials
from ltxtrain_services.runtime.guarded_server import GuardedServer
from ltxtrain_services.runtime.interceptor import CallInterceptor
from ltxtrain_services.runtime.settings import Settings, SettingsError

log = logging.getLogger(__name__)

# An answer repeats what was asked for, twice at most, and has to stay below the 4 MiB that clients take.
MAX_REQUEST_BYTES = 2**20
MAX_CONNECTION_AGE_SECONDS = 30 * 60.0
MAX_CONNECTIONS = 4_096
OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Below any client's keepalive, else its pings are answered with ENHANCE_YOUR_CALM.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
    # Of one connection; watches of one caller are counted beside it.
    ("grpc.max_concurrent_streams", 2_000),
    # Connections that nobody uses: one that says nothing at first, and one that has no call.
    ("grpc.server_handshake_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.so_reuseport", 0),
)


def max_connections() -> int:
    """Connections that strangers may open: half of the process's file handles are its own."""
    return min(MAX_CONNECTIONS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)


class Server:
    """An aio server that says SERVING when it is, and NOT_SERVING before it stops."""

    def __init__(
        self,
        settings: Settings,
        service_names: Sequence[str],
        max_connection_age_seconds: float = MAX_CONNECTION_AGE_SECONDS,
    ) -> None:
        self._settings = settings
        self._names = ["", *service_names]
        calls = CallInterceptor(Tokens.read(settings), settings)
        # Streams that are cut by it go on by their cursor.
        age = int(max_connection_age_seconds * 1000)
        ages = (("grpc.max_connection_age_ms", age), ("grpc.max_connection_age_grace_ms", age // 6))
        bound = ("grpc.max_allowed_incoming_connections", max_connections())
        server: Any = GuardedServer([*tracing.server_interceptors(), calls], [*OPTIONS, *ages, bound])
        self.grpc: grpc.aio.Server = server
        # Set when it accepts no more calls, for whatever reason.
        self.ended: asyncio.Event = server.ended
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if settings.reflection:
            serve_reflection(self.grpc, (*service_names, health.SERVICE_NAME))
        self.address = ""

    async def start(self) -> None:
        """Listen. Raises SettingsError for a bind address that is taken, or open to everybody."""
        credentials = server_credentials(self._settings)
        bind = self._settings.bind
        try:
            port = self.grpc.add_secure_port(bind, credentials) if credentials else self.grpc.add_insecure_port(bind)
        except RuntimeError as error:
            raise SettingsError(f"LTXTRAIN_BIND={bind}: the address is taken, or not of this machine.") from error
        self.address = bind if bind.startswith("unix:") else f"{bind.rsplit(':', 1)[0]}:{port}"
        await self.set_ready(False)
        await self.grpc.start()
        log.info("listening on %s", self.address)

    async def set_ready(self, ready: bool) -> None:
        state = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._names:
            await self._health.set(name, state)

    async def stop(self, before_close: Callable[[], Awaitable[None]]) -> None:
        """NOT_SERVING, then `before_close` ends watches and work, then calls get what is left of their grace."""
        deadline = time.monotonic() + self._settings.grace_seconds
        await self._health.enter_graceful_shutdown()
        try:
            await asyncio.wait_for(before_close(), self._settings.grace_seconds)
        except TimeoutError:
            log.warning("work did not stop in %.0f s and is left to the next start", self._settings.grace_seconds)
        await self.grpc.stop(max(0.1, deadline - time.monotonic()))


def serve_reflection(server: grpc.aio.Server, names: Sequence[str]) -> None:
    """Describe these services by grpc.reflection.v1 and, for older clients, v1alpha: on the wire they are one."""
    alpha = reflection_pb2.DESCRIPTOR
    described = FileDescriptorProto()
    alpha.CopyToProto(described)
    stable = Parse(MessageToJson(described).replace("v1alpha", "v1"), FileDescriptorProto())
    pool: Any = descriptor_pool.Default()
    pool.AddSerializedFile(stable.SerializeToString())
    v1 = f"{stable.package}.ServerReflection"
    described_names = (*names, reflection.SERVICE_NAME, v1)
    reflection.enable_server_reflection(described_names, server)
    servicer: Any = _async.ReflectionServicer(described_names)
    handler: Any = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    server.add_registered_method_handlers(v1, {"ServerReflectionInfo": handler})


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
