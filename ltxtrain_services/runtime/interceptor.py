"""The server interceptor of every call: authentication, limits of each caller, errors as statuses, logs and metrics."""

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn
from urllib.parse import quote, unquote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.runtime import errors, metrics, telemetry, tracing
from ltxtrain_services.runtime.auth import LOCAL_OWNER, Tokens, caller
from ltxtrain_services.runtime.cluster import ClusterLost
from ltxtrain_services.runtime.database import DatabaseFull, DatabaseUnavailable
from ltxtrain_services.runtime.disk import DiskFull
from ltxtrain_services.runtime.errors import OMITTED
from ltxtrain_services.runtime.object_types import ObjectStoreFull, ObjectStoreUnavailable
from ltxtrain_services.runtime.requests import beside
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.work import Retryable

log = logging.getLogger(__name__)

# What needs no token.
OPEN_CALLS = ("/grpc.health.v1.Health/", "/ltxtrain.v1.TrainService/ListWebhookKeys")
# Of one address, and how long each has to send its message.
MAX_OPEN_CALLS = 32
ARRIVAL_SECONDS = 10.0
# A status travels in trailing metadata. Peers accept 8 KiB for certain and may drop all of what is longer.
MAX_BYTES = 7 * 2**10
# The message's own: it has room beside the lists in every script, and none is too long for it alone.
MAX_MESSAGE, MAX_MESSAGE_BYTES = 1_000, MAX_BYTES // 2
# Lengths of descriptions in lists, tried before anything is left out.
DESCRIPTIONS = (120, 60, 30)

Call = Callable[[Any, Any], Any]
Details = grpc.HandlerCallDetails
Handler = Any  # grpc.RpcMethodHandler, which is generic in its stubs alone


class CallInterceptor(grpc.aio.ServerInterceptor):
    """The interceptor of a service.

    A caller is known, counted or refused by the headers alone: a call costs next to nothing until then, and a message
    that never arrives holds a place of its caller. OPEN_CALLS need no token; they are counted for each peer.
    """

    def __init__(self, tokens: Tokens | None, settings: Settings) -> None:
        self._tokens = tokens
        self._calls = Places(settings.max_calls, "{} of your calls are being answered already. Send fewer at once.")
        self._streams = Places(settings.max_watches, "{} of your watches are open already. Close some.")
        self._open = Places(MAX_OPEN_CALLS, "{} calls without a token are open from your address already. Close some.")

    async def intercept_service(
        self, continuation: Callable[[Details], Awaitable[Handler | None]], handler_call_details: Details
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = str(handler_call_details.method)
        if method.startswith(OPEN_CALLS):
            return grpc.stream_stream_rpc_method_handler(
                self._answer_open(method, handler), handler.request_deserializer, handler.response_serializer
            )
        telemetry.bind(method=method)
        started = time.monotonic()
        try:
            owner = self._tokens.owner(handler_call_details.invocation_metadata or ()) if self._tokens else LOCAL_OWNER
            (self._streams if handler.response_streaming else self._calls).take(owner)
        except errors.ApiError as error:
            return grpc.stream_stream_rpc_method_handler(_refuse(method, error, started))
        caller.set(owner)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _answer(method, handler.unary_unary, handler.request_deserializer), None, handler.response_serializer
            )
        if handler.unary_stream:
            stream = _stream(method, handler.unary_stream, handler.request_deserializer)
            return grpc.unary_stream_rpc_method_handler(stream, None, handler.response_serializer)
        if handler.stream_stream:  # reflection
            return grpc.stream_stream_rpc_method_handler(
                _stream(method, handler.stream_stream, None), handler.request_deserializer, handler.response_serializer
            )
        raise NotImplementedError(method)

    def _answer_open(self, method: str, handler: Handler) -> Call:
        """A call that needs no token: its one message comes soon, and one address has few of them at once."""

        async def arrived(context: Any) -> Any:
            telemetry.bind(method=method, peer=peer_of(context))
            try:
                self._open.take(peer_of(context))
                async with asyncio.timeout(ARRIVAL_SECONDS):
                    request = await context.read()
            except errors.QueueFull as error:
                await _abort(error, context)
            except (DecodeError, TimeoutError):
                request = grpc.aio.EOF
            if request is grpc.aio.EOF:
                await _abort(errors.MessageMalformed(), context)
            return request

        async def stream(_requests: Any, context: Any) -> None:
            await handler.unary_stream(await arrived(context), context)

        # A generator: the tracing interceptor iterates over it.
        async def answer(_requests: Any, context: Any) -> AsyncIterator[Any]:
            request = await arrived(context)
            yield await _unless_unavailable(handler.unary_unary(request, context), context)

        return stream if handler.unary_stream else answer


