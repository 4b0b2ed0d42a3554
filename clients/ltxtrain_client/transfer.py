"""Upload to and download from the object store by presigned URL: checked by sha256, resumed where possible.

Progress is reported by yielding: a Transfer after each chunk.
"""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from ltxtrain_client.backoff import Backoff
from ltxtrain_client.errors import TransferFailed

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 1 << 20
# Attempts without a single new byte before a transfer fails.
MAX_FAILURES = 5
BACKOFF = Backoff(last_seconds=3.0)
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)


@dataclass(frozen=True)
class Transfer:
    """Progress of an upload or a download."""

    completed_bytes: int
    """Bytes transferred so far, earlier attempts included."""

    total_bytes: int
    """Size of the whole file."""


@dataclass(frozen=True)
class FileDigest:
    """Content address of a file."""

    size_bytes: int
    sha256: str
    """Lowercase hex."""


class _Broken(Exception):
    """A transient failure: the transfer is retried."""


_RETRIED = (_Broken, aiohttp.ClientError, TimeoutError, ConnectionError)


async def digest_file(path: Path) -> FileDigest:
    """Hash a file in a thread. Raises OSError when it cannot be read."""
    digest, size = await asyncio.to_thread(_hash_file, path)
    return FileDigest(size, digest.hexdigest())


async def put_file(path: Path, url: str, size_bytes: int) -> AsyncGenerator[Transfer, None]:
    """PUT a file to a presigned URL, restarting when the connection breaks.

    Raises TransferFailed when the store refuses it, or after five failed attempts.
    """
    failures = 0
    async with aiohttp.ClientSession(timeout=TIMEOUT) as session:
        while True:
            sent: asyncio.Queue[int | None] = asyncio.Queue()
            put = asyncio.create_task(_put_once(session, url, path, size_bytes, sent))
            try:
                while (count := await sent.get()) is not None:
                    yield Transfer(count, size_bytes)
                await put
                return
            except _RETRIED as error:
                failures += 1
                await _pause(failures, f"{path.name} could not be uploaded to {_host(url)}", error)
            finally:
                put.cancel()
                await asyncio.gather(put, return_exceptions=True)


async def _put_once(
    session: aiohttp.ClientSession, url: str, path: Path, size_bytes: int, sent: "asyncio.Queue[int | None]"
) -> None:
    async def body() -> AsyncGenerator[bytes, None]:
        count = 0
        file = await asyncio.to_thread(path.open, "rb")
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
                count += len(chunk)
                sent.put_nowait(count)
        finally:
            file.close()

    try:
        # S3 wants the length in advance; with 100-continue it refuses before the body is sent.
        headers = {"Content-Length": str(size_bytes)}
        async with session.put(url, data=body(), headers=headers, expect100=size_bytes > 0) as response:
            if response.status >= 500:
                raise _Broken(f"the store answered HTTP {response.status}")
            if response.status >= 300:
                raise TransferFailed(f"The object store at {_host(url)} refused {path.name}: HTTP {response.status}.")
    finally:
        sent.put_nowait(None)


async def get_file(
    path: Path, expected: FileDigest, fresh_url: Callable[[], Awaitable[str]]
) -> AsyncGenerator[Transfer, None]:
    """Download to `path`, which appears whole and checked, or not at all.

    A partial download stays beside it in a hidden file named after the digest, and is resumed. `fresh_url` returns a
    presigned URL and is called before each attempt, since they expire.
    Raises TransferFailed when the store refuses, or after five attempts without progress.
    """
    if path.exists() and await digest_file(path) == expected:
        yield Transfer(expected.size_bytes, expected.size_bytes)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{expected.sha256[:12]}.part")
    failures, most = 0, 0
    async with aiohttp.ClientSession(timeout=TIMEOUT, auto_decompress=False) as session:
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
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return type(error).__name__


def _hash_file(path: Path) -> "tuple[_Hash, int]":
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
    return digest, size


def _hash_part(path: Path) -> "tuple[_Hash, int]":
    """Digest and size of a partial download; of zero bytes when there is none."""
    return _hash_file(path) if path.exists() else (hashlib.sha256(), 0)


def _host(url: str) -> str:
    # A presigned URL is a secret: messages name its host only.
    return urlsplit(url).netloc.rpartition("@")[2]
