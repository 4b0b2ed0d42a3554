"""Unpack entries of a zip: checked and hashed while they are written, under names of our own."""

import hashlib
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.inflate import PIECE_BYTES, STORED, EntryCorrupt, inflate
from ltxtrain_services.ingest.zip_format import LOCAL, LOCAL_BYTES

PIECES_AHEAD = 2


class Stopped(Exception):
    """The work was cancelled while an entry was unpacked."""


@dataclass(frozen=True)
class Unpacked:
    """An entry's bytes on disk: in a file of their own, or, for a stored entry, a span of the archive."""

    path: Path
    size: int
    # Lowercase hex.
    sha256: str
    offset: int = 0


class Archive:
    """A zip on disk. `stop` ends an unpacking in another thread with Stopped."""

    def __init__(self, path: Path) -> None:
        self._path = path
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
        """Check and hash the entry, and write it to `target` unless it is stored uncompressed.

        Raises EntryCorrupt, Stopped, and OSError for a full disk; `target` is then absent.
        """
        if entry.method == STORED:
            size, sha256 = self._copy(entry, None)
            return Unpacked(self._path, size, sha256, self._data_offset(entry))
        try:
            with target.open("wb") as file:
                size, sha256 = self._copy(entry, file)
        except (EntryCorrupt, Stopped, OSError):
            target.unlink(missing_ok=True)
            raise
        return Unpacked(target, size, sha256)

    def read(self, entry: Entry) -> bytes:
        """Read a small entry whole. Raises EntryCorrupt."""
        return b"".join(self._pieces(entry))

    def pieces(self, entry: Entry) -> Iterator[bytes]:
        """Read an entry in pieces of at most a few MiB. Raises EntryCorrupt, also after the last piece, and Stopped."""
        for piece in self._pieces(entry):
            if self._stopped.is_set():
                raise Stopped
            yield piece

    def _copy(self, entry: Entry, file: IO[bytes] | None) -> tuple[int, str]:
        digest = hashlib.sha256()
        # A piece is hashed in another thread while the next ones are checked and written.
        hashing: deque[Future[None]] = deque()
        size = 0
        for piece in self.pieces(entry):
            if len(hashing) >= PIECES_AHEAD:
                hashing.popleft().result()
            hashing.append(self._hasher.submit(digest.update, piece))
            if file is not None:
                file.write(piece)
            size += len(piece)
        for last in hashing:
            last.result()
        return size, digest.hexdigest()

    def _pieces(self, entry: Entry) -> Iterator[bytes]:
        """The unpacked bytes, with size and checksum as the directory announces them. Raises EntryCorrupt."""
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

    def _raw(self, entry: Entry) -> Iterator[bytes]:
        position = self._data_offset(entry)
        end = position + entry.compressed_size
        if end > self._size:
            raise EntryCorrupt("it reaches beyond the end of the archive")
        while position < end:
            self._file.seek(position)
            piece = self._file.read(min(end - position, PIECE_BYTES))
            if not piece:
                raise EntryCorrupt("the archive ends inside of it")
            position += len(piece)
            yield piece

    def _data_offset(self, entry: Entry) -> int:
        """Position of the entry's bytes, behind its local header. Raises EntryCorrupt."""
        if entry.damage:
            raise EntryCorrupt(entry.damage)
        self._file.seek(entry.offset)
        header = self._file.read(LOCAL_BYTES)
        if len(header) < LOCAL_BYTES or not header.startswith(LOCAL):
            raise EntryCorrupt("the directory points to where it is not")
        name_bytes, extra_bytes = struct.unpack("<HH", header[26:30])
        return int(entry.offset + LOCAL_BYTES + name_bytes + extra_bytes)


def hash_file(path: Path) -> Unpacked:
    """Hash a file that is on disk already."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
            size += len(piece)
    return Unpacked(path, size, digest.hexdigest())
