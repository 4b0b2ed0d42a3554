"""Disks that are full: an error that says which one and where, in place of an errno. And folders for a moment."""

import errno
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


# Scratch folders in use, each locked by its process for as long as that lives, and those on the way to be.
_SCRATCH, _NEW = "ltxtrain-scratch-", "ltxtrain-new-"


@contextmanager
def scratch_folder(purpose: str) -> Iterator[Path]:
    """A temporary folder for the block; those that killed processes have left are deleted first. Raises DiskFull."""
    with told_when_full(temporary_folder()):
        _sweep()
        new = Path(tempfile.mkdtemp(prefix=f"{_NEW}{purpose}-"))
        with _locked(new):
            folder = new.rename(new.with_name(new.name.replace(_NEW, _SCRATCH, 1)))
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        # Another's, one in use, or one that goes away just now.
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the system takes from who is killed. Raises OSError where another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
