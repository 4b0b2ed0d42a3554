"""The gRPC server of a service: listen, serve, drain."""

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.runtime import errors
from services.runtime.auth import LOCAL_OWNER, Tokens, caller, server_credentials
from services.runtime.settings import Settings, SettingsError

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4 * 2**20
OPTIONS = [
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    # Below any client's keepalive, else its pings are answered with ENHANCE_YOUR_CALM.
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.max_connection_age_ms", 30 * 60_000),
    ("grpc.max_connection_age_grace_ms", 5 * 60_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_concurrent_streams", 2_000),
    ("grpc.so_reuseport", 0),
]
OPEN_SERVICES = ("/grpc.health.v1.Health/",)


class Edge(grpc.aio.ServerInterceptor):
    """Around every call: who calls, what errors look like, what is logged."""

    def __init__(self, tokens: Tokens | None) -> None:
        self._tokens = tokens

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(OPEN_SERVICES):
            return handler
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(method, handler.unary_stream),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        return handler  # reflection streams requests

    def _identify(self, context: Any) -> None:
        caller.set(self._tokens.owner(context.invocation_metadata() or ()) if self._tokens else LOCAL_OWNER)

    def _unary(self, method: str, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
        async def unary(request: Any, context: Any) -> Any:
            started = time.monotonic()
            try:
                self._identify(context)
                response = await call(request, context)
            except Exception as error:
                await _abort(method, started, error, context)
            log.debug("served", extra={"method": method, "seconds": round(time.monotonic() - started, 4)})
            return response

        return unary

    def _stream(self, method: str, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            started = time.monotonic()
            try:
                self._identify(context)
                async with contextlib.aclosing(call(request, context)) as responses:  # type: ignore[type-var]
                    async for response in responses:
                        yield response
            except Exception as error:
                await _abort(method, started, error, context)

        return stream


async def _abort(method: str, started: float, error: Exception, context: Any) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, errors.ApiError):
        trace_id = secrets.token_hex(16)
        log.exception("unforeseen", exc_info=error, extra={"method": method, "trace_id": trace_id})
        error = errors.internal(trace_id)
    extra = {"method": method, "code": error.code.name, "seconds": round(time.monotonic() - started, 4)}
    log.info("refused: %s", errors.reason_name(error.reason), extra=extra)
    await context.abort_with_status(rpc_status.to_status(error.status()))


class Server:
    """An aio server that says SERVING when it is, and NOT_SERVING before it stops."""

    def __init__(self, settings: Settings, service_names: Sequence[str]) -> None:
        self._settings = settings
        self._names = ["", *service_names]
        self.grpc = grpc.aio.server(interceptors=[Edge(Tokens.read(settings))], options=OPTIONS)
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self.grpc)
        if settings.reflection:
            names = (*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self.grpc)
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
        """NOT_SERVING, then `before_close` ends watches and work, then calls get their grace."""
        await self._health.enter_graceful_shutdown()
        await before_close()
        await self.grpc.stop(self._settings.grace_seconds)


def stop_event() -> asyncio.Event:
    """Set by SIGTERM or SIGINT."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, event.set)
    return event
