import asyncio
import contextlib
import errno
import gzip
import hashlib
import random
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.ingest.fetch import Fetched, Fetcher
from ltxtrain_services.runtime.dial import Gate, Refused
from ltxtrain_services.runtime.disk import DiskFull, told_when_full
from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition, reason_name
from ltxtrain_services.runtime.settings import Settings
from tests import loops
from tests.properties import bounded
from tests.services.ingest import web
from tests.services.ingest.web import Web

BODY = random.Random(5).randbytes(3 << 20)
# Never dialled: a test that gets as far replaces the connection.
PUBLIC = "93.184.215.14"


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


def raw(answer: bytes, *, drip: bytes = b"", seconds: float = 0.0) -> web.Handler:
    """Sends these very bytes, then `drip` again and again with pauses; closes when there is none."""

    async def handler(request: web.Request, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        while drip:
            writer.write(drip)
            await writer.drain()
            await asyncio.sleep(seconds)

    return handler


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("answer", "drip"),
    [
        (b"", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nX-Long: ", b"y"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"x=y;"),
        (b"HTTP/1.1 503 Busy\r\nRetry-After: 30\r\nContent-Length: 0\r\n\r\n", b""),
    ],
    ids=["status", "headers", "header", "continue", "chunks", "extension", "retry-after"],
)
async def test_one_deadline_covers_all_of_a_fetch(server: Web, tmp_path: Path, answer: bytes, drip: bytes) -> None:
    """Hosts that are never idle, and never done."""
    server.handlers["/a"] = raw(answer, drip=drip, seconds=0.02)
    client = fetcher(server, fetch_idle_seconds=30.0, fetch_seconds=0.5)
    began = asyncio.get_running_loop().time()
    error = await refused(client, server.url("/a"), tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_DOWNLOAD_FAILED
    # Thirty times the deadline, for safety: what is not covered takes for ever.
    assert asyncio.get_running_loop().time() - began < 15


async def test_headers_that_drip_end_before_the_deadline(server: Web, tmp_path: Path) -> None:
    server.handlers["/a"] = raw(b"HTTP/1.1 200 OK\r\n", drip=b"A: b\r\n", seconds=0.02)
    client = fetcher(server, fetch_idle_seconds=0.1, fetch_seconds=600.0)
    error = await refused(client, server.url("/a"), tmp_path / "a")
    assert "stopped answering" in str(error)


async def test_bytes_without_end_behind_a_gzip_are_not_read(server: Web, tmp_path: Path) -> None:
    body = gzip.compress(BODY)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    server.handlers["/a"] = raw(head + body, drip=bytes(1 << 20))
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == BODY


async def test_members_without_end_are_too_large(server: Web, tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    server.handlers["/a"] = raw(head, drip=gzip.compress(b"") * 10_000)
    error = await refused(fetcher(server, fetch_max_bytes=2 << 20), server.url("/a"), tmp_path / "a")
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE


@pytest.mark.parametrize("after", ["²", "-1", "1e999", "\xff", "Fri, 99 Foo 2026", "0"])
async def test_any_time_to_come_back_is_borne(server: Web, tmp_path: Path, after: str) -> None:
    busy = f"HTTP/1.1 503 Busy\r\nRetry-After: {after}\r\nContent-Length: 0\r\n\r\n".encode("latin-1")
    server.handlers["/a"] = raw(busy)
    error = await refused(fetcher(server), server.url("/a"), tmp_path / "a")
    assert error.metadata["httpStatus"] == "503"


async def test_ranges_in_small_parts_are_put_together(server: Web, tmp_path: Path) -> None:
    """A server may answer a range with less than was asked for."""
    small = BODY[:100_000]

    async def handler(request: web.Request, writer: asyncio.StreamWriter) -> None:
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        end = min(start + 30_000, len(small))
        fields = {
            "ETag": '"x"',
            "Content_Length": end - start,
            "Content_Range": f"bytes {start}-{end - 1}/{len(small)}",
        }
        if start:
            writer.write(web.head(206, **fields) + small[start:end])
        else:
            writer.write(web.head(200, ETag='"x"', Content_Length=len(small)) + small[:30_000])

    server.handlers["/a"] = handler
    steps = await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == small
    assert steps[-1] == Fetched(len(small), len(small))


async def test_a_file_that_shrank_is_fetched_anew(server: Web, tmp_path: Path) -> None:
    async def handler(request: web.Request, writer: asyncio.StreamWriter) -> None:
        if "range" in request.headers:
            writer.write(web.head(416, Content_Length=0))
        elif request.earlier:
            writer.write(web.head(200, Content_Length=9) + b"shorter!!")
        else:
            writer.write(web.head(200, ETag='"x"', Content_Length=100_000) + bytes(70_000))

    server.handlers["/a"] = handler
    await fetch(fetcher(server), server.url("/a"), tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == b"shorter!!"


@pytest.mark.parametrize(
    "target",
    [b"http://ex\xe4mple.example:1/", b"//[::1/", b"http://\xff\xfe/", b"\x80\x81", b"http://%zz/", b"h" * 9000],
)
async def test_redirects_to_anything_end_in_a_reason(server: Web, tmp_path: Path, target: bytes) -> None:
    server.handlers["/a"] = raw(b"HTTP/1.1 302 Found\r\nLocation: " + target + b"\r\nContent-Length: 0\r\n\r\n")
    error = await refused(fetcher(server), server.url("/a"), tmp_path / "a")
    assert error.status().SerializeToString()


HEADERS = [
    *("Retry-After", "Content-Range", "ETag", "Last-Modified", "Location", "Content-Encoding"),
    *("Content-Length", "Transfer-Encoding", "Connection", "Set-Cookie", "Content-Type"),
]
VALUES = [b"0", b"5", b"gzip", b"chunked", b"bytes 0-4/5", b"/b", b"\xc2\xb2"]


@bounded
@given(
    status=some.sampled_from([200, 204, 206, 301, 302, 307, 416, 429, 503, 599]),
    fields=some.lists(
        some.tuples(
            some.sampled_from(HEADERS),
            some.binary(max_size=40) | some.sampled_from(VALUES),
        ),
        max_size=5,
    ),
    body=some.binary(max_size=30),
)
def test_random_answers_end_in_a_file_or_a_reason(status: int, fields: list[tuple[str, bytes]], body: bytes) -> None:
    head = f"HTTP/1.1 {status} Status\r\nConnection: close\r\n".encode()
    lines = b"".join(name.encode() + b": " + re.sub(rb"[\r\n]", b"", value) + b"\r\n" for name, value in fields)

    async def attempt() -> None:
        async with web.running() as server:
            server.handlers["/a"] = server.handlers["/b"] = raw(head + lines + b"\r\n" + body)
            client = Fetcher(
                Settings(fetch_allow=(server.host,), fetch_idle_seconds=5.0, fetch_seconds=2.0),
                first_backoff_seconds=0.001,
            )
            with tempfile.TemporaryDirectory() as folder, contextlib.suppress(ApiError):
                await fetch(client, server.url("/a"), Path(folder) / "a")

    loops.run(attempt())


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
    with pytest.raises(DiskFull, match="/scratch"), told_when_full(Path("/scratch")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError), told_when_full(Path("/scratch")):
        Path("/nowhere/at/all").read_bytes()
