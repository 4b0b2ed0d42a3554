"""Fetch a caller's URL to a file: limits, retries, and resumption where the server's bytes are still the same."""

import asyncio
import random
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp
from ltxtrain.v1.error_pb2 import ErrorReason

from services.ingest.dial import Lookup, Refused, dial, system_lookup
from services.ingest.disk import is_full
from services.runtime.addresses import shown
from services.runtime.errors import ApiError, FailedPrecondition, Unavailable
from services.runtime.settings import Settings

CHUNK_BYTES = 1 << 20
# Tries that bring no byte beyond those of earlier ones before the fetch fails.
TRIES = 4
MAX_RETRY_AFTER_SECONDS = 30.0
RETRIED_STATUSES = frozenset({408, 425, 429})
HEADERS = {"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "ltxtrain"}


@dataclass(frozen=True)
class Fetched:
    """How far a fetch is; the total is 0 while unknown."""

    completed_bytes: int
    total_bytes: int


class _Broken(Exception):
    """A try that another may mend; `cut` when the host sent fewer bytes than it announced."""

    def __init__(self, text: str, *, cut: bool = False, retry_after: float = 0.0, status: int = 0) -> None:
        super().__init__(text)
        self.cut = cut
        self.retry_after = retry_after
        self.status = status


@dataclass
class _Part:
    """The bytes at hand, and what proves that the server's are still the same."""

    file: IO[bytes]
    size: int = 0
    validator: str = ""

    def restart(self) -> None:
        if not self.size:
            return
        self.file.seek(0)
        self.file.truncate()
        self.size, self.validator = 0, ""


class Fetcher:
    """Fetches URLs under one set of limits."""

    def __init__(
        self, settings: Settings, *, lookup: Lookup = system_lookup, first_backoff_seconds: float = 0.5
    ) -> None:
        self._allow = settings.fetch_allow
        self._max_bytes = settings.fetch_max_bytes
        self._seconds = settings.fetch_seconds
        self._idle_seconds = settings.fetch_idle_seconds
        self._lookup = lookup
        self._first_backoff_seconds = first_backoff_seconds

    async def fetch(self, url: str, target: Path) -> AsyncGenerator[Fetched, None]:
        """Write what the URL returns to `target`.

        Raises FailedPrecondition (DOWNLOAD_REFUSED, ARCHIVE_TOO_LARGE, DOWNLOAD_TRUNCATED) and Unavailable
        (DOWNLOAD_FAILED), and OSError when the disk is full. No text holds the query of the URL or a byte of the body.
        """
        deadline = asyncio.get_running_loop().time() + self._seconds
        with target.open("wb") as file:
            part, most, failures = _Part(file), 0, 0
            while True:
                try:
                    async with aclosing(self._attempt(url, part, deadline)) as steps:
                        async for step in steps:
                            yield step
                    return
                except Refused as error:
                    raise self._refused(url, str(error)) from None
                except aiohttp.InvalidURL:
                    raise self._refused(url, "this is not a URL that can be dialled.") from None
                except (_Broken, aiohttp.ClientError, TimeoutError, OSError) as error:
                    if is_full(error):
                        raise
                    broken = error if isinstance(error, _Broken) else _broken(url, error)
                failures = 1 if part.size > most else failures + 1
                most = max(most, part.size)
                if failures >= TRIES:
                    raise _failed(url, broken)
                await self._pause(url, failures, broken, deadline)

    async def _attempt(self, url: str, part: _Part, deadline: float) -> AsyncGenerator[Fetched, None]:
        headers = dict(HEADERS)
        if part.size and part.validator:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
        else:
            part.restart()
        async with dial(url, headers, self._allow, self._lookup, self._idle_seconds) as response:
            self._check_status(url, response)
            if response.status != 206 or not _continues(response, part):
                if response.status == 206:
                    part.restart()
                    raise _Broken(f"{shown(url)} sent another part of the file than was asked for.")
                part.restart()
            total = part.size + (response.content_length or 0) if response.content_length is not None else 0
            self._check_size(url, total)
            decoder = _Decoder(response.headers.get("Content-Encoding", ""))
            if not decoder.name:
                part.validator = _validator(response)
            yield Fetched(part.size, total)
            while chunk := await self._read(url, response, deadline):
                for data in decoder.decode(chunk):
                    await asyncio.to_thread(part.file.write, data)
                    part.size += len(data)
                    self._check_size(url, part.size)
                yield Fetched(part.size, 0 if decoder.name else total)
            if decoder.name and not decoder.finished:
                raise _Broken(f"{shown(url)} ended in the middle of its {decoder.name} data.", cut=True)

    async def _read(self, url: str, response: aiohttp.ClientResponse, deadline: float) -> bytes:
        """About a chunk, or what came until the host paused; empty at the end."""
        data = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                while len(data) < CHUNK_BYTES:
                    piece = await response.content.readany()
                    if not piece:
                        break
                    data += piece
        except TimeoutError:
            if asyncio.get_running_loop().time() < deadline:
                raise
            raise _too_slow(url, self._seconds) from None
        except aiohttp.ClientPayloadError:
            if not data:
                raise
        return bytes(data)

    def _check_status(self, url: str, response: aiohttp.ClientResponse) -> None:
        status = response.status
        if status in (200, 206):
            return
        if status == 416 or status >= 500 or status in RETRIED_STATUSES:
            after = response.headers.get("Retry-After", "")
            seconds = min(float(after), MAX_RETRY_AFTER_SECONDS) if after.isdigit() else 0.0
            raise _Broken(f"{shown(url)} answered HTTP {status}.", retry_after=seconds, status=status)
        raise self._refused(url, _meaning(status), status)

    def _check_size(self, url: str, size: int) -> None:
        if size > self._max_bytes:
            text = f"{shown(url)} is larger than the {self._max_bytes} bytes that are fetched at most."
            metadata = {"url": shown(url), "maximumBytes": self._max_bytes}
            raise FailedPrecondition(ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE, text, metadata=metadata)

    def _refused(self, url: str, why: str, status: int = 0) -> ApiError:
        metadata = {"url": shown(url)} | ({"httpStatus": str(status)} if status else {})
        text = f"{shown(url)} could not be fetched: {why}"
        return FailedPrecondition(ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED, text, metadata=metadata)

    async def _pause(self, url: str, failures: int, broken: _Broken, deadline: float) -> None:
        backoff = self._first_backoff_seconds * 2 ** (failures - 1) * random.uniform(0.8, 1.2)
        seconds = max(backoff, broken.retry_after)
        if asyncio.get_running_loop().time() + seconds > deadline:
            raise _too_slow(url, self._seconds)
        await asyncio.sleep(seconds)


class _Decoder:
    """Undoes a Content-Encoding, a bounded piece at a time; `name` is empty for none."""

    def __init__(self, encoding: str) -> None:
        self.name = encoding.strip().lower().replace("identity", "")
        if self.name not in ("", "gzip", "x-gzip", "deflate"):
            raise Refused(f"it is sent with the content encoding {self.name[:40]!r}, which was not asked for.")
        self._zlib = zlib.decompressobj(wbits=47)  # the header tells gzip from zlib
        self._begun = False

    @property
    def finished(self) -> bool:
        return self._zlib.eof

    def decode(self, chunk: bytes) -> "list[bytes] | _Inflated":
        if not self._begun and self.name:
            self._begun = True
            if chunk.startswith(b"PK"):
                self.name = ""  # labelled as encoded although it is not
        return _Inflated(self._zlib, chunk) if self.name else [chunk]


class _Inflated:
    """The decoded bytes of one chunk."""

    def __init__(self, inflater: "zlib._Decompress", chunk: bytes) -> None:
        self._inflater, self._rest = inflater, chunk

    def __iter__(self) -> "_Inflated":
        return self

    def __next__(self) -> bytes:
        while self._rest and not self._inflater.eof:
            try:
                data = self._inflater.decompress(self._rest, CHUNK_BYTES)
            except zlib.error:
                raise _Broken("the encoded bytes are damaged") from None
            self._rest = self._inflater.unconsumed_tail
            if data:
                return data
        raise StopIteration


def _validator(response: aiohttp.ClientResponse) -> str:
    """What If-Range takes: a strong ETag, or else the date of the last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _continues(response: aiohttp.ClientResponse, part: _Part) -> bool:
    asked = response.headers.get("Content-Range", "").startswith(f"bytes {part.size}-")
    return bool(part.size) and asked and _validator(response) in ("", part.validator)


def _meaning(status: int) -> str:
    known = {
        401: "the host asks for a login. Use a signed or public link, or upload the file.",
        403: "the host forbids it. The link may be private or expired.",
        404: "there is nothing at this address.",
        410: "the file is gone.",
    }
    return f"HTTP {status}: {known.get(status, 'the host did not send the file.')}"


def _broken(url: str, error: Exception) -> _Broken:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.ClientConnectorSSLError):
        return _Broken(f"{shown(url)}: the host's certificate is not valid for its name.")
    if isinstance(error, aiohttp.ClientPayloadError):
        return _Broken(f"{shown(url)} sent fewer bytes than it announced.", cut=True)
    if isinstance(error, TimeoutError):
        return _Broken(f"{shown(url)} stopped answering.")
    return _Broken(f"{shown(url)} could not be reached ({type(error).__name__}).")


def _failed(url: str, broken: _Broken) -> ApiError:
    metadata = {"url": shown(url)} | ({"httpStatus": broken.status} if broken.status else {})
    text = f"{broken} {TRIES} tries in a row brought nothing more."
    if broken.cut:
        return FailedPrecondition(ErrorReason.ERROR_REASON_DOWNLOAD_TRUNCATED, text, metadata=metadata)
    return Unavailable(ErrorReason.ERROR_REASON_DOWNLOAD_FAILED, text, metadata=metadata)


def _too_slow(url: str, seconds: float) -> ApiError:
    text = f"{shown(url)} could not be fetched in {seconds:.0f} s, the longest that a fetch may take."
    return Unavailable(ErrorReason.ERROR_REASON_DOWNLOAD_FAILED, text, metadata={"url": shown(url)})
