"""Callers without a token, and callers that keep to no rule: what they hold open, cost, and leave in the log."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ltxtrain_services.runtime import interceptor
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.interceptor import MAX_OPEN_CALLS, peer_of
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.telemetry import Bounded, JsonLines
from tests.attack.wire import DATA, frame, message
from tests.attack.wire import connected as connect_raw
from tests.services.runtime.front import Front, info_of, serving

LIST = b"/ltxtrain.v1.TrainService/ListJobs"
GET = b"/ltxtrain.v1.TrainService/GetJob"
WATCH_JOB = b"/ltxtrain.v1.TrainService/WatchJob"
CHECK = b"/grpc.health.v1.Health/Check"
WATCH = b"/grpc.health.v1.Health/Watch"
ANN = (b"authorization", b"Bearer ann-token")
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAUTHENTICATED = "0", "3", "8", "12", "16"
LOG_BYTES = 300


@pytest.fixture
async def front(database: Database, tmp_path: Path) -> AsyncIterator[Front]:
    tokens = tmp_path / "tokens"
    tokens.write_text("ann ann-token\nbob bob-token\n")
    async with serving(database, Settings(tokens_file=tokens, max_calls=3, max_watches=3)) as front:
        yield front


@pytest.fixture
def now() -> list[float]:
    """The seconds by which lines are counted."""
    return [0.0]


@pytest.fixture
def written(now: list[float]) -> Iterator[io.StringIO]:
    """The log as a service writes it."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    handler.addFilter(Bounded(lambda: now[0]))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


@pytest.mark.parametrize(
    "path", [b"/\xff", b"/ltxtrain.v1.TrainService/\xc3\x28", b"", b"/", b"/no.Service/No", b"\x00"]
)
async def test_a_method_that_is_none_stops_nothing(front: Front, path: bytes) -> None:
    async with connect_raw(front.address) as wire:
        await wire.greet()
        await wire.request(path)
        assert await wire.status() in (UNIMPLEMENTED, "closed", "reset 1")
    assert await front.stub(token="ann-token").list() == []
    assert not front.server.ended.is_set()


@pytest.mark.parametrize("path", [LIST, GET, WATCH_JOB])
async def test_a_call_without_a_token_is_refused_by_its_headers(front: Front, path: bytes) -> None:
    """No message ever comes, and none is waited for."""
    async with connect_raw(front.address) as wire:
        await wire.greet()
        await wire.request(path, end=False)
        assert await wire.status() == UNAUTHENTICATED


async def test_headers_in_no_encoding_are_no_token(front: Front, written: io.StringIO) -> None:
    async with connect_raw(front.address) as wire:
        await wire.greet()
        await wire.request(LIST, b"", (b"authorization", b"Bearer \xff"), (b"x", b"\xfe" * 5_000))
        assert await wire.status() == UNAUTHENTICATED
    assert len(written.getvalue().encode()) <= LOG_BYTES


@pytest.mark.parametrize(("path", "places"), [(LIST, 3), (WATCH_JOB, 3)])
async def test_calls_whose_message_does_not_come_are_counted(front: Front, path: bytes, places: int) -> None:
    async with connect_raw(front.address) as wire:
        await wire.greet()
        for index in range(places):
            await wire.request(path, b"", ANN, stream=2 * index + 1, end=False)
        await wire.request(path, b"", ANN, stream=2 * places + 1, end=False)
        assert await wire.status(2 * places + 1) == RESOURCE_EXHAUSTED
        assert await front.stub(token="bob-token").list() == []
        await wire.send(frame(DATA, 1, 1, message(b"")))
        await wire.status(1)
        await wire.request(path, b"", ANN, stream=2 * places + 3, end=True)
        assert await wire.status(2 * places + 3) != RESOURCE_EXHAUSTED


async def test_one_address_has_few_watches_of_health(front: Front) -> None:
    async with connect_raw(front.address) as first, connect_raw(front.address) as second:
        await first.greet()
        await second.greet()
        for index in range(MAX_OPEN_CALLS):
            await first.request(WATCH, stream=2 * index + 1)
        served: set[int] = set()
        async with asyncio.timeout(60):
            async for got in first.frames():
                served |= {got.stream} if got.kind == DATA else set()
                if len(served) == MAX_OPEN_CALLS:
                    break
        # By another connection: an address is counted, not a port.
        await second.request(WATCH)
        assert await second.status() == RESOURCE_EXHAUSTED
        # Their end gives the places back.
        first.abort()
        stub: Any = health_pb2_grpc.HealthStub(front.stub().channel)
        async with asyncio.timeout(60):
            while True:
                try:
                    assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_health_check_without_a_message_ends(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interceptor, "ARRIVAL_SECONDS", 0.05)
    async with connect_raw(front.address) as wire:
        await wire.greet()
        for path, stream in ((CHECK, 1), (WATCH, 3)):
            await wire.request(path, stream=stream, end=False)
            assert await wire.status(stream) == INVALID_ARGUMENT


@pytest.mark.parametrize("body", [b"\xff" * 10, b"\x0a", b"\x0a\x02\xff\xff", b"\x0a" * 1_000])
async def test_bytes_that_are_no_message_are_refused_as_such(front: Front, written: io.StringIO, body: bytes) -> None:
    channel = front.stub().channel
    metadata = (("authorization", "Bearer ann-token"),)
    calls: list[Any] = [channel.unary_unary(GET.decode()), channel.unary_stream(WATCH_JOB.decode())]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            made = call(body, metadata=metadata)
            await (made if isinstance(made, grpc.aio.UnaryUnaryCall) else made.read())
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert info_of(caught.value).reason == "INVALID_SPEC"
    assert len(written.getvalue().encode()) <= 2 * LOG_BYTES


async def test_a_refused_call_leaves_little_in_the_log(front: Front, written: io.StringIO, now: list[float]) -> None:
    """One by one, and a name of a megabyte in each: the line is short. By the hundred: most are counted alone."""
    for name in ("jobs/" + "x" * 1_000_000, "\0" * 100_000, "\U0001f4a9" * 100_000, '"\\' * 1_000, "\u202e" * 30):
        now[0] += 1.0
        with pytest.raises(grpc.aio.AioRpcError):
            await front.stub(token="ann-token").get(name)
        assert 100 < len(written.getvalue().encode()) <= LOG_BYTES
        written.seek(0)
        written.truncate()
    now[0] += 1.0
    for _ in range(200):
        with pytest.raises(grpc.aio.AioRpcError):
            await front.stub(token="wrong").list()
    assert len(written.getvalue().encode()) <= 200 * LOG_BYTES / 4


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ("ipv4:192.0.2.7:5000", "192.0.2.7"),
        ("ipv6:%5B2001:db8::1%5D:5000", "2001:db8::/64"),
        ("ipv6:[2001:db8::2]:5001", "2001:db8::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:5000", "fe80::/64"),
        ("unix:", "unix"),
    ],
)
def test_a_peer_is_its_address_without_what_it_can_choose(peer: str, who: str) -> None:
    class Context:
        def peer(self) -> str:
            return peer

    assert peer_of(Context()) == who
