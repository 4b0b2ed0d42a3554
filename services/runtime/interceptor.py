"""The server interceptor of every call: authentication, limits of each caller, errors as statuses, logs and metrics."""

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from ltxtrain.v1.error_pb2 import ErrorReason

from services.runtime import errors, metrics, telemetry, tracing
from services.runtime.auth import LOCAL_OWNER, Tokens, caller
from services.runtime.cluster import ClusterLost
from services.runtime.object_types import ObjectStoreUnavailable
from services.runtime.tables import DatabaseUnavailable
from services.runtime.work import Retryable

log = logging.getLogger(__name__)

OPEN_SERVICES = ("/grpc.health.v1.Health/",)
# A status travels in trailing metadata. Peers accept 8 KiB for certain and may drop all of what is longer.
MAX_BYTES = 7 * 2**10
MAX_MESSAGE = 1_000
# Lengths of descriptions in lists, tried before anything is left out.
DESCRIPTIONS = (120, 60, 30)
# Key of ErrorInfo.metadata: how many items of the lists were left out.
OMITTED = "omitted"

Call = Callable[[Any, Any], Any]
Details = grpc.HandlerCallDetails
Handler = Any  # grpc.RpcMethodHandler, which is generic in its stubs alone


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The interceptor of a service; calls of the health service pass it by."""

    def __init__(self, tokens: Tokens | None, max_calls: int) -> None:
        self._tokens = tokens
        self._max_calls = max_calls
        self._running: dict[str, int] = {}

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or method.startswith(OPEN_SERVICES):
            return handler
        coders = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._answer(method, handler.unary_unary), **coders)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, handler.unary_stream), **coders)
        if handler.stream_stream:  # reflection
            return grpc.stream_stream_rpc_method_handler(self._stream(method, handler.stream_stream), **coders)
        raise NotImplementedError(method)

    def _answer(self, method: str, call: Call) -> Callable[[Any, Any], Awaitable[Any]]:
        async def answer(request: Any, context: Any) -> Any:
            started, code = time.monotonic(), grpc.StatusCode.CANCELLED
            try:
                with self._admitted(request, context, method):
                    response = await call(request, context)
                code = grpc.StatusCode.OK
                log.debug("served", extra={"seconds": round(time.monotonic() - started, 4)})
                return response
            except Exception as error:
                refusal = _refusal(error)
                code = refusal.code
            finally:
                metrics.rpc_seconds.labels(method, code.name).observe(time.monotonic() - started)
            # Outside of the handling of `error`, of which nothing may be told.
            await _abort(refusal, started, context)

        return answer

    def _stream(self, method: str, call: Call) -> Callable[[Any, Any], AsyncIterator[Any]]:
        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            started, code = time.monotonic(), grpc.StatusCode.CANCELLED
            try:
                self._identify(request, context, method)
                async with contextlib.aclosing(call(request, context)) as responses:
                    async for response in responses:
                        yield response
                code = grpc.StatusCode.OK
                return
            except Exception as error:
                refusal = _refusal(error)
                code = refusal.code
            finally:
                metrics.streams_ended.labels(method, code.name).inc()
            await _abort(refusal, started, context)

        return stream

    def _identify(self, request: Any, context: Any, method: str) -> str:
        """Every call has a context of its own, so what is set here ends with it."""
        telemetry.bind(method=method, resource=getattr(request, "name", "") or getattr(request, "parent", ""))
        owner = self._tokens.owner(context.invocation_metadata() or ()) if self._tokens else LOCAL_OWNER
        caller.set(owner)
        return owner

    @contextlib.contextmanager
    def _admitted(self, request: Any, context: Any, method: str) -> Iterator[None]:
        """Raises Unauthenticated, PermissionDenied and QueueFull."""
        owner = self._identify(request, context, method)
        running = self._running.get(owner, 0)
        if running >= self._max_calls:
            text = f"{running} of your calls are being answered already. Send fewer at once."
            raise errors.QueueFull(text, metadata={"limit": self._max_calls}, details=[errors.retry_info()])
        self._running[owner] = running + 1
        try:
            yield
        finally:
            self._running[owner] -= 1
            if not self._running[owner]:
                del self._running[owner]


def _refusal(error: Exception) -> errors.ApiError:
    """What the caller is told. What was not foreseen is in the log alone, under the trace that the caller gets."""
    match error:
        case errors.ApiError():
            return error
        case DatabaseUnavailable() | ObjectStoreUnavailable():
            log.warning("unavailable: %s", error)
            return _unavailable("The database or the object store does not answer now. Try again.")
        case Retryable():
            log.warning("unavailable: %s", error)
            return _unavailable("Another service of the suite does not answer now. Try again.")
        case ClusterLost():
            return errors.Draining()
        case _:
            log.error("unforeseen", exc_info=error)
            return errors.internal(telemetry.trace_id())


def _unavailable(text: str) -> errors.ApiError:
    error = errors.Unavailable(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, text)
    error.details.append(errors.retry_info())
    return error


async def _abort(error: errors.ApiError, started: float, context: Any) -> NoReturn:
    seconds = round(time.monotonic() - started, 4)
    log.info("refused: %s", errors.reason_name(error.reason), extra={"code": error.code.name, "seconds": seconds})
    tracing.mark_failed(error.code)
    await context.abort_with_status(rpc_status.to_status(fit_status(error.status())))
    raise AssertionError("abort_with_status raises")


def fit_status(status: status_pb2.Status) -> status_pb2.Status:
    """The status with texts shortened and lists cut from the end as far as trailing metadata demands."""
    if _size(status) <= MAX_BYTES:
        return status
    made = status_pb2.Status(code=status.code, message=_short(status.message, MAX_MESSAGE), details=status.details)
    for length in DESCRIPTIONS:
        for detail in made.details:
            if (listing := _listing(detail)) is not None:
                for item in _items(listing):
                    item.description = _short(item.description, length)
                detail.Pack(listing)
        if _size(made) <= MAX_BYTES:
            return made
    return _cut(made)


def _cut(status: status_pb2.Status) -> status_pb2.Status:
    lists = {index: found for index, detail in enumerate(status.details) if (found := _listing(detail)) is not None}
    omitted = 0
    while _size(status) > MAX_BYTES:
        longest = max(lists.items(), key=lambda item: len(_items(item[1])), default=None)
        if longest is None or not _items(longest[1]):
            return _bare(status)
        index, listing = longest
        del _items(listing)[-1]
        status.details[index].Pack(listing)
        omitted += 1
    info = error_details_pb2.ErrorInfo()
    if omitted and status.details[0].Unpack(info):
        info.metadata[OMITTED] = str(omitted)
        status.details[0].Pack(info)
    return status


def _bare(status: status_pb2.Status) -> status_pb2.Status:
    """Code, message and reason: what no error is too long for."""
    info = error_details_pb2.ErrorInfo()
    del status.details[1:]
    if status.details and status.details[0].Unpack(info):
        info.metadata.clear()
        status.details[0].Pack(info)
    return status


def _size(status: status_pb2.Status) -> int:
    """Bytes in the trailers: the message percent-encoded, and the status, which holds it again, in base 64."""
    packed_bytes: int = status.ByteSize()
    return len(quote(status.message, safe=" ")) + (packed_bytes + 2) // 3 * 4


def _listing(detail: Packed) -> Any:
    for kind in (error_details_pb2.BadRequest, error_details_pb2.PreconditionFailure):
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def _items(listing: Any) -> Any:
    return listing.violations if hasattr(listing, "violations") else listing.field_violations


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
