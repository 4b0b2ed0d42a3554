"""Bytes to upload: a file, or a zip that is composed of files while it is sent, without a copy on disk."""

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from ltxtrain_client.errors import TransferFailed

CHUNK_BYTES = 1 << 20


class Source(Protocol):
    """Bytes of known size that can be read from any place, several times and by several threads."""

    @property
    def name(self) -> str:
        """File name for messages and reports."""

    @property
    def size_bytes(self) -> int:
        """Number of bytes."""

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """Yield `length` bytes from `offset` in chunks.

        Raises OSError when a file cannot be read, TransferFailed when it has changed.
        """


class FileSource:
    """A file as it is now. Raises OSError when there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self._version = _version(path)
        self.size_bytes = self._version[0]

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """See Source.read."""
        with self.path.open("rb") as file:
            file.seek(offset)
            while length and (chunk := file.read(min(CHUNK_BYTES, length))):
                length -= len(chunk)
                # Before the last chunk: what a store takes is whole with it.
                if not length:
                    self._check()
                yield chunk
        if length:
            raise self._changed()

    def _check(self) -> None:
        if _version(self.path) != self._version:
            raise self._changed()

    def _changed(self) -> TransferFailed:
        return TransferFailed(f"{self.path} changed while it was read. Try again when nothing writes to it.")


class StoredZip:
    """A zip without compression, composed of files. The same files under the same names give the same bytes."""

    def __init__(self, name: str, files: Mapping[str, Path]) -> None:
        """`files`: path of each file by its name in the archive, with slashes. Raises OSError for a missing file."""
        self.name = name
        self._entries = [_Entry(entry, FileSource(path)) for entry, path in sorted(files.items())]
        offset = 0
        for entry in self._entries:
            entry.offset = offset
            offset += entry.header_bytes + entry.file.size_bytes
        self._directory_offset = offset
        # Every field has a fixed size, so the checksums do not matter here.
        self.size_bytes = offset + len(self._directory([0] * len(self._entries)))
        self._starts = [*(entry.offset for entry in self._entries), offset]

    def read(self, offset: int, length: int) -> Iterator[bytes]:
        """See Source.read. The checksum of a file is computed when its header is read first."""
        end = min(offset + length, self.size_bytes)
        first = max(bisect_right(self._starts, offset) - 1, 0)
        for entry in self._entries[first:]:
            if entry.offset >= end:
                return
            data = entry.offset + entry.header_bytes
            if offset < data:
                yield entry.header()[max(offset - entry.offset, 0) : end - entry.offset]
            start, stop = max(offset, data), min(end, data + entry.file.size_bytes)
            if start < stop:
                yield from entry.file.read(start - data, stop - start)
        if end > self._directory_offset:
            directory = self._directory([entry.crc() for entry in self._entries])
            yield directory[max(offset - self._directory_offset, 0) : end - self._directory_offset]

    def _directory(self, checksums: list[int]) -> bytes:
        """Central directory and its end, both with zip64 fields where a number needs them."""
        records = [entry.directory_record(crc) for entry, crc in zip(self._entries, checksums, strict=True)]
        directory = b"".join(records)
        count, size, offset = len(records), len(directory), self._directory_offset
        end = b""
        if count > _MAX_16 or size >= _MAX_32 or offset >= _MAX_32:
            end = struct.pack(
                "<4sQHHLLQQQQ", b"PK\6\6", 44, _ZIP64_VERSION, _ZIP64_VERSION, 0, 0, count, count, size, offset
            )
            end += struct.pack("<4sLQL", b"PK\6\7", 0, offset + size, 1)
        short_count = min(count, _MAX_16)
        end += struct.pack(
            "<4s4H2LH", b"PK\5\6", 0, 0, short_count, short_count, min(size, _MAX_32), min(offset, _MAX_32), 0
        )
        return directory + end


_MAX_16, _MAX_32 = 0xFFFF, 0xFFFFFFFF
_VERSION, _ZIP64_VERSION = 20, 45
_UNIX = 3 << 8
_UTF8 = 0x800
# 1980-01-01, 00:00: the times of the files do not change the bytes.
_TIME, _DATE = 0, 0x21
_MODE = 0o100644 << 16


class _Entry:
    """A file of the archive: local header (APPNOTE 4.3.7), data, and record in the central directory (4.3.12)."""

    def __init__(self, name: str, file: FileSource) -> None:
        self.file = file
        self.offset = 0
        self._name = name.encode()
        self._crc: int | None = None
        self._large = file.size_bytes >= _MAX_32
        self.header_bytes = 30 + len(self._name) + (20 if self._large else 0)

    def crc(self) -> int:
        if self._crc is None:
            crc = 0
            for chunk in self.file.read(0, self.file.size_bytes):
                crc = zlib.crc32(chunk, crc)
            self._crc = crc
        return self._crc

    def header(self) -> bytes:
        size = self.file.size_bytes
        extra = struct.pack("<HHQQ", 1, 16, size, size) if self._large else b""
        version = _ZIP64_VERSION if self._large else _VERSION
        short = min(size, _MAX_32)
        fields = (version, _UTF8, 0, _TIME, _DATE, self.crc(), short, short, len(self._name), len(extra))
        return struct.pack("<4s5H3L2H", b"PK\3\4", *fields) + self._name + extra

    def directory_record(self, crc: int) -> bytes:
        size = self.file.size_bytes
        long = [size, size] if self._large else []
        long += [self.offset] if self.offset >= _MAX_32 else []
        extra = struct.pack(f"<HH{len(long)}Q", 1, 8 * len(long), *long) if long else b""
        version = _ZIP64_VERSION if long else _VERSION
        short = min(size, _MAX_32)
        fields = (_UNIX | version, version, _UTF8, 0, _TIME, _DATE, crc, short, short, len(self._name), len(extra))
        rest = (0, 0, 0, _MODE, min(self.offset, _MAX_32))
        return struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields, *rest) + self._name + extra


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