class Places:
    """Calls that run at once, bounded for each caller."""

    def __init__(self, limit: int, text: str) -> None:
        self._limit = limit
        self._text = text
        self._taken: dict[str, int] = {}

    def take(self, who: str) -> None:
        """Take a place until the present task ends, which is that of the call. Raises QueueFull."""
        taken = self._taken.get(who, 0)
        if taken >= self._limit:
            text = self._text.format(taken)
            raise errors.QueueFull(text, metadata={"limit": self._limit}, details=[errors.retry_info()])
        self._taken[who] = taken + 1
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda _: self._give_back(who))

    def _give_back(self, who: str) -> None:
        self._taken[who] -= 1
        if not self._taken[who]:
            del self._taken[who]


def peer_of(context: Any) -> str:
    """The address of a caller without its port; of IPv6 the network, whose addresses one host may all have."""
    kind, _, rest = unquote(str(context.peer())).partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    if kind == "ipv6":
        try:
            return str(ipaddress.ip_network((host.partition("%")[0], 64), strict=False))
        except ValueError:
            return host
    return host or kind


def _answer(method: str, call: Call, parse: Callable[[bytes], Any]) -> Callable[[bytes, Any], Awaitable[Any]]:
    async def answer(message: bytes, context: Any) -> Any:
        started, code = time.monotonic(), grpc.StatusCode.CANCELLED
        try:
            response = await call(await _parsed(message, parse, context), context)
            code = grpc.StatusCode.OK
            log.debug("served", extra={"seconds": round(time.monotonic() - started, 4)})
            return response
        except (Exception, asyncio.CancelledError) as error:
            if _is_stopped(error):
                raise
            refusal = _refusal(error)
            code = refusal.code
        finally:
            metrics.rpc_seconds.labels(method, code.name).observe(time.monotonic() - started)
        # Outside of the handling of `error`, of which nothing may be told.
        await _abort(refusal, context)

    return answer


def _stream(method: str, call: Call, parse: Callable[[bytes], Any] | None) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """`parse` makes a request of the one message; without it, what arrives is an iterator of requests."""

    async def stream(arrived: Any, context: Any) -> AsyncIterator[Any]:
        code = grpc.StatusCode.CANCELLED
        try:
            request = await _parsed(arrived, parse, context) if parse else arrived
            async with contextlib.aclosing(call(request, context)) as responses:
                async for response in responses:
                    yield response
            code = grpc.StatusCode.OK
            return
        except (Exception, asyncio.CancelledError) as error:
            if _is_stopped(error):
                raise
            refusal = _refusal(error)
            code = refusal.code
        finally:
            metrics.streams_ended.labels(method, code.name).inc()
        await _abort(refusal, context)

    return stream


async def _unless_unavailable(answer: Awaitable[Any], context: Any) -> Any:
    try:
        return await answer
    except DatabaseUnavailable as error:
        refusal = _refusal(error)
    await _abort(refusal, context)


def _refuse(method: str, error: errors.ApiError, started: float) -> Callable[[Any, Any], AsyncIterator[Any]]:
    """The handler of a call that its headers condemn: no message of it is waited for."""

    async def refuse(_requests: Any, context: Any) -> AsyncIterator[Any]:
        metrics.rpc_seconds.labels(method, error.code.name).observe(time.monotonic() - started)
        telemetry.bind(peer=peer_of(context))
        await _abort(error, context)
        yield

    return refuse


async def _parsed(message: bytes, parse: Callable[[bytes], Any], context: Any) -> Any:
    """The request that the bytes are, by whose name the log calls what follows. Raises MessageMalformed."""
    try:
        request = await beside(len(message), lambda: parse(message))
    except DecodeError:
        telemetry.bind(peer=peer_of(context))
        raise errors.MessageMalformed from None
    resource = getattr(request, "name", "") or getattr(request, "parent", "")
    telemetry.bind(resource=resource, peer=peer_of(context))
    return request


