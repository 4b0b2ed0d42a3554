"""HTTP/2 as somebody speaks it who keeps to no rule: frames as bytes, headers without a check, over plain TCP."""

import asyncio
import struct
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from typing import NamedTuple

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
# How long an answer is waited for; a server on loopback needs a thousandth of it.
PATIENCE_SECONDS = 20.0


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"", length: int | None = None) -> bytes:
    """A frame; `length` is what its header claims where that is not true."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + bytes((kind & 0xFF, flags & 0xFF)) + struct.pack(">I", stream) + payload


def integer(value: int, prefix_bits: int, first: int = 0) -> bytes:
    """HPACK's integer (RFC 7541, 5.1) behind the bits of `first`."""
    limit = 2**prefix_bits - 1
    if value < limit:
        return bytes((first | value,))
    out = bytearray((first | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def literal(name: bytes, value: bytes) -> bytes:
    """A header field that is not indexed, without Huffman's code: any bytes at all."""
    return b"\x00" + integer(len(name), 7) + name + integer(len(value), 7) + value


def headers_of(path: bytes, *more: tuple[bytes, bytes], authority: bytes = b"suite") -> bytes:
    """A header block of a gRPC request."""
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path),
        (b":authority", authority),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *more,
    )
    return b"".join(literal(*field) for field in fields)


def message(body: bytes = b"", compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message with its five bytes in front."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


class Wire:
    """A connection that sends whatever it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = hpack.Decoder()

    async def send(self, *parts: bytes) -> None:
        """Raises ConnectionError when the other side has hung up."""
        self._writer.write(b"".join(parts))
        await self._writer.drain()

    async def greet(self, settings: bytes = b"") -> None:
        await self.send(PREFACE, frame(SETTINGS, payload=settings))

    async def request(
        self, path: bytes, body: bytes = b"", *more: tuple[bytes, bytes], stream: int = 1, end: bool = True
    ) -> None:
        """A whole unary request, or one that is left open in the midst of it."""
        await self.send(
            frame(HEADERS, END_HEADERS, stream, headers_of(path, *more)),
            frame(DATA, END_STREAM if end else 0, stream, message(body)) if end or body else b"",
        )

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames as they come; ends when the other side hangs up."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await self._reader.readexactly(9)
                payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
                yield Frame(head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF, payload)

    async def status(self, stream: int = 1) -> str:
        """The grpc-status of a stream, "reset N" or "closed". Raises TimeoutError when nothing comes."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for got in self.frames():
                if got.kind == SETTINGS and not got.flags & ACK:
                    await self.send(frame(SETTINGS, ACK))
                elif got.kind == RST_STREAM and got.stream == stream:
                    return f"reset {int.from_bytes(got.payload, 'big')}"
                elif got.kind == HEADERS:
                    found = dict(self._decoder.decode(got.payload, raw=True))
                    if got.stream == stream and b"grpc-status" in found:
                        return found[b"grpc-status"].decode()
        return "closed"

    def hang_up(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """A TCP reset in place of a farewell."""
        self._writer.transport.abort()


@asynccontextmanager
async def connected(address: str) -> AsyncIterator[Wire]:
    """A TCP connection to host:port, closed in the end."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


def settings(pairs: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(struct.pack(">HI", *pair) for pair in pairs)
