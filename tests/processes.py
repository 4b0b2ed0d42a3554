"""Processes that this one has started, directly or not: found by what they are called, and ended the hard way."""

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

TRAIN_ACTOR = "ray::TrainActor"
RAY_WORKER = "ray::"

_PROC = Path("/proc")


def descendants(pid: int | None = None) -> list[int]:
    """Descendants of a process, this one if none is named: children first."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents():
        children.setdefault(parent, []).append(child)
    found = list(children.get(pid or os.getpid(), []))
    for each in found:
        found.extend(children.get(each, []))
    return found


def title(pid: int) -> str:
    """The command line, or what the process calls itself; empty when it has ended."""
    with suppress(OSError):
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace")
    return ""


def find(beginning: str) -> list[int]:
    """Descendants whose title begins so."""
    return [pid for pid in descendants() if title(pid).startswith(beginning)]


def kill(pid: int) -> None:
    """SIGKILL."""
    os.kill(pid, signal.SIGKILL)


async def gone(pid: int) -> None:
    """Return when the process has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


async def none_left(beginning: str) -> None:
    """Return when every process of `find` has ended."""
    for pid in find(beginning):
        await gone(pid)


def _parents() -> Iterator[tuple[int, int]]:
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            yield int(entry.name), int(fields[1])


def _stat(pid: int) -> list[str]:
    """State, parent and so on: what follows the name, which may hold anything."""
    with suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text().rpartition(") ")[2].split()
    return []
