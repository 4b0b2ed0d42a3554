"""HTTP of the gateway: who may ask from where, answers to faults, and server-sent events."""

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from ltxtrain_client.channel import is_loopback
from ltxtrain_client.errors import CallError

from ltxtrain_services.gateway.story import Stories
from ltxtrain_services.gateway.suite import Suite
from ltxtrain_services.runtime import telemetry
from ltxtrain_services.runtime.hosted_form import http_status, problem_document
from ltxtrain_services.runtime.settings import Settings

log = logging.getLogger(__name__)

T = TypeVar("T")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SETTINGS = web.AppKey("settings", Settings)
SUITE = web.AppKey("suite", Suite)
STORIES = web.AppKey("stories", Stories)
# Tasks of open streams, which end when the process drains.
STREAMS = web.AppKey("streams", set[asyncio.Task[Any]])

# Places for requests, of all callers; those of one caller are counted by the services.
PLACES = web.AppKey("places", asyncio.Semaphore)

PING_SECONDS = 15.0
# A body has to come within, and a request after a connection's beginning or the request before.
BODY_SECONDS = 60.0
IDLE_SECONDS, LOOK_SECONDS = 90.0, 10.0
BUSY_SECONDS = 5
# The text of an error that nobody wrote one for.
NOT_FOUND = "404: Not Found"
MAX_PATH_CHARS = 200
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" browsers would hide the origin of our own forms too.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def own_url(request: web.Request) -> str:
    """The address that people reach the gateway by, without a slash at its end."""
    return request.app[SETTINGS].gateway_url.rstrip("/") or str(request.url.origin())


async def body_of(request: web.Request, size: int) -> bytes:
    """The request's body. It is refused from so many bytes on (413), and when it is slow (408)."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.clone(client_max_size=size).read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text=f"The request did not come within {BODY_SECONDS:.0f} s.") from None
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(text="The request's body is not what its headers say.") from None


def is_https(request: web.Request) -> bool:
    return own_url(request).startswith("https://")


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what another site sends, answer faults in the caller's form, add headers of safety to all."""
    with request.app[CONNECTIONS].at_work(request), telemetry.bound(peer=request.remote or "", resource=request.path):
        return await _guarded(request, handler)


async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        places = request.app[PLACES]
        if (wrong := _malformed(request)) is not None:
            response: web.StreamResponse = problem_response(400, wrong, "bad_request")
        elif (refusal := _refusal(request)) is not None:
            response = problem_response(403, refusal, "bad_request", "PERMISSION_DENIED")
        elif places.locked():
            text, wait = "Too many requests are open here. Try again.", {"Retry-After": str(BUSY_SECONDS)}
            response = problem_response(503, text, "internal_error", "QUEUE_FULL", headers=wait)
        else:
            async with places:
                response = await handler(request)
    except CallError as error:
        response = fault_response(error)
    except web.HTTPException as error:
        if error.status < 400:
            error.headers.update(HEADERS)
            raise
        text = error.text or error.reason
        if text == NOT_FOUND:
            text = f"Nothing is at {request.path[:MAX_PATH_CHARS]}."
        response = problem_response(error.status, text, "bad_request", headers=_allowed(error))
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        response = problem_response(500, "An error in the gateway; its log has more.", "internal_error", "INTERNAL")
    if not response.prepared:
        response.headers.update({name: text for name, text in HEADERS.items() if name not in response.headers})
    return response


def _allowed(error: web.HTTPException) -> dict[str, str]:
    return {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}


def _malformed(request: web.Request) -> str | None:
    """A fault of the headers that would be one of whatever reads them, or None."""
    if not all(is_text(value) for value in request.headers.values()):
        return "A header is not text in UTF-8."
    try:
        request.url.origin()
    except ValueError:
        return "The Host header names no host and port."
    return None


