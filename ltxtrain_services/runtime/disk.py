"""Disks that are full: an error that says which one and where, in place of an errno."""

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
# What errors say whose number is another or none: of libraries, and of `tempfile` when it can write nowhere.
SAYINGS = (os.strerror(errno.ENOSPC), "No usable temporary directory")


class DiskFull(Exception):
    """A disk has no space left; the text says which. Work that meets it waits, and is tried again."""


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left: its number, or its text where a library kept that alone."""
    return (isinstance(error, OSError) and error.errno in NO_SPACE) or any(text in str(error) for text in SAYINGS)


@contextmanager
def told_when_full(folder: Path | str) -> Iterator[None]:
    """Raises DiskFull for an error of the block that says that there is no space left, for what it writes there."""
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if is_full(error):
            raise DiskFull(f"There is no space left in {folder} on {socket.gethostname()}.") from error
        raise


def temporary_folder() -> str:
    """Where `tempfile` writes, also when it cannot."""
    return tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """A temporary folder for the block. Raises DiskFull."""
    with (
        told_when_full(temporary_folder()),
        tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
    ):
        yield Path(folder)
