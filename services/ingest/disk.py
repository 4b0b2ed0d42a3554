"""A full disk is nobody's mistake and passes: the work is tried again later."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from services.runtime.work import Retryable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no space left."""
    return isinstance(error, OSError) and error.errno in _NO_SPACE


@contextlib.contextmanager
def retried_when_full(folder: Path) -> Iterator[None]:
    """Raises Retryable in place of an error that says that there is no space left."""
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise Retryable(f"There is no space left in {folder}.") from error
        raise
