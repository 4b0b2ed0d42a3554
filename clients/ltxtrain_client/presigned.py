"""Upload to and download from the object store by presigned URL: checked by sha256, resumed where possible.

Progress is reported by yielding: a Transfer after each chunk.
"""

import asyncio
import hashlib
import os
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp
from ltxtrain.v1.ingest_pb2 import ListUploadPartsResponse

from ltxtrain_client.backoff import Backoff
from ltxtrain_client.errors import CallError, DeadlineExceeded, TransferFailed, Unavailable
from ltxtrain_client.transfer import FileDigest, Transfer, digest_source
from ltxtrain_client.upload_source import CHUNK_BYTES, FileSource, Source

if TYPE_CHECKING:
    from hashlib import _Hash

# Attempts without a single new byte before a transfer fails.
MAX_FAILURES = 8
BACKOFF = Backoff()
PARALLEL_PARTS = 4
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)


class _Broken(Exception):
    """A transient failure: the transfer is retried."""


_RETRIED = (_Broken, aiohttp.ClientError, TimeoutError, ConnectionError)


async def put_source(source: Source, url: str, tls_root: Path | None = None) -> AsyncGenerator[Transfer, None]:
    """PUT a source to a presigned URL, restarting when the connection breaks.

    Raises TransferFailed when the store refuses it, or after several failed attempts in a row.
    """
    failures = 0
    whole = Span(0, source.size_bytes)
    async with _session(tls_root) as session:
        while True:
            try:
                async for sent in _put_spans(session, source, [(whole, url)], expires=False):
                    yield Transfer(sent, source.size_bytes)
                return
            except _RETRIED as error:
                failures += 1
                await _pause(failures, f"{source.name} could not be uploaded to {_host(url)}", error)


async def put_parts(
    source: Source, list_parts: Callable[[], Awaitable[ListUploadPartsResponse]], tls_root: Path | None = None
) -> AsyncGenerator[Transfer, None]:
    """PUT the parts of a source that the store lacks, several at once, until it has all of them.

    `list_parts` returns missing parts with fresh URLs, and none at the end; a part that was stored is not sent again.
    Raises TransferFailed when the store refuses a part, or after several rounds in a row that stored none.
    """
    failures, most = 0, -1
    async with _session(tls_root) as session:
        while True:
            try:
                page = await list_parts()
                yield Transfer(page.stored_bytes, source.size_bytes)
                if not page.parts:
                    return
                if page.stored_bytes > most:
                    failures, most = 0, page.stored_bytes
                spans = [(Span(part.offset_bytes, part.size_bytes), part.put_url) for part in page.parts]
                async for sent in _put_spans(session, source, spans, expires=True):
                    yield Transfer(page.stored_bytes + sent, source.size_bytes)
            except (*_RETRIED, Unavailable, DeadlineExceeded) as error:
                failures += 1
                await _pause(failures, f"{source.name} could not be uploaded", error)


@dataclass(frozen=True)
class Span:
    """Part of a source."""

    offset: int
    length: int


async def _put_spans(
    session: aiohttp.ClientSession, source: Source, spans: Sequence[tuple[Span, str]], *, expires: bool
) -> AsyncGenerator[int, None]:
    """PUT each span to its URL, PARALLEL_PARTS at once; yields the bytes sent so far.

    Raises the first error once every PUT that is under way has ended: what was sent whole stays sent.
    """
    left = deque(spans)
    progress: asyncio.Queue[int | None] = asyncio.Queue()

    async def work() -> None:
        try:
            while left:
                span, url = left.popleft()
                await _put_span(session, source, span, url, progress, expires)
        except BaseException:
            left.clear()  # the others end with the span that they are at
            raise
        finally:
            progress.put_nowait(None)

    workers = [asyncio.create_task(work()) for _ in range(min(PARALLEL_PARTS, len(spans)))]
    sent, running = 0, len(workers)
    try:
        while running:
            if (step := await progress.get()) is None:
                running -= 1
            else:
                sent += step
                yield sent
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _put_span(
    session: aiohttp.ClientSession,
    source: Source,
    span: Span,
    url: str,
    progress: "asyncio.Queue[int | None]",
    expires: bool,
) -> None:
    """PUT one span. `expires`: a refusal is retried, for the caller has fresh URLs."""
    unreadable: list[TransferFailed] = []

    async def body() -> AsyncGenerator[bytes, None]:
        chunks = source.read(span.offset, span.length)
        try:
            while chunk := await asyncio.to_thread(next, chunks, b""):
                yield chunk
                progress.put_nowait(len(chunk))
        except TransferFailed as error:
            unreadable.append(error)
            raise
        except OSError as error:
            unreadable.append(TransferFailed(f"{source.name} cannot be read: {error.strerror}"))
            raise

    # S3 wants the length in advance; with 100-continue it refuses before the body is sent.
    headers = {"Content-Length": str(span.length)}
    try:
        async with session.put(url, data=body(), headers=headers, expect100=span.length > 0) as response:
            if response.status >= 500 or (response.status == 403 and expires):
                raise _Broken(f"the store answered HTTP {response.status}")
            if response.status >= 300:
                raise TransferFailed(f"The object store at {_host(url)} refused {source.name}: HTTP {response.status}.")
    except (aiohttp.ClientError, OSError):
        # aiohttp hides an error of the body behind one of its own.
        if unreadable:
            raise unreadable[0] from None
        raise


