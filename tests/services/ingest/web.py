"""An HTTP server that misbehaves on purpose, one behaviour a route, on loopback."""

import asyncio
import gzip
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Handler = Callable[["Request", asyncio.StreamWriter], Awaitable[None]]

REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 307: "Temporary Redirect", 404: "Not Found"}


@dataclass(frozen=True)
class Request:
    """A client's request: the path with its query, headers in lower case, and how often it came before."""

    path: str
    headers: dict[str, str]
    earlier: int


@dataclass
class Web:
    """A running server; `requests` counts what came by path."""

    port: int = 0
    handlers: dict[str, Handler] = field(default_factory=dict)
    requests: Counter[str] = field(default_factory=Counter)
    seen: list[Request] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def url(self, path: str) -> str:
        return f"http://{self.host}{path}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = dict(re.split(r":\s*", item.lower(), maxsplit=1) for item in rest if item)
            path = line.split(" ")[1]
            request = Request(path, headers, self.requests[path])
            self.requests[path] += 1
            self.seen.append(request)
            handler = self.handlers.get(path.split("?")[0])
            await (handler or status(404))(request, writer)
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def running() -> AsyncIterator[Web]:
    web = Web()
    server = await asyncio.start_server(web.serve, "127.0.0.1", 0)
    web.port = server.sockets[0].getsockname()[1]
    async with server:
        yield web


def head(status: int, **headers: object) -> bytes:
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status(code: int, **headers: object) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(code, Content_Length=5, **headers) + b"nope\n")

    return handler


def plain(body: bytes, **headers: object) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Content_Length=len(body), **headers) + body)

    return handler


def html(body: bytes = b"<!DOCTYPE html><html><body>Sign in</body></html>") -> Handler:
    return plain(body, Content_Type="text/html")


def chunked(body: bytes) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Transfer_Encoding="chunked"))
        for start in range(0, len(body), 5000):
            piece = body[start : start + 5000]
            writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        writer.write(b"0\r\n\r\n")

    return handler


def redirect(location: str, code: int = 302) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(code, Location=location, Content_Length=0))

    return handler


def truncated(body: bytes) -> Handler:
    """Announces all of it, sends half."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Content_Length=len(body)) + body[: len(body) // 2])

    return handler


def cut(body: bytes, *, times: int, etags: tuple[str, ...] = ("",), ranges: bool = True, share: float = 0.5) -> Handler:
    """Cuts the first `times` answers short; goes on by Range where asked and the validator matches its present one."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        etag = etags[min(request.earlier, len(etags) - 1)] or f'"{hashlib.sha256(body).hexdigest()[:8]}"'
        asked = re.fullmatch(r"bytes=(\d+)-", request.headers.get("range", "")) if ranges else None
        start = int(asked[1]) if asked and request.headers.get("if-range", "") == etag.lower() else 0
        rest = body[start:]
        fields: dict[str, object] = {"ETag": etag, "Content_Length": len(rest), "Accept_Ranges": "bytes"}
        if start:
            fields["Content_Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        sent = rest[: int(len(rest) * share)] if request.earlier < times else rest
        writer.write(head(206 if start else 200, **fields))
        # In pieces, so that the client has read the first ones when the connection ends.
        for at in range(0, len(sent), 65536):
            writer.write(sent[at : at + 65536])
            await writer.drain()

    return handler


def gzipped(body: bytes) -> Handler:
    return plain(gzip.compress(body), Content_Encoding="gzip")


def failing_once(code: int, then: Handler, **headers: object) -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        await (then if request.earlier else status(code, **headers))(request, writer)

    return handler


def huge() -> Handler:
    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Content_Length=10 * 10**12) + bytes(1000))
        await writer.drain()
        await asyncio.sleep(3600)

    return handler


def silent_after(body: bytes) -> Handler:
    """Sends a little and then nothing, without closing."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Content_Length=len(body)) + body[:10])
        await writer.drain()
        await asyncio.sleep(3600)

    return handler


def dripping(body: bytes, seconds: float) -> Handler:
    """A byte now and then: never idle, never done."""

    async def handler(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(head(200, Content_Length=len(body)))
        for byte in body:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(seconds)

    return handler