def _is_stopped(error: BaseException) -> bool:
    """Whether the caller has left, or the server ends; and not only something that the call waited for."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and (task is None or task.cancelling() > 0)


def _refusal(error: BaseException) -> errors.ApiError:
    """The answer to a caller. An unexpected error is in the log alone, under the trace that the caller gets."""
    match error:
        case errors.ApiError():
            return error
        case DatabaseFull() | ObjectStoreFull() | DiskFull():
            full = ErrorReason.ERROR_REASON_DISK_FULL
            return _unavailable("A disk of the server has no space left; its log says which.", error, full)
        case DatabaseUnavailable() | ObjectStoreUnavailable():
            return _unavailable("The database or the object store does not answer now. Try again.", error)
        case Retryable() | asyncio.CancelledError():
            return _unavailable("Another service of the suite does not answer now. Try again.", error)
        case ClusterLost():
            return errors.Draining()
        case _:
            log.error("unforeseen", exc_info=error)
            return errors.internal(telemetry.trace_id())


class _Unavailable(errors.Unavailable):
    """Another party is at fault; `cause` is for the log alone."""

    cause = ""


def _unavailable(
    text: str, cause: BaseException, reason: "ErrorReason" = ErrorReason.ERROR_REASON_STORE_UNAVAILABLE
) -> errors.ApiError:
    error = _Unavailable(reason, text)
    error.details.append(errors.retry_info())
    error.cause = str(cause) or type(cause).__name__
    return error


async def _abort(error: errors.ApiError, context: Any) -> NoReturn:
    # One line a call.
    if isinstance(error, _Unavailable):
        log.warning("refused: %s: %s", errors.reason_name(error.reason), error.cause)
    else:
        log.info("refused: %s", errors.reason_name(error.reason))
    tracing.mark_failed(error.code)
    await context.abort_with_status(rpc_status.to_status(fit_status(error.status())))
    raise AssertionError("abort_with_status raises")


def fit_status(status: status_pb2.Status) -> status_pb2.Status:
    """The status with texts shortened and lists cut from the end as far as trailing metadata demands."""
    if _size(status) <= MAX_BYTES:
        return status
    made = status_pb2.Status(code=status.code, message=_short_message(status.message), details=status.details)
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
    """The status with its lists cut to one length, the longest that fits, and how many items are left out."""
    lists = {index: found for index, detail in enumerate(status.details) if (found := _listing(detail)) is not None}
    short, long = 0, max((len(_items(found)) for found in lists.values()), default=0)
    fitting = _with_lists(status, lists, 0)
    if _size(fitting) > MAX_BYTES:
        return _bare(fitting)
    while short < long:
        length = (short + long + 1) // 2
        made = _with_lists(status, lists, length)
        if _size(made) <= MAX_BYTES:
            short, fitting = length, made
        else:
            long = length - 1
    return fitting


def _with_lists(status: status_pb2.Status, lists: dict[int, Any], length: int) -> status_pb2.Status:
    made = status_pb2.Status(code=status.code, message=status.message, details=status.details)
    omitted = 0
    for index, listing in lists.items():
        kept = type(listing)()
        kept.CopyFrom(listing)
        omitted += max(0, len(_items(kept)) - length)
        del _items(kept)[length:]
        made.details[index].Pack(kept)
    info = error_details_pb2.ErrorInfo()
    if omitted and made.details[0].Unpack(info):
        info.metadata[OMITTED] = str(omitted + int(info.metadata.get(OMITTED, "0")))
        made.details[0].Pack(info)
    return made


def _bare(status: status_pb2.Status) -> status_pb2.Status:
    """Code, message and reason: what no error is too long for."""
    info = error_details_pb2.ErrorInfo()
    del status.details[1:]
    if status.details and status.details[0].Unpack(info):
        info.metadata.clear()
        status.details[0].Pack(info)
    return status


def _short_message(text: str) -> str:
    text = _short(text, MAX_MESSAGE)
    while _size(status_pb2.Status(message=text)) > MAX_MESSAGE_BYTES:
        text = _short(text, len(text) * 3 // 4)
    return text


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
