"""The gateway's HTTP as a stranger may use it: whatever comes is answered as the caller's fault, and soon."""

import asyncio
import io
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ltxtrain_services.gateway import http
from ltxtrain_services.gateway.http import Connections
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.telemetry import Bounded, JsonLines
from tests.attack.callbacks import timed_callbacks
from tests.attack.http_requests import REQUESTS, answer, request
from tests.attack.test_event_loops import LONGEST_MS
from tests.services.gateway.running import Suite, running

LOG_BYTES = 300
PATIENCE_SECONDS = 30.0


@pytest.fixture(scope="module")
async def suite(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Suite]:
    async with running(tmp_path_factory.mktemp("gateway"), Settings(grace_seconds=1.0)) as suite:
        yield suite


async def test_no_request_is_the_gateways_fault(suite: Suite) -> None:
    """Nothing is answered with 500, nothing smuggled, and a refused request leaves a line or two in the log."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    seconds = iter(range(10**6))
    handler.addFilter(Bounded(lambda: next(seconds)))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        for name, sent in REQUESTS.items():
            stream.seek(0)
            stream.truncate()
            with timed_callbacks() as found:
                got = await answer(f"127.0.0.1:{suite.port}", sent)
            codes = [line.split()[1] for line in got.split(b"\r\n") if line.startswith(b"HTTP/1.")]
            # Ingest is not there, which is 503.
            assert codes and b"500" not in codes, (name, got[:300])
            assert b"/smuggled" not in sent or b"200" not in codes, (name, got[:300])
            assert max(found)[0] <= 2 * LONGEST_MS, (name, max(found))
            written = stream.getvalue().encode()
            assert len(written) <= LOG_BYTES * max(1, len(codes)), (name, written)
            assert b'"ERROR"' not in written, (name, written)
    finally:
        root.removeHandler(handler)
    assert (await answer(f"127.0.0.1:{suite.port}", request(b"/healthz"))).endswith(b"ok")


async def test_a_body_that_does_not_come_is_not_waited_for(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_SECONDS", 0.05)
    for path in (b"/sign-in", b"/datasets", b"/jobs"):
        sent = request(path, b"Content-Length: 100", method=b"POST") + b"{"
        reader, writer = await asyncio.open_connection("127.0.0.1", suite.port)
        writer.write(sent)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert (await reader.readline()).startswith(b"HTTP/1.1 408"), path
        writer.transport.abort()


def test_connections_that_bring_nothing_are_closed() -> None:
    now = [0.0]
    connections = Connections(lambda: now[0])
    closed: list[str] = []

    @dataclass(frozen=True)
    class Connection:
        name: str

        def force_close(self) -> None:
            closed.append(self.name)

    silent, busy = Connection("silent"), Connection("busy")
    connections.close_idle([silent, busy])
    arrived: Any = SimpleNamespace(protocol=busy)
    with connections.at_work(arrived):
        now[0] = http.IDLE_SECONDS + 1
        connections.close_idle([silent, busy])
        assert closed == ["silent"]
    now[0] += http.IDLE_SECONDS
    connections.close_idle([busy])
    assert closed == ["silent"]
    now[0] += 1
    connections.close_idle([busy])
    assert closed == ["silent", "busy"]


async def test_a_silent_connection_is_closed_by_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a request's headers, and none at all: as long as a reader may be idle."""
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(http, "LOOK_SECONDS", 0.02)
    async with running(tmp_path, Settings(grace_seconds=1.0)) as suite:
        for sent in (b"", b"GET /jobs HTTP/1.1\r\nHost: x\r\nX: y"):
            reader, writer = await asyncio.open_connection("127.0.0.1", suite.port)
            writer.write(sent)
            async with asyncio.timeout(PATIENCE_SECONDS):
                assert await reader.read() == b""
            writer.close()
