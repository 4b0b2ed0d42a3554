"""Limits that a worker sets itself before it opens what somebody else made: time, and memory of its own."""

import contextlib
import faulthandler
import resource
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def limits(seconds: float, memory_bytes: int) -> Iterator[None]:
    """End the process when the time is over, and refuse it memory beyond the limit (MemoryError)."""
    # This alarm needs no interpreter lock, so a decoder that never returns does not stop it.
    faulthandler.dump_traceback_later(seconds, exit=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    # Private memory alone: address space is taken by the gigabyte without being used.
    resource.setrlimit(resource.RLIMIT_DATA, (_private_bytes() + memory_bytes, hard))
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """The bytes that the kernel counts against RLIMIT_DATA now."""
    for row in Path("/proc/self/status").read_text().splitlines():
        if row.startswith("VmData:"):
            return int(row.split()[1]) << 10
    return 0
