"""Run a command that ends with the process that started it: python tether.py PARENT one|session COMMAND…

A program of its own, for code that runs between fork and exec of a process with threads may hang. `one` becomes the
command; `session` stays as its parent and ends whatever the command leaves behind.
"""

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def end_with(parent: int, number: int) -> None:
    """Have the kernel send a signal when the parent, or the thread of it that started this, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        sys.exit(1)


def run_one(parent: int, command: list[str]) -> NoReturn:
    end_with(parent, signal.SIGKILL)
    os.execv(command[0], command)


def adopt_orphans() -> None:
    """Have the kernel give this process whatever its descendants leave behind, so that it can end and reap it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def run_session(parent: int, command: list[str]) -> NoReturn:
    child = 0

    def stop(*_: object) -> None:
        if os.getppid() == parent and child:
            os.kill(child, signal.SIGTERM)
        else:
            end_descendants()
            os._exit(1)

    leader = os.getpid()
    adopt_orphans()
    signal.signal(signal.SIGTERM, stop)
    end_with(parent, signal.SIGTERM)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run_one(leader, command)
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    end_descendants()
    sys.exit(max(os.waitstatus_to_exitcode(status), 0) or (1 if status else 0))


def end_descendants() -> None:
    """Kill every descendant and wait until it is gone: the children of a killed process become children of this one."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in children():
                os.kill(pid, signal.SIGKILL)
            os.wait()


def children() -> list[int]:
    """The children of this process, with those that have ended and are not reaped."""
    me = str(os.getpid())
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # After the name, which may hold anything: state, parent.
            if (folder / "stat").read_text().rpartition(") ")[2].split()[1] == me:
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    {"one": run_one, "session": run_session}[sys.argv[2]](int(sys.argv[1]), sys.argv[3:])
