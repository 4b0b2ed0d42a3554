"""A TCP proxy in front of the object store that cuts connections on the way. No test in here."""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class CuttingProxy:
    """Passes bytes on; each number of `cuts` ends a connection after so many bytes from the client."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self.address = ""
        self.cuts: deque[int] = deque()
        # Bytes that clients have sent, those of cut connections included.
        self.sent_bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, back = await asyncio.open_connection(*self._target)
        answers = asyncio.create_task(_copy(onward, writer))
        allowed: int | None = None
        try:
            while chunk := await reader.read(64 << 10):
                self.sent_bytes += len(chunk)
                # Decided with the first bytes of a body: a connection that only asks is not cut.
                if allowed is None and len(chunk) > 4096 and self.cuts:
                    allowed = self.cuts.popleft()
                if allowed is not None:
                    allowed -= len(chunk)
                    if allowed <= 0:
                        break
                back.write(chunk)
                await back.drain()
        except ConnectionError:
            pass
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            for stream in (writer, back):
                with contextlib.suppress(ConnectionError):
                    stream.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(64 << 10):
        writer.write(chunk)
        await writer.drain()


@asynccontextmanager
async def cutting(endpoint: str) -> AsyncIterator[CuttingProxy]:
    """A proxy on loopback in front of host:port."""
    host, _, port = endpoint.rpartition(":")
    proxy = CuttingProxy(host.rpartition("/")[2], int(port))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield proxy
    finally:
        server.close()
