"""An object store's side of uploads and downloads by URL: a real HTTP server whose faults a test writes down."""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True)
class Fault:
    """A fault of one request to the object host."""

    status: int | None = None
    # Close the connection after so many bytes of a download's body.
    cut_after: int | None = None
    ignore_range: bool = False
    corrupt: bool = False


class ObjectHost:
    """An HTTP server that takes PUT and serves GET with ranges, as an object store does at presigned URLs."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[Fault] = deque()
        # Every request: method, path, Range header.
        self.requests: list[tuple[str, str, str]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.path, request.headers.get("Range", "")))
        fault = self.faults.popleft() if self.faults else Fault()
        if fault.status is not None:
            return web.Response(status=fault.status)
        if request.method == "PUT":
            assert request.headers["Content-Length"] == str(request.content_length)
            self.objects[request.path] = await request.read()
            return web.Response()
        return await self._get(request, fault)

    async def _get(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        content = self.objects[request.path]
        if fault.corrupt:
            content = bytes(255 - byte for byte in content)
        start = 0
        if (ranged := request.headers.get("Range", "")) and not fault.ignore_range:
            start = int(ranged.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                return web.Response(status=416)
        body = content[start:]
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        if fault.cut_after is not None:
            await response.write(body[: fault.cut_after])
            assert request.transport is not None
            request.transport.close()
            return response
        await response.write(body)
        return response


@asynccontextmanager
async def hosting() -> AsyncIterator[ObjectHost]:
    host = ObjectHost()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", host.handle)
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield host
    finally:
        await runner.cleanup()
