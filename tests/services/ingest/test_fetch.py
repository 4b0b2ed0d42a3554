import errno
import hashlib
import random
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.error_pb2 import ErrorReason

from services.ingest.dial import Gate, Refused
from services.ingest.fetch import Fetched, Fetcher, retried_when_full
from services.runtime.errors import ApiError, FailedPrecondition, reason_name
from services.runtime.settings import Settings
from services.runtime.work import Retryable
from tests.services.ingest import web
from tests.services.ingest.web import Web

BODY = random.Random(5).randbytes(3 << 20)
# Never dialled: a test that gets as far replaces the connection.
PUBLIC = "192.88.99.1"


@pytest.fixture
async def server() -> AsyncIterator[Web]:
    async with web.running() as running:
        yield running


def fetcher(server: Web, **settings: object) -> Fetcher:
    values = {"fetch_allow": (server.host,), "fetch_idle_seconds": 5.0} | settings
    return Fetcher(Settings(**values), first_backoff_seconds=0.01)  # type: ignore[arg-type]


async def fetch(client: Fetcher, url: str, target: Path) -> list[Fetched]:
    return [step async for step in client.fetch(url, target)]


async def refused(client: Fetcher, url: str, target: Path) -> ApiError:
    with pytest.raises(ApiError) as error:
        await fetch(client, url, target)
    return error.value


