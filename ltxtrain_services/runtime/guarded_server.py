"""grpc.aio's server without its one soft spot: a method name that is not UTF-8.

The accept loop of grpcio (`AioServer._server_main_loop` in cygrpc, seen in 1.85.3 and in its main branch of November
2026) decodes the `:path` of a call to an unregistered method outside of any `try`: one such request, which needs no
token, ends the loop, and the process lives on without listening. Registered methods are matched in C. So calls to all
others are refused here, before the loop sees them; and whatever else ends the loop is told by `ended`.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio
from grpc._cython import cygrpc
from grpc.aio import _server

# The label of such a call in gRPC's own log: its name is the caller's invention.
UNREGISTERED = "an unregistered method"


class GuardedServer(_server.Server):
    """As grpc.aio.server(interceptors=…, options=…), for methods that generated code has registered."""

    def __init__(self, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, Any]]) -> None:
        self._loop = cygrpc.get_working_loop()
        # Set when no more calls are accepted, for whatever reason.
        self.ended = asyncio.Event()
        self._server = _AcceptLoop(self.ended, self._loop, None, (), interceptors, tuple(options), None)


class _AcceptLoop(cygrpc.AioServer):  # type: ignore[misc]
    def __init__(self, ended: asyncio.Event, loop: asyncio.AbstractEventLoop, *arguments: Any) -> None:
        super().__init__(loop, *arguments)
        self._ended = ended
        self._refusing: set[asyncio.Task[None]] = set()
        self._no_methods = cygrpc._MethodResolver([], {})
        self._event_loop = loop

    async def _request_call(self) -> None:
        """The next call to an unregistered method, which never comes: each is answered with UNIMPLEMENTED here."""
        while True:
            call = await super()._request_call()
            answer = cygrpc._handle_rpc(UNREGISTERED, self._no_methods, (), call, self._event_loop, False)
            task = self._event_loop.create_task(
                cygrpc._schedule_rpc_coro(answer, call, self._event_loop, UNREGISTERED), name="refuse a call"
            )
            self._refusing.add(task)
            task.add_done_callback(self._refusing.discard)

    async def _server_main_loop(self, started: "asyncio.Future[bool]") -> None:
        try:
            await super()._server_main_loop(started)
        finally:
            self._ended.set()
