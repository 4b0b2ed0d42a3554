"""A transfer of a file: its progress, and the digest that it is checked by. The bytes go in `presigned`."""

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from ltxtrain_client.upload_source import Source

if TYPE_CHECKING:
    from hashlib import _Hash

# Chunks of 1 MiB between two steps of progress.
HASHED_AT_ONCE = 32


@dataclass(frozen=True)
class Transfer:
    """Progress of an upload or a download."""

    completed_bytes: int
    """Bytes transferred so far, earlier attempts included."""

    total_bytes: int
    """Size of the whole file."""


@dataclass(frozen=True)
class FileDigest:
    """Content address of a file."""

    size_bytes: int
    sha256: str
    """Lowercase hex."""


async def digest_source(source: Source, show: Callable[[Transfer], None] | None = None) -> FileDigest:
    """Hash the bytes of a source in a thread; `show` gets the progress.

    Raises OSError when a file cannot be read, TransferFailed when it changes meanwhile.
    """
    digest, size = hashlib.sha256(), 0
    chunks = source.read(0, source.size_bytes)
    while batch := await asyncio.to_thread(_hash_batch, chunks, digest):
        size += batch
        if show is not None:
            show(Transfer(size, source.size_bytes))
    return FileDigest(size, digest.hexdigest())


def _hash_batch(chunks: Iterator[bytes], digest: "_Hash") -> int:
    """Hash some chunks; returns their size, 0 at the end."""
    size = 0
    for chunk in islice(chunks, HASHED_AT_ONCE):
        digest.update(chunk)
        size += len(chunk)
    return size
