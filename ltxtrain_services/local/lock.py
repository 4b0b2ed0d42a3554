"""The suite that runs on a state folder: the file that it holds locked tells of it."""

import dataclasses
import fcntl
import json
import os
from pathlib import Path
from typing import IO

from ltxtrain_services.local.door import SuiteRefused

LOCK = "up.lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """The facts that others are told of a suite; addresses are empty until they are chosen."""

    model: str
    pid: int = dataclasses.field(default_factory=os.getpid)
    train: str = ""
    gateway: str = ""


def hold(state_dir: Path, suite: Running) -> IO[str]:
    """Held for as long as the file is open. Raises SuiteRefused when another suite holds it."""
    file = (state_dir / LOCK).open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise SuiteRefused(_refusal(state_dir)) from None
    tell(file, suite)
    return file


def tell(file: IO[str], suite: Running) -> None:
    """Replace what the file of `hold` tells."""
    file.truncate(0)
    json.dump(dataclasses.asdict(suite), file)
    file.flush()


def running_on(state_dir: Path) -> Running | None:
    """The suite that runs on this state; None: none does."""
    try:
        with (state_dir / LOCK).open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                # One that begins has not written yet.
                return Running(**json.loads(file.read() or '{"model": "", "pid": 0}'))
    except FileNotFoundError:
        pass
    return None


def _refusal(state_dir: Path) -> str:
    suite = running_on(state_dir)
    at = f", at {suite.train}" if suite and suite.train else ""
    at += f" and {suite.gateway}" if suite and suite.gateway else ""
    stop = f", or: kill {suite.pid}" if suite and suite.pid else ""
    return (
        f"A suite runs on {state_dir} already{at}. To stop it: Ctrl-C in its terminal{stop}. "
        "To run another beside it, name another folder (--state-dir DIR) and other ports."
    )
