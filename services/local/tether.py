"""Run a command that ends with the process that started it: python tether.py PARENT one|session COMMAND…

A program of its own, for code that runs between fork and exec of a process with threads may hang. `one` becomes the
command; `session` stays as its parent and ends whatever the command leaves in this session.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1


def end_with(parent: int, number: int) -> None:
    """Have the kernel send a signal when the parent, or the thread of it that started this, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)


def run_one(parent: int, command: list[str]) -> NoReturn:
    end_with(parent, signal.SIGKILL)
    os.execv(command[0], command)


def run_session(parent: int, command: list[str]) -> NoReturn:
    child = 0

    def stop(*_: object) -> None:
        if os.getppid() == parent and child:
            os.kill(child, signal.SIGTERM)
        else:
            end_session()
            os._exit(1)

    leader = os.getpid()
    signal.signal(signal.SIGTERM, stop)
    end_with(parent, signal.SIGTERM)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run_one(leader, command)
    _, status = os.waitpid(child, 0)
    end_session()
    sys.exit(max(os.waitstatus_to_exitcode(status), 0) or (1 if status else 0))


def end_session() -> None:
    """Kill every other process of this session."""
    session, me = os.getsid(0), os.getpid()
    for folder in Path("/proc").glob("[0-9]*"):
        pid = int(folder.name)
        with contextlib.suppress(OSError):
            if pid != me and os.getsid(pid) == session:
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    {"one": run_one, "session": run_session}[sys.argv[2]](int(sys.argv[1]), sys.argv[3:])