async def test_progress_ends_with_everything(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.plain(BODY)
    steps = await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert steps[0] == Fetched(0, len(BODY))
    assert steps[-1] == Fetched(len(BODY), len(BODY))


@pytest.mark.parametrize(
    "handler", [web.chunked(BODY), web.gzipped(BODY), web.plain(BODY, Content_Encoding="identity")]
)
async def test_transfer_forms(server: Web, tmp_path: Path, handler: web.Handler) -> None:
    server.handlers["/a"] = handler
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


async def test_a_cut_fetch_goes_on_where_it_was(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.cut(BODY, times=6, share=0.3)
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    ranges = [request.headers.get("range") for request in server.seen]
    assert ranges[0] is None
    assert all(asked is not None for asked in ranges[2:])


async def test_a_cut_fetch_begins_anew_when_the_file_changed(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.cut(BODY, times=1, etags=('"old"', '"new"'))
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


async def test_a_weak_validator_proves_nothing(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.cut(BODY, times=1, etags=('W/"same"',))
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY
    assert [request.headers.get("range") for request in server.seen] == [None, None]


async def test_another_part_than_asked_for_is_not_appended(server: Web, tmp_path: Path) -> None:
    async def wrong(request: web.Request, writer: object) -> None:
        handler = web.cut(BODY, times=1, share=0.9)
        if "range" in request.headers:
            handler = web.plain(BODY[:100], Content_Range=f"bytes 0-99/{len(BODY)}")
        await handler(request, writer)  # type: ignore[arg-type]

    server.handlers["/a"] = wrong
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes()[:100] == BODY[:100]


async def test_a_host_that_always_cuts_is_given_up(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.truncated(BODY)
    error = await refused(fetcher(server), server.url("/a?signature=secret"), tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_TRUNCATED
    # Four tries of ours; the library repeats one by itself when it is cut off before the first byte of the answer.
    assert 4 <= server.requests["/a?signature=secret"] <= 8


@pytest.mark.parametrize(
    ("code", "reason", "requests"),
    [
        (403, "DOWNLOAD_REFUSED", 1),
        (404, "DOWNLOAD_REFUSED", 1),
        (429, "DOWNLOAD_FAILED", 4),
        (502, "DOWNLOAD_FAILED", 4),
    ],
)
async def test_statuses(server: Web, tmp_path: Path, code: int, reason: str, requests: int) -> None:
    server.handlers["/a"] = web.status(code)
    error = await refused(fetcher(server), server.url("/a?signature=secret"), tmp_path / "a")
    assert reason_name(error.reason) == reason
    assert error.metadata == {"url": server.url("/a"), "httpStatus": str(code)}
    assert server.requests["/a?signature=secret"] == requests


async def test_no_error_holds_query_or_body(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.status(404)
    server.handlers["/b"] = web.redirect("http://10.0.0.1/x?signature=secret")
    for path in ("/a", "/b"):
        error = await refused(fetcher(server), server.url(f"{path}?signature=secret"), tmp_path / "a")
        assert not {"secret", "nope"} & set(error.status().SerializeToString().decode("latin-1").split())
        assert b"secret" not in error.status().SerializeToString()


async def test_too_large_is_refused_by_its_length_and_by_its_bytes(server: Web, tmp_path: Path) -> None:
    server.handlers |= {"/huge": web.huge(), "/chunked": web.chunked(BODY), "/gzip": web.gzipped(bytes(5 << 20))}
    for path in server.handlers:
        error = await refused(fetcher(server, fetch_max_bytes=2 << 20), server.url(path), tmp_path / "a")
        assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE
        assert (tmp_path / "a").stat().st_size <= 4 << 20


async def test_silence_and_dripping_end(server: Web, tmp_path: Path) -> None:
    server.handlers |= {"/silent": web.silent_after(BODY), "/drip": web.dripping(BODY, 0.02)}
    client = fetcher(server, fetch_idle_seconds=0.1, fetch_seconds=0.6)
    for path in server.handlers:
        error = await refused(client, server.url(path), tmp_path / "a")
        assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_FAILED


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:127.0.0.1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://１２７.0.0.1/",
        "http://localhost/",
        "http://example.com:22/",
        "ftp://example.com/a.zip",
        "file:///etc/hostname",
        "s3://bucket/key",
        "upload:uploads/0123456789abcdef0123456789abcdef",
        "http://user:word@example.com/",
    ],
)
async def test_redirects_are_checked_like_any_url(server: Web, tmp_path: Path, target: str) -> None:
    server.handlers["/a"] = web.redirect(target)
    error = await refused(fetcher(server), server.url("/a"), tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED
    assert server.requests["/a"] == 1


async def test_a_redirect_to_an_unlisted_port_of_the_same_host(server: Web, tmp_path: Path) -> None:
    async with web.running() as other:
        server.handlers["/a"] = web.redirect(other.url("/b"))
        other.handlers["/b"] = web.plain(BODY)
        error = await refused(fetcher(server), server.url("/a"), tmp_path / "a")
        assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED
        assert not other.requests


def resolver(*answers: Sequence[str]) -> "tuple[list[str], object]":
    asked: list[str] = []

    async def lookup(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return answers[min(len(asked), len(answers)) - 1]

    return asked, lookup


@pytest.mark.parametrize(
    "answer",
    [
        ["127.0.0.1"],
        [PUBLIC, "127.0.0.1"],
        ["::ffff:127.0.0.1"],
        ["::ffff:10.1.2.3"],
        ["64:ff9b::a00:1"],
        ["2002:c0a8:101::1"],
        ["::1"],
        ["fd00::1"],
        ["fe80::1%eth0"],
        ["100.64.0.1"],
        ["0.0.0.0"],
        ["224.0.0.1"],
    ],
)
async def test_every_address_of_a_name_must_be_public(tmp_path: Path, answer: list[str]) -> None:
    asked, lookup = resolver(answer)
    client = Fetcher(Settings(fetch_idle_seconds=0.2), lookup=lookup, first_backoff_seconds=0.01)  # type: ignore[arg-type]
    error = await refused(client, "http://clips.example/a.zip", tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED
    assert asked == ["clips.example"]


async def test_an_address_that_turns_private_after_the_check(
    server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialled: list[str] = []

    def connect(gate: Gate, info: tuple[Any, ...]) -> socket.socket:
        dialled.append(info[4][0])
        raise ConnectionRefusedError

    monkeypatch.setattr(Gate, "connect", connect)
    asked, lookup = resolver([PUBLIC], ["127.0.0.1"])
    client = Fetcher(Settings(), lookup=lookup, first_backoff_seconds=0.01)  # type: ignore[arg-type]
    error = await refused(client, "http://clips.example/a", tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED
    # One look-up a connection, and the second answer was refused before any connection.
    assert (asked, dialled) == (["clips.example"] * 2, [PUBLIC])


async def test_what_is_dialled_is_checked_again() -> None:
    _, lookup = resolver([PUBLIC])
    gate = Gate("clips.example", 80, (), lookup)  # type: ignore[arg-type]
    assert [found["host"] for found in await gate.resolve("clips.example", 80)] == [PUBLIC]
    with pytest.raises(Refused):
        gate.connect((socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 80)))


async def test_the_checked_address_is_the_dialled_one(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.plain(BODY)
    asked, lookup = resolver(["127.0.0.1"], ["10.0.0.1"])
    settings = Settings(fetch_allow=(f"clips.example:{server.port}",))
    client = Fetcher(settings, lookup=lookup)  # type: ignore[arg-type]
    await fetch(client, f"http://clips.example:{server.port}/a", tmp_path / "a")
    assert asked == ["clips.example"]
    assert server.seen[0].headers["host"] == f"clips.example:{server.port}"


async def test_the_environments_proxy_is_not_used(server: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.handlers["/a"] = web.plain(BODY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert hashlib.sha256((tmp_path / "a").read_bytes()).digest() == hashlib.sha256(BODY).digest()


async def test_an_unknown_content_encoding_is_refused(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = web.plain(BODY, Content_Encoding="br")
    error = await refused(fetcher(server), server.url("/a"), tmp_path / "a")
    assert isinstance(error, FailedPrecondition)
    assert "'br'" in str(error)


async def test_a_full_disk_is_not_the_hosts_fault(server: Web) -> None:
    server.handlers["/a"] = web.plain(BODY)
    with pytest.raises(OSError) as full:
        await fetch(fetcher(server), server.url("/a"), Path("/dev/full"))
    assert full.value.errno == errno.ENOSPC


def test_a_full_disk_is_waited_for() -> None:
    with pytest.raises(Retryable), retried_when_full(Path("/scratch")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), retried_when_full(Path("/scratch")):
        Path("/nowhere/at/all").read_bytes()
