"""Asking parties that may not answer at all."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar, cast

R = TypeVar("R")


def wait_for_listener(address: str, seconds: float) -> None:
    """Return when somebody listens at host:port. Raises OSError after the seconds, and ValueError for another form."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.1)


async def ask(question: Callable[[], bool], seconds: float) -> bool:
    """What a blocking call answers; False when it raises, or has not returned in time."""
    try:
        return await asyncio.wait_for(in_thread(question), seconds)
    except Exception:
        return False


def in_thread(call: Callable[[], R]) -> "asyncio.Future[R]":
    """What a blocking call returns or raises.

    Its thread is not one of the loop's pool, which would hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[R] = loop.create_future()

    def settle(result: R | None, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(cast(R, result))
        else:
            future.set_exception(error)

    def run() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name="blocking call", daemon=True).start()
    return future