def is_text(text: str) -> bool:
    """Whether a text can be sent on: bytes in no encoding, and JSON's escapes, may be halves of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _netloc(url: str) -> str:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""


def _refusal(request: web.Request) -> str | None:
    """Why a request may come from a page of another site, or None.

    Where no token is asked for, any page that a browser on this machine shows could otherwise start jobs: by a form,
    or by a name of its own that it has resolve to this machine.
    """
    settings = request.app[SETTINGS]
    own = {urlsplit(settings.gateway_url).netloc.lower()} if settings.gateway_url else set()
    open_here = is_loopback(settings.bind) and settings.tokens_file is None and not settings.service_token
    if open_here and request.host.lower() not in own and not is_loopback(_with_port(request.host)):
        return f"{request.host} is not a name of this gateway. Set LTXTRAIN_GATEWAY_URL to the address that is used."
    if request.method in SAFE:
        return None
    origin = request.headers.get("Origin")
    if origin is not None:
        given = _netloc(origin)
        return None if given in own | {request.host.lower()} and given else "Another site's page may not do this."
    site = request.headers.get("Sec-Fetch-Site", "none")
    return None if site in ("none", "same-origin") else "Another site's page may not do this."


def _with_port(host: str) -> str:
    return host if host.rpartition(":")[2].isdecimal() and not host.endswith("]") else f"{host}:80"


def fault_response(error: CallError) -> web.Response:
    """The answer to a call that ended with this error."""
    code = http_status(error)
    headers = {}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return problem_response(code, error.message, _error_type(code), error.reason, headers=headers)


def _error_type(code: int) -> str:
    return "bad_request" if code < 500 else "internal_error"


def problem_response(
    code: int,
    message: str,
    error_type: str,
    reason: str = "",
    *,
    detail: list[Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> web.Response:
    """An error as clients of the hosted endpoint read it, with our reason beside it."""
    document = problem_document(message, error_type, reason, detail)
    return web.json_response(document, status=code, headers={**(headers or {}), "X-Fal-Error-Type": error_type})


def json_text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


class Connections:
    """The open connections, of which those that bring no request are closed: a stranger may open any number."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Since when each brings nothing; inf: a request is under way.
        self._idle: dict[Any, float] = {}

    @contextmanager
    def at_work(self, request: web.Request) -> Iterator[None]:
        """The request is under way during the block."""
        self._idle[request.protocol] = math.inf
        try:
            yield
        finally:
            self._idle[request.protocol] = self._clock()

    def close_idle(self, connections: Iterable[Any]) -> None:
        """Close those of all open ones that have been idle for IDLE_SECONDS."""
        now = self._clock()
        self._idle = {connection: self._idle.get(connection, now) for connection in connections}
        for connection, since in self._idle.items():
            if now - since > IDLE_SECONDS:
                connection.force_close()

    async def watch(self, server: web.Server) -> None:
        """Look for them now and then, for ever."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.close_idle(server.connections)


CONNECTIONS = web.AppKey("connections", Connections)


class EventStream:
    """Server-sent events to one reader; `async with EventStream(request) as events`.

    A reader that does not keep up is waited for: nothing is queued for it.
    """

    def __init__(self, request: web.Request, headers: Mapping[str, str] | None = None) -> None:
        self._request = request
        sent = {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", **HEADERS, **(headers or {})}
        self.response = web.StreamResponse(headers=sent)
        given = request.headers.get("Last-Event-ID", "")
        # Cursor of the last event that the reader has; 0: none.
        self.last_id = int(given) if given.isascii() and given.isdecimal() and len(given) < 19 else 0

    async def __aenter__(self) -> Self:
        await self.response.prepare(self._request)
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._request.app[STREAMS].add(task)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        self._request.app[STREAMS].discard(self._task)
        if kind is not None and issubclass(kind, CallError):
            # The answer has begun: the reader asks again, and is told then.
            log.info("%s: the stream ends: %s", self._request.path, error)
            return True
        # A reader that has left is no fault.
        return kind is not None and issubclass(kind, ConnectionError)

    async def send(self, document: Mapping[str, Any], sequence: int | None = None, event: str = "") -> None:
        await self.send_text(json_text(document), sequence, event)

    async def send_text(self, text: str, sequence: int | None = None, event: str = "") -> None:
        """`send` of JSON in one line."""
        head = (f"event: {event}\n" if event else "") + (f"id: {sequence}\n" if sequence is not None else "")
        await self.response.write(f"{head}data: {text}\n\n".encode())

    async def while_open(self, items: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
        """Items as they come, with comments in between that keep the connection open."""
        async with aclosing(items):
            while True:
                following = asyncio.ensure_future(anext(items))
                try:
                    while not (await asyncio.wait({following}, timeout=PING_SECONDS))[0]:
                        await self.response.write(b": still here\n\n")
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.wait({following})
                try:
                    item = following.result()
                except StopAsyncIteration:
                    return
                yield item


async def end_streams(app: web.Application) -> None:
    """Ends every open stream; browsers come back by themselves, to whoever serves then."""
    streams = app[STREAMS]
    for task in tuple(streams):
        task.cancel()


def without_traces(record: logging.LogRecord) -> bool:
    """A filter of aiohttp's log: a request that is no HTTP is a line, not the trace of a parser."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, HttpProcessingError | web.RequestPayloadError):
        record.exc_info, record.levelno, record.levelname = None, logging.INFO, "INFO"
        record.msg, record.args = "refused: no HTTP: %s", (type(error).__name__,)
    return True
