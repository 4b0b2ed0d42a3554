"""Unpack entries of a zip: checked and hashed while they are written, under names of our own."""

import hashlib
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from services.ingest.directory import Entry
from services.ingest.inflate import PIECE_BYTES, EntryCorrupt, inflate

LOCAL_HEADER_BYTES = 30


class Stopped(Exception):
    """The work was cancelled while an entry was unpacked."""


@dataclass(frozen=True)
class Unpacked:
    """An entry's bytes on disk."""

    path: Path
    size: int
    # Lowercase hex.
    sha256: str


class Archive:
    """A zip on disk. `stop` ends an unpacking in another thread with Stopped."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._hasher = ThreadPoolExecutor(1, thread_name_prefix="sha256")
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hasher.shutdown()
        self._file.close()

    def stop(self) -> None:
        self._stopped.set()

    def unpack(self, entry: Entry, target: Path) -> Unpacked:
        """Write the entry to `target`. Raises EntryCorrupt and Stopped; `target` is then absent."""
        digest = hashlib.sha256()
        # The digest of a piece is taken beside the checksum and the write of the next one.
        hashing: Future[None] | None = None
        size = 0
        try:
            with target.open("wb") as file:
                for piece in self._pieces(entry):
                    if self._stopped.is_set():
                        raise Stopped
                    if hashing is not None:
                        hashing.result()
                    hashing = self._hasher.submit(digest.update, piece)
                    file.write(piece)
                    size += len(piece)
                if hashing is not None:
                    hashing.result()
        except (EntryCorrupt, Stopped):
            target.unlink()
            raise
        return Unpacked(target, size, digest.hexdigest())

    def read(self, entry: Entry) -> bytes:
        """A small entry whole. Raises EntryCorrupt."""
        return b"".join(self._pieces(entry))

    def head(self, entry: Entry, count: int) -> bytes:
        """The first bytes of an entry, fewer where it is shorter or damaged."""
        head = b""
        try:
            for piece in inflate(entry.method, self._raw(entry, limit=4 * count)):
                head += piece[: count - len(head)]
                if len(head) >= count:
                    break
        except EntryCorrupt:
            pass
        return head

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        """What the entry unpacks to, as the directory announces it. Raises EntryCorrupt."""
        size, crc = 0, 0
        for piece in inflate(entry.method, self._raw(entry)):
            size += len(piece)
            if size > entry.size:
                raise EntryCorrupt(f"it unpacks to more than its {entry.size} bytes")
            crc = zlib.crc32(piece, crc)
            if piece:
                yield piece
        if size < entry.size:
            raise EntryCorrupt(f"it ends after {size} of {entry.size} bytes")
        if crc != entry.crc:
            raise EntryCorrupt("its checksum does not match")

    def _raw(self, entry: Entry, limit: int | None = None) -> Iterator[bytes]:
        self._file.seek(entry.offset)
        header = self._file.read(LOCAL_HEADER_BYTES)
        if len(header) < LOCAL_HEADER_BYTES or not header.startswith(b"PK\3\4"):
            raise EntryCorrupt("the directory points to where it is not")
        position = entry.offset + LOCAL_HEADER_BYTES + sum(struct.unpack("<HH", header[26:30]))
        left = entry.compressed_size
        if position + left > self._size:
            raise EntryCorrupt("it reaches beyond the end of the archive")
        if limit is not None:
            left = min(left, max(limit, 1024))
        while left > 0:
            self._file.seek(position)
            piece = self._file.read(min(left, PIECE_BYTES))
            if not piece:
                raise EntryCorrupt("the archive ends inside of it")
            position += len(piece)
            left -= len(piece)
            yield piece


def hash_file(path: Path) -> Unpacked:
    """A file that is on disk already."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return Unpacked(path, size, digest.hexdigest())
