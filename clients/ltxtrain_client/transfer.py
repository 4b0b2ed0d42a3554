"""Bytes to and from the object store, by presigned URLs: checked by sha256, resumed where that is possible.

Work reports by yielding: each step says how many bytes are done.
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

from ltxtrain_client.errors import TransferFailed

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 1 << 20
# Tries without a single new byte before a transfer is given up.
MAX_FAILURES = 5
FIRST_BACKOFF_SECONDS = 0.2
TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10.0, sock_read=60.0)


@dataclass(frozen=True)
class Transfer:
    """How far an upload or a download is."""

    completed_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class FileDigest:
    """Size and sha256 (lowercase hex) of a file."""

    size_bytes: int
    sha256: str


class _Broken(Exception):
    """A try that failed in a way that another may not."""


_RETRIED = (_Broken, aiohttp.ClientError, TimeoutError, ConnectionError)


async def digest_file(path: Path) -> FileDigest:
    """Size and sha256 of a file, read outside of the event loop. Raises OSError."""
    digest, size = await asyncio.to_thread(_hash_file, path)
    return FileDigest(size, digest.hexdigest())


async def put_file(path: Path, url: str, size_bytes: int) -> AsyncGenerator[Transfer, None]:
    """PUT a file to a presigned URL, from its beginning again when the connection breaks.

    Raises TransferFailed when the store refuses it, or does not take it in five tries.
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
        # S3 wants the length in advance, and refuses before the body where it is asked first.
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

    The bytes of a broken try lie beside it in a hidden file named after the digest, and are not fetched again.
    `fresh_url` is asked for a presigned URL before each try, for they expire. Raises TransferFailed.
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
    """Fetch what `part` lacks after its first `size` bytes; yields its size as it grows."""
    # Identity, for the digest is of the bytes as they are stored.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={size}-"} if size else {})
    async with session.get(url, headers=headers) as response:
        if size and response.status in (200, 416):
            part.unlink()
            raise _Broken(f"the store does not go on from byte {size}")
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
        raise TransferFailed(f"{what}: {_cause(error)} ({failures} tries).") from None
    await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (failures - 1))


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
    """Digest and size of what an earlier try left; of nothing when there was none."""
    return _hash_file(path) if path.exists() else (hashlib.sha256(), 0)


def _host(url: str) -> str:
    # A presigned URL is a secret: no more than its host is ever told.
    return urlsplit(url).netloc.rpartition("@")[2]
