"""Fetch a caller's URL to a file: limits, retries, and resumption where the server's bytes are still the same."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import aiohttp
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.ingest.headers import Damaged, Decoder, Unsupported, content_range, retry_after, validator
from ltxtrain_services.runtime.addresses import shown
from ltxtrain_services.runtime.dial import Dialler, Lookup, Refused, system_lookup
from ltxtrain_services.runtime.disk import is_full
from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition, Unavailable
from ltxtrain_services.runtime.settings import Settings

CHUNK_BYTES = 1 << 20
# Tries that bring no byte beyond those of earlier ones before the fetch fails.
TRIES = 4
MAX_RETRY_AFTER_SECONDS = 30.0
RETRIED_STATUSES = frozenset({408, 425, 429})
REQUEST_HEADERS = {"Accept-Encoding": "identity", "Accept": "*/*", "User-Agent": "ltxtrain"}


@dataclass(frozen=True)
class Fetched:
    """Progress of a fetch; the total is 0 while unknown."""

    completed_bytes: int
    total_bytes: int


class _Broken(Exception):
    """A try that is worth repeating; `cut` when the host sent fewer bytes than it announced."""

    def __init__(self, text: str, *, cut: bool = False, retry_after: float = 0.0, status: int = 0) -> None:
        super().__init__(text)
        self.cut = cut
        self.retry_after = retry_after
        self.status = status


@dataclass
class _Part:
    """The bytes received so far, and the validator that proves that the server's are still the same."""

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
        self._dialler = Dialler(settings, lookup)
        self._max_bytes = settings.fetch_max_bytes
        self._seconds = settings.fetch_seconds
        self._first_backoff_seconds = first_backoff_seconds

    async def fetch(self, url: str, target: Path) -> AsyncGenerator[Fetched, None]:
        """Write what the URL returns to `target`.

        Raises FailedPrecondition (DOWNLOAD_REFUSED, ARCHIVE_TOO_LARGE, DOWNLOAD_TRUNCATED) and Unavailable
        (DOWNLOAD_FAILED), and OSError when the disk is full. No text holds the query of the URL or a byte of the body.
        One deadline covers all of it: look-ups, redirects, headers, bodies, and the pauses between tries.
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
                except (Refused, Unsupported) as error:
                    raise self._refused(url, str(error)) from None
                except aiohttp.InvalidURL:
                    raise self._refused(url, "this is not a URL that can be dialled.") from None
                except (_Broken, aiohttp.ClientError, TimeoutError, OSError) as error:
                    if is_full(error):
                        raise
                    if isinstance(error, TimeoutError) and asyncio.get_running_loop().time() > deadline - 0.1:
                        raise _too_slow(url, self._seconds) from None
                    broken = error if isinstance(error, _Broken) else _broken(url, error)
                failures = 1 if part.size > most else failures + 1
                most = max(most, part.size)
                if failures >= TRIES:
                    raise _failed(url, broken)
                await self._pause(url, failures, broken, deadline)

    async def _attempt(self, url: str, part: _Part, deadline: float) -> AsyncGenerator[Fetched, None]:
        headers = dict(REQUEST_HEADERS)
        if part.size and part.validator:
            headers |= {"Range": f"bytes={part.size}-", "If-Range": part.validator}
        else:
            part.restart()
        async with AsyncExitStack() as stack:
            async with asyncio.timeout_at(deadline):
                response = await stack.enter_async_context(self._dialler.dial(url, headers))
            self._check_status(url, response, part)
            total = self._total(url, response, part)
            self._check_size(url, total)
            decoder = Decoder(response.headers)
            if not decoder.name:
                part.validator = validator(response.headers)
            received = part.size
            yield Fetched(part.size, total)
            while not decoder.finished and (chunk := await self._read(response, deadline)):
                received += len(chunk)
                self._check_size(url, received)
                await asyncio.to_thread(self._write, url, decoder, chunk, part)
                yield Fetched(part.size, 0 if decoder.name else total)
        if not decoder.whole:
            raise _Broken(f"{shown(url)} ended in the middle of its {decoder.name} data.", cut=True)
        if not decoder.name and part.size < total:
            raise _Broken(f"{shown(url)} sent {part.size} of {total} bytes.", cut=True)

    def _write(self, url: str, decoder: Decoder, chunk: bytes, part: _Part) -> None:
        try:
            for data in decoder.decode(chunk):
                part.file.write(data)
                part.size += len(data)
                self._check_size(url, part.size)
        except Damaged as error:
            raise _Broken(f"{shown(url)}: {error}.") from None

    async def _read(self, response: aiohttp.ClientResponse, deadline: float) -> bytes:
        """About a chunk, or as much as came until the host paused; empty at the end."""
        data = bytearray()
        try:
            async with asyncio.timeout_at(deadline):
                while len(data) < CHUNK_BYTES:
                    piece = await response.content.readany()
                    if not piece:
                        break
                    data += piece
        except aiohttp.ClientPayloadError:
            if not data:
                raise
        return bytes(data)

    def _total(self, url: str, response: aiohttp.ClientResponse, part: _Part) -> int:
        """Bytes of the whole file, 0 while unknown; the part begins anew unless the response goes on where it ended."""
        length = response.content_length
        if response.status != 206:
            part.restart()
            return length or 0
        found = content_range(response.headers)
        if found is None or not part.size or found.first != part.size or not _is_same(response, part):
            part.restart()
            raise _Broken(f"{shown(url)} sent another part of the file than was asked for.")
        return found.total if found.total is not None else found.last + 1

    def _check_status(self, url: str, response: aiohttp.ClientResponse, part: _Part) -> None:
        status = response.status
        if status in (200, 206):
            return
        if status == 416:  # the file is shorter than it was
            part.restart()
        if status == 416 or status >= 500 or status in RETRIED_STATUSES:
            seconds = min(retry_after(response.headers), MAX_RETRY_AFTER_SECONDS)
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


def _is_same(response: aiohttp.ClientResponse, part: _Part) -> bool:
    """Whether the response has the validator of the part, or none."""
    return validator(response.headers) in ("", part.validator)


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
