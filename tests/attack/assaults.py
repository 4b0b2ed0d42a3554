"""Assaults of a stranger without a token on a port, each in a function of its own; all are bounded.

An assault gets an address and dice, and returns how many calls it has made when it has done its worst, or when the
server has hung up.
"""

import asyncio
import random
import struct
import zlib
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress

from tests.attack.wire import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Wire,
    connected,
    frame,
    headers_of,
    integer,
    literal,
    message,
    settings,
)

Assault = Callable[[str, random.Random], Awaitable[int]]
HEALTH = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
LIST = b"/ltxtrain.v1.TrainService/ListJobs"
WATCH_JOB = b"/ltxtrain.v1.TrainService/WatchJob"
METHODS = (HEALTH, WATCH, LIST, WATCH_JOB, b"/ltxtrain.v1.TrainService/CreateJob")
ANN = (b"authorization", b"Bearer ann-token")

ASSAULTS: dict[str, Assault] = {}


def assault(do: Assault) -> Assault:
    ASSAULTS[do.__name__] = do
    return do


async def answered(wire: Wire, seconds: float = 0.3) -> None:
    """Read what comes for a while, so that the server is not held by our window."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            async for _ in wire.frames():
                pass


@assault
async def paths_that_are_no_text(address: str, dice: random.Random) -> int:
    paths = [b"/\xff", b"\xff", b"/ltxtrain.v1.TrainService/\xc3\x28", b"", b"/", b"*", b"/" + b"\xf0\x9f" * 2_000]
    paths += [dice.randbytes(dice.randint(1, 300)) for _ in range(20)]
    for path in paths:
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire:
                await wire.greet()
                await wire.request(path)
                await answered(wire, 0.05)
    return len(paths)


@assault
async def headers_that_are_no_text(address: str, dice: random.Random) -> int:
    async with connected(address) as wire:
        await wire.greet()
        for stream in range(1, 60, 2):
            name = dice.choice([b"x", b"authorization", b"ltxtrain-owner", b"user-agent", b"grpc-timeout", b"x-bin"])
            value = dice.choice([b"\xff" * 200, b"\x00", b"99999999999999999H", b"Bearer \xff", b"", b"\r\nx: y"])
            await wire.request(dice.choice(METHODS), b"", (name, value), stream=stream)
        await answered(wire)
    return 30


@assault
async def large_headers(address: str, dice: random.Random) -> int:
    for size in (7_000, 9_000, 17_000, 70_000, 1_000_000):
        block = headers_of(LIST, (b"x", b"y" * size))
        with suppress(ConnectionError):
            async with connected(address) as wire:
                await wire.greet()
                pieces = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
                await wire.send(frame(HEADERS, END_STREAM if len(pieces) > 1 else END_HEADERS, 1, pieces[0]))
                for index, piece in enumerate(pieces[1:], start=2):
                    await wire.send(frame(CONTINUATION, END_HEADERS if index == len(pieces) else 0, 1, piece))
                await answered(wire, 0.1)
    return 5


@assault
async def header_bombs(address: str, dice: random.Random) -> int:
    """One large entry of the dynamic table, named thousands of times by one byte each; and sizes that are not."""
    entry = b"\x40" + integer(1, 7) + b"x" + integer(4_000, 7) + b"y" * 4_000
    blocks = [
        headers_of(LIST) + entry + b"\xbe" * 15_000,
        b"".join(b"\x3f\xe1\x1f" if index % 2 else b"\x20" for index in range(5_000)) + headers_of(LIST),
        integer(2**60, 5, 0x20),
        b"\xff" + b"\x80" * 200 + b"\x00",
        b"\x00" + integer(2**31, 7) + b"x",
        b"\x80" * 1_000,
        b"".join(literal(b"x%d" % index, b"") for index in range(1_500)),
    ]
    for block in blocks:
        with suppress(ConnectionError):
            async with connected(address) as wire:
                await wire.greet()
                for stream in (1, 3):
                    parts = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
                    for index, part in enumerate(parts):
                        end = END_HEADERS if index == len(parts) - 1 else 0
                        await wire.send(frame(CONTINUATION if index else HEADERS, end, stream, part))
                await answered(wire, 0.1)
    return 2 * len(blocks)


@assault
async def continuations_without_end(address: str, dice: random.Random) -> int:
    with suppress(ConnectionError):
        async with connected(address) as wire:
            await wire.greet()
            await wire.send(frame(HEADERS, 0, 1, headers_of(LIST)))
            for _ in range(3_000):
                await wire.send(frame(CONTINUATION, 0, 1, b"" if dice.random() < 0.5 else literal(b"x", b"y" * 100)))
            await answered(wire)
    return 1


@assault
async def floods_of_frames(address: str, dice: random.Random) -> int:
    """Frames that ask for an answer or for work, by the thousand, none of whose answers is read."""
    floods = {
        "settings": frame(SETTINGS, payload=settings([(4, 65_535)])),
        "table sizes": frame(SETTINGS, payload=settings([(1, 0), (1, 4_096)])),
        "acknowledged settings": frame(SETTINGS, ACK),
        "pings": frame(PING, payload=bytes(8)),
        "windows": frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)),
        "priorities": frame(PRIORITY, stream=1, payload=bytes(5)),
        "unknown": frame(0xEE, 0xFF, 7, b"x" * 100),
        "empty data": frame(DATA, 0, 1, b""),
    }
    for flood in floods.values():
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire, asyncio.timeout(5):
                await wire.greet()
                for _ in range(100):
                    await wire.send(flood * 100)
                await answered(wire, 0.05)
    return 0


@assault
async def rapid_resets(address: str, dice: random.Random) -> int:
    for path in (LIST, HEALTH):
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire, asyncio.timeout(10):
                await wire.greet()
                block = headers_of(path)
                for stream in range(1, 4_000, 2):
                    reset = frame(RST_STREAM, 0, stream, struct.pack(">I", 8))
                    await wire.send(frame(HEADERS, END_HEADERS, stream, block), reset)
                await answered(wire)
    return 4_000


@assault
async def frames_out_of_order(address: str, dice: random.Random) -> int:
    """Random frames in random order: most break a rule of the protocol."""
    for _ in range(30):
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire, asyncio.timeout(5):
                odd = [(dice.randint(0, 10), dice.getrandbits(32)) for _ in range(5)]
                await wire.greet(settings(odd) if dice.random() < 0.3 else b"")
                for _ in range(dice.randint(1, 30)):
                    kind, flags = dice.randint(0, 11), dice.getrandbits(8)
                    payload = dice.randbytes(dice.choice([0, 1, 4, 5, 8, 9, 100, 16_384]))
                    if kind == HEADERS and dice.random() < 0.7:
                        payload = headers_of(dice.choice(METHODS))
                    length = dice.choice([None, None, None, 0, 2**24 - 1])
                    await wire.send(frame(kind, flags, dice.choice([0, 1, 2, 3, 2**31 - 1]), payload, length))
                await answered(wire, 0.02)
    return 30


@assault
async def other_protocols(address: str, dice: random.Random) -> int:
    said = [
        b"GET / HTTP/1.1\r\nHost: suite\r\n\r\n",
        b"POST /ltxtrain.v1.TrainService/ListJobs HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 5_000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + dice.randbytes(500),
        b"\x00" * 10_000,
        PREFACE[:10],
        PREFACE + b"\xff" * 9,
        PREFACE + frame(GOAWAY, payload=bytes(8)),
        PREFACE + frame(SETTINGS) + frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4) + headers_of(LIST)),
        dice.randbytes(5_000),
        b"",
    ]
    for text in said:
        with suppress(ConnectionError):
            async with connected(address) as wire:
                await wire.send(text)
                await answered(wire, 0.05)
                wire.abort()
    return 0


@assault
async def half_open_connections(address: str, dice: random.Random) -> int:
    """Many connections that say little or nothing, and hang up in every way."""
    async with AsyncExitStack() as stack:
        for index in range(200):
            with suppress(ConnectionError):
                wire = await stack.enter_async_context(connected(address))
                if index % 3:
                    await wire.send(PREFACE[: dice.randint(1, len(PREFACE))])
                if index % 5 == 0:
                    wire.abort()
        await asyncio.sleep(0.1)
    return 0


@assault
async def half_open_calls(address: str, dice: random.Random) -> int:
    """Headers whose message never comes, or stops in its midst, with no token or a wrong one."""
    for path in METHODS:
        with suppress(ConnectionError):
            async with connected(address) as wire:
                await wire.greet()
                for stream in range(1, 1_000, 2):
                    token = [(b"authorization", b"Bearer wrong")] if dice.random() < 0.5 else []
                    await wire.request(path, b"", *token, stream=stream, end=False)
                    if dice.random() < 0.3:
                        await wire.send(frame(DATA, 0, stream, message(b"x", length=1_000)))
                await answered(wire)
    return 500 * len(METHODS)


@assault
async def slow_calls(address: str, dice: random.Random) -> int:
    async def drip(path: bytes) -> None:
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire, asyncio.timeout(3):
                whole = PREFACE + frame(SETTINGS) + frame(HEADERS, END_HEADERS, 1, headers_of(path))
                for index in range(0, len(whole), 3):
                    await wire.send(whole[index : index + 3])
                    await asyncio.sleep(0.01)

    await asyncio.gather(*[drip(dice.choice(METHODS)) for _ in range(30)])
    return 30


@assault
async def watches_of_health(address: str, dice: random.Random) -> int:
    """As many as there may be, for services that do not exist, and none of them is ever read."""
    async with AsyncExitStack() as stack:
        for _ in range(5):
            wire = await stack.enter_async_context(connected(address))
            await wire.greet()
            with suppress(ConnectionError):
                for stream in range(1, 2_000, 2):
                    name = dice.randbytes(10).hex().encode()
                    await wire.request(WATCH, b"\x0a" + bytes([len(name)]) + name, stream=stream)
        await asyncio.sleep(0.5)
    return 5_000


@assault
async def messages_that_are_none(address: str, dice: random.Random) -> int:
    """With a token: bytes that are no message, lengths that are not true, and bombs that call themselves gzip."""
    bomb = zlib.compressobj(9, wbits=31)
    gzip = bomb.compress(bytes(64 * 2**20)) + bomb.flush()
    bodies = [
        message(dice.randbytes(100)),
        message(b"\xff" * 1_000),
        message(b"x", length=2**32 - 1),
        message(b"", compressed=7),
        message(dice.randbytes(50), compressed=1),
        message(gzip, compressed=1),
        message(b"\x0a" * 500_000),
        b"\x00" * 3,
        message() * 50,
        message(bytes(2**20 + 10)),
    ]
    for body in bodies:
        with suppress(ConnectionError, TimeoutError):
            async with connected(address) as wire, asyncio.timeout(20):
                await wire.greet()
                more = (ANN, (b"grpc-encoding", b"gzip"))
                await wire.send(frame(HEADERS, END_HEADERS, 1, headers_of(METHODS[4], *more)))
                await wire.send(frame(WINDOW_UPDATE, payload=struct.pack(">I", 2**30)))
                for start in range(0, len(body), 16_000):
                    end = END_STREAM if start + 16_000 >= len(body) else 0
                    await wire.send(frame(DATA, end, 1, body[start : start + 16_000]))
                await answered(wire, 0.3)
    return len(bodies)


@assault
async def refused_calls(address: str, dice: random.Random) -> int:
    """Calls without a token, and calls for what does not exist under a name of a megabyte."""
    name = b"jobs/" + b"x" * 1_000_000
    request = b"\x0a" + integer_of(len(name)) + name
    async with connected(address) as wire:
        await wire.greet()
        for stream in range(1, 600, 2):
            await wire.request(LIST, b"", stream=stream)
        await answered(wire)
    for _ in range(5):
        with suppress(ConnectionError):
            async with connected(address) as wire:
                await wire.greet()
                await wire.send(frame(HEADERS, END_HEADERS, 1, headers_of(b"/ltxtrain.v1.TrainService/GetJob", ANN)))
                body = message(request)
                for start in range(0, len(body), 16_000):
                    end = END_STREAM if start + 16_000 >= len(body) else 0
                    await wire.send(frame(DATA, end, 1, body[start : start + 16_000]))
                await answered(wire, 0.2)
    return 305


def integer_of(value: int) -> bytes:
    """A varint of protobuf."""
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
