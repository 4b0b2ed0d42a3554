"""Actors that do what tests of Ray want to see, and waiting for what they do. No test in here."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray

from ltxtrain_services.runtime.objects import ObjectMissing

POLL_SECONDS = 0.02


def remote_worker() -> Any:
    class Worker:
        """Does what tests want to see: counts, fails, dies, hangs."""

        def __init__(self, *_: object) -> None:
            self.calls = 0

        def pid(self) -> int:
            return os.getpid()

        def square(self, number: int) -> int:
            self.calls += 1
            return number * number

        def fail(self, key: str) -> None:
            raise ObjectMissing(f"There is no object {key}.")

        def die(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def die_once(self, mark: Path) -> str:
            if not mark.exists():
                mark.touch()
                self.die()
            return "second try"

        def hang(self, mark: Path) -> None:
            mark.write_text(str(os.getpid()))
            time.sleep(600)

        def count(self, end: int, die_at: int = -1) -> Iterator[int]:
            for number in range(end):
                if number == die_at:
                    self.die()
                yield number

        def count_for_ever(self, mark: Path) -> Iterator[int]:
            mark.write_text(str(os.getpid()))
            number = 0
            while True:
                yield number
                number += 1
                time.sleep(POLL_SECONDS)

        def count_or_hang(self, rank_of: dict[int, str], mark: Path) -> Iterator[int]:
            """The first yields and waits for ever, the second dies."""
            yield 0
            if rank_of[os.getpid()] == "dies":
                self.die()
            time.sleep(600)

    return ray.remote(Worker)


async def until(holds: Callable[[], object]) -> None:
    """Return when a condition holds; the test's own timeout is the limit."""
    while not holds():  # noqa: ASYNC110 (other processes set no event)
        await asyncio.sleep(POLL_SECONDS)


async def until_gone(pid: int) -> None:
    await until(lambda: not Path(f"/proc/{pid}").exists())


async def written(mark: Path) -> int:
    """The pid that an actor leaves when its call has begun."""
    await until(lambda: mark.exists() and mark.read_text())
    return int(mark.read_text())


def free_cpus() -> float:
    return float(ray.available_resources().get("CPU", 0.0))
