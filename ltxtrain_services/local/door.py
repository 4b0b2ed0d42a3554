"""A suite for other hosts: what it is told of them, and the door to its store, which itself stays on loopback.

The embedded store asks for no credentials on its inner ports, so other hosts reach its S3 port alone: bytes go through
as they are, with TLS or without.
"""

import asyncio
import contextlib
import dataclasses
import ssl
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

from ltxtrain_client.channel import is_loopback

from ltxtrain_services.runtime.auth import server_credentials
from ltxtrain_services.runtime.settings import Settings, SettingsError, read_settings

CHUNK_BYTES = 256 * 1024
# Of all peers together; others wait to be accepted.
MAX_CONNECTIONS = 512
# After which a connection is closed: of a caller that says nothing at first, and without a byte in either direction.
FIRST_SECONDS, IDLE_SECONDS = 20.0, 300.0


class SuiteRefused(Exception):
    """The suite cannot run here; the text says why and what to do."""


def checked_settings(environ: Mapping[str, str], host: str, *, nodes: bool) -> Settings:
    """The settings that the services will read, as far as they are known before anything is started.

    Raises SuiteRefused when they are wrong, or would leave the suite open to everybody.
    """
    try:
        settings = read_settings(environ)
        server_credentials(dataclasses.replace(settings, bind=f"{host}:0"))
    except SettingsError as error:
        raise SuiteRefused(str(error)) from None
    if nodes and (not is_open(host) or not settings.ray_token):
        raise SuiteRefused("Nodes of other hosts need --host ADDRESS, and LTXTRAIN_RAY_TOKEN, which they show.")
    return settings


def is_open(host: str) -> bool:
    return not is_loopback(f"{host}:0")


def port_of(variable: str, default: int, host: str, environ: Mapping[str, str]) -> int:
    """The port of the address that clients use too. Raises SuiteRefused when that is of another host."""
    if not (address := environ.get(variable)):
        return default
    parts = _split(address)
    if parts.hostname != host and is_open(parts.hostname or ""):
        text = f"{variable}={address}, but the suite listens on {host}."
        raise SuiteRefused(f"{text} Say --host {parts.hostname}, or unset the variable.")
    return parts.port or default


def store_port(host: str, environ: Mapping[str, str]) -> int | None:
    """The port of the public endpoint, where that is on this host; another one is a proxy's in front of it."""
    parts = _split(environ.get("LTXTRAIN_S3_PUBLIC_ENDPOINT", ""))
    return parts.port if parts.hostname == host and is_open(host) else None


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS by the services' certificate. No certificate is asked for: a presigned URL is all that a caller shows."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    return context


def _split(address: str) -> SplitResult:
    return urlsplit(address if "://" in address else f"//{address}")


@contextlib.asynccontextmanager
async def relaying(host: str, port: int, to: tuple[str, int], context: ssl.SSLContext | None) -> AsyncIterator[None]:
    """Take connections at host:port during the block, and pass them on. Raises OSError when the address is taken."""
    places = asyncio.Semaphore(MAX_CONNECTIONS)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        task.add_done_callback(connections.discard)
        # A peer or the store that goes away ends its own connection, and nothing else.
        with contextlib.suppress(OSError, asyncio.CancelledError, TimeoutError):
            async with places:
                await _pass_on(reader, writer, to)
        writer.transport.abort()

    handshake: dict[str, Any] = {"ssl": context, "ssl_handshake_timeout": FIRST_SECONDS} if context else {}
    server = await asyncio.start_server(serve, host, port, limit=CHUNK_BYTES, **handshake)
    try:
        yield
    finally:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, to: tuple[str, int]) -> None:
    """Both ways, until both have ended or nothing comes any more."""
    first = await asyncio.wait_for(reader.read(CHUNK_BYTES), FIRST_SECONDS)
    onward_reader, onward_writer = await asyncio.open_connection(*to, limit=CHUNK_BYTES)
    onward_writer.write(first)
    now = asyncio.get_running_loop().time
    last = now()

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        nonlocal last
        while chunk := await source.read(CHUNK_BYTES):
            last = now()
            sink.write(chunk)
            await sink.drain()
            last = now()
        if sink.can_write_eof():
            sink.write_eof()

    pumps = [asyncio.create_task(pump(reader, onward_writer)), asyncio.create_task(pump(onward_reader, writer))]
    try:
        left = set(pumps)
        while left and (rest := last + IDLE_SECONDS - now()) > 0:
            done, left = await asyncio.wait(left, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
            # One that failed has nobody to pass on to; and TLS has no half of a connection to close.
            if any(task.exception() for task in done) or (done and not writer.can_write_eof()):
                break
        await writer.drain()
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        onward_writer.transport.abort()
        with contextlib.suppress(OSError, TimeoutError):
            writer.close()
            await asyncio.wait_for(writer.wait_closed(), 10.0)