async def get_file(
    path: Path, expected: FileDigest, fresh_url: Callable[[], Awaitable[str]], tls_root: Path | None = None
) -> AsyncGenerator[Transfer, None]:
    """Download to `path`, which appears whole and checked, or not at all.

    A partial download stays beside it in a hidden file named after the digest, and is resumed. `fresh_url` returns a
    presigned URL and is called before each attempt, since they expire.
    Raises TransferFailed when the store refuses, or after several attempts without progress.
    """
    if path.exists() and await digest_source(FileSource(path)) == expected:
        yield Transfer(expected.size_bytes, expected.size_bytes)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{expected.sha256[:12]}.part")
    failures, most = 0, 0
    async with _session(tls_root, auto_decompress=False) as session:
        while True:
            digest, size = await asyncio.to_thread(_hash_part, part)
            try:
                if size < expected.size_bytes or not size:
                    rest = _append(session, await fresh_url(), part, size, digest, path.name)
                    async for size in rest:
                        yield Transfer(size, expected.size_bytes)
                if size < expected.size_bytes:
                    raise _Broken(f"it ended after {size} of {expected.size_bytes} bytes")
                if FileDigest(size, digest.hexdigest()) != expected:
                    part.unlink()
                    raise _Broken("the bytes do not have the announced sha256")
            except _RETRIED as error:
                failures = 1 if size > most else failures + 1
                most = max(most, size)
                await _pause(failures, f"{path.name} could not be downloaded", error)
            else:
                part.replace(path)
                return


def _session(tls_root: Path | None, *, auto_decompress: bool = True) -> aiohttp.ClientSession:
    """A session for one store; a private authority of the suite stands for its store too.

    Raises TransferFailed when its file cannot be read.
    """
    connector = None
    if tls_root is not None:
        context = ssl.create_default_context()
        try:
            context.load_verify_locations(tls_root)
        except OSError as error:
            raise TransferFailed(f"LTXTRAIN_TLS_ROOT={tls_root}: {error.strerror or 'not PEM'}.") from None
        connector = aiohttp.TCPConnector(ssl=context)
    return aiohttp.ClientSession(timeout=TIMEOUT, auto_decompress=auto_decompress, connector=connector)


async def _append(
    session: aiohttp.ClientSession, url: str, part: Path, size: int, digest: "_Hash", label: str
) -> AsyncGenerator[int, None]:
    """Append to `part` from byte `size` on; yields its size as it grows."""
    # Identity: the digest is of the bytes as stored.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    async with session.get(url, headers=headers) as response:
        if size and response.status in (200, 416):
            part.unlink()
            raise _Broken(f"the store cannot resume at byte {size}")
        if response.status >= 500:
            raise _Broken(f"the store answered HTTP {response.status}")
        if response.status not in (200, 206):
            raise TransferFailed(f"The object store at {_host(url)} refused {label}: HTTP {response.status}.")
        with await asyncio.to_thread(part.open, "ab") as file:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                yield size
            file.flush()
            await asyncio.to_thread(os.fsync, file.fileno())


async def _pause(failures: int, what: str, error: Exception) -> None:
    if failures >= MAX_FAILURES:
        # Not `from error`: aiohttp's texts hold the presigned URL.
        raise TransferFailed(f"{what}: {_cause(error)} ({failures} attempts).") from None
    await asyncio.sleep(BACKOFF.seconds(failures))


def _cause(error: Exception) -> str:
    if isinstance(error, _Broken):
        return str(error)
    if isinstance(error, CallError):
        return error.message
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


def _hash_part(path: Path) -> "tuple[_Hash, int]":
    """Digest and size of a partial download; of zero bytes when there is none."""
    digest, size = hashlib.sha256(), 0
    if path.exists():
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
    return digest, size


def _host(url: str) -> str:
    # A presigned URL is a secret: messages name its host only.
    return urlsplit(url).netloc.rpartition("@")[2]
