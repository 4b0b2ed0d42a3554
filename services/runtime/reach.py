"""Asking parties that may not answer at all."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable


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
    """What a blocking call answers; False when it raises, or has not returned in time.

    Its thread is not one of the loop's pool, which would hold up the end of the process.
    """
    loop, answered = asyncio.get_running_loop(), asyncio.Event()
    answers: list[bool] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            answers.append(question())
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(answered.set)

    threading.Thread(target=run, name="question", daemon=True).start()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(answered.wait(), seconds)
    return any(answers)
