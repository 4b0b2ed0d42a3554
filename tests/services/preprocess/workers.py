"""Finds the Ray actors of this session, to kill them."""

import asyncio
import os
import signal
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path


def actor_pids(name: str) -> set[int]:
    """Processes of actors of a class that belong to this session's Ray."""
    token = os.environ.get("RAY_AUTH_TOKEN", "").encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            title = (folder / "cmdline").read_bytes()
            if title.startswith(f"ray::{name}".encode()) and token in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


async def kill_next(name: str, known: Collection[int] = ()) -> int:
    """Waits for an actor that is not among the known ones and kills it with SIGKILL; its pid."""
    while True:
        for pid in actor_pids(name).difference(known):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return pid
        await asyncio.sleep(0.005)


async def appeared(name: str) -> None:
    """Returns when there is an actor of a class."""
    await _until(name, alive=True)


async def all_gone(name: str) -> None:
    """Returns when no actor of a class is left."""
    await _until(name, alive=False)


async def _until(name: str, *, alive: bool) -> None:
    # The kernel tells nobody when a process comes or goes that is not its own child.
    while True:
        if bool(actor_pids(name)) == alive:
            return
        await asyncio.sleep(0.02)
