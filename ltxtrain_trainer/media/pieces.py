"""Readers of foreign bytes: the boxes of MP4 and MOV, the elements of Matroska, the chunks of AVI, the parts of a JPEG.

All three containers are made of pieces that carry a name and a length, one after another and inside each other. Any
bytes are accepted: a piece that cannot be read ends its level. A budget bounds the pieces of one file, so that millions
of empty ones cost no more than a large recording does.
"""

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Bytes = bytes | mmap.mmap

# An hour of a camera in fragments of a frame each, twice over; 0.2 s of Python.
MAX_PIECES = 200_000
# A run of zero bytes that is no accident.
HOLE = bytes(64)
START_OF_SCAN, END_OF_IMAGE, LOSSLESS, HUFFMAN_TABLES = b"\xff\xda", b"\xff\xd9", 0xC3, 0xC4
END_OF_BLOCK = 0x00
# At the end of a slice: its length (3 bytes), its state (1), its checksum (4).
SLICE_END_BYTES = 8
MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
EBML, SEGMENT, CLUSTER, TRACKS, CUES = 0x1A45DFA3, 0x18538067, 0x1F43B675, 0x1654AE6B, 0x1C53BB6B


@dataclass(frozen=True, slots=True)
class Piece:
    """A box, element or chunk: its contents lie in start..end, as far as the file reaches, and `next` follows."""

    kind: bytes | int
    start: int
    end: int
    next: int


Reader = Callable[[Bytes, int, int], Piece | None]


def read_box(data: Bytes, place: int, limit: int) -> Piece | None:
    """Read the box of MP4 or MOV at `place`; its parent ends at `limit`."""
    if place + 8 > limit:
        return None
    length, kind = struct.unpack_from(">I4s", data, place)
    start = place + 8
    if length == 1 and place + 16 <= limit:
        length = int.from_bytes(data[start : start + 8], "big")
        start += 8
    elif length == 0:
        length = limit - place
    end = place + length
    return Piece(kind, start, end, end) if end >= start else None


def read_chunk(data: Bytes, place: int, limit: int) -> Piece | None:
    """Read the RIFF chunk at `place`."""
    if place + 8 > limit:
        return None
    kind, length = struct.unpack_from("<4sI", data, place)
    end = place + 8 + length
    return Piece(kind, place + 8, end, end + length % 2)


def read_element(data: Bytes, place: int, limit: int) -> Piece | None:
    """Read the EBML element at `place`; one of unknown length ends with its parent."""
    name, start = _vint(data, place, limit, keep_marker=True)
    length, start = _vint(data, start, limit, keep_marker=False) if name is not None else (None, place)
    if name is None or start > limit or start <= place:
        return None
    end = limit if length is None else start + length
    return Piece(name, start, end, end)


def _vint(data: Bytes, place: int, limit: int, *, keep_marker: bool) -> tuple[int | None, int]:
    """Return an EBML number and where it ends. Its first byte's leading zeros tell its length; all ones: unknown."""
    first = data[place] if place < limit else 0
    if not first:
        return None, limit + 1
    size = 9 - first.bit_length()
    if place + size > limit:
        return None, limit + 1
    value = int.from_bytes(data[place : place + size], "big")
    if keep_marker:
        return value, place + size
    value &= (1 << 7 * size) - 1
    return (None if value == (1 << 7 * size) - 1 else value), place + size


class Pieces:
    """All pieces of a file, level by level, within one budget."""

    def __init__(self, data: Bytes, read: Reader, *, budget: int = MAX_PIECES) -> None:
        self.data = data
        self._read = read
        self._left = budget

    @property
    def exhausted(self) -> bool:
        """Whether pieces were left out because there are too many."""
        return self._left <= 0

    def within(self, parent: Piece | None = None, *, skip: int = 0) -> Iterator[Piece]:
        """Yield the children of a piece, or the outermost pieces. skip: bytes before the first child."""
        place = parent.start + skip if parent else 0
        limit = min(parent.end, len(self.data)) if parent else len(self.data)
        while place < limit and self._left > 0:
            self._left -= 1
            piece = self._read(self.data, place, limit)
            if piece is None or piece.next <= place:
                return
            yield piece
            place = piece.next

    def find(self, parent: Piece | None, *path: bytes | int) -> Piece | None:
        """Return the first piece at the end of a path of kinds."""
        for kind in path:
            found = next((piece for piece in self.within(parent) if piece.kind == kind), None)
            if found is None:
                return None
            parent = found
        return parent

    def body(self, piece: Piece, size: int) -> bytes:
        """Return the first bytes of a piece's contents; fewer where it, or the file, has no more."""
        return bytes(self.data[piece.start : min(piece.end, piece.start + size)])

    def number(self, piece: Piece) -> int:
        """Return the unsigned integer that is a piece's contents, big end first; only its first eight bytes count."""
        return int.from_bytes(self.body(piece, 8), "big")


@contextmanager
def mapped(path: Path) -> Iterator[Bytes]:
    """Map a file into memory; pages are read as they are looked at."""
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            yield b""
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def pieces_of(data: Bytes) -> Pieces | None:
    """Return the pieces of a file by the format that its first bytes show; None for any other format."""
    head = bytes(data[:12])
    if head[:4] == b"RIFF":
        return Pieces(data, read_chunk)
    if head[:4] == EBML.to_bytes(4, "big"):
        return Pieces(data, read_element)
    return Pieces(data, read_box) if head[4:8].isalnum() else None


def jpeg_has_hole(jpeg: bytes) -> bool:
    """Whether a part of a JPEG was lost: zeros stand where pixels are, and a decoder takes them for a code.

    Headers may hold any, and so may what follows its end. Inside, flat pictures are long runs of zeros where an empty
    block has a code of zeros alone, as coders choose that make their own tables; so they are in lossless JPEG.
    """
    start = jpeg.find(START_OF_SCAN)
    if start < 0 or HOLE not in jpeg[start:]:
        return False
    segments = list(_jpeg_segments(jpeg[:start]))
    if any(kind == LOSSLESS for kind, _ in segments):
        return False
    flat = any(kind == HUFFMAN_TABLES and _empty_block_is_zeros(body) for kind, body in segments)
    for scan in jpeg[start:].split(START_OF_SCAN)[1:]:
        pixels, end, _ = scan.partition(END_OF_IMAGE)
        if HOLE in pixels and (not flat or (not end and pixels.endswith(HOLE))):
            return True
    return False


def _jpeg_segments(header: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of each segment before the first scan."""
    place = 2
    while place + 4 <= len(header) and header[place] == 0xFF:
        length = int.from_bytes(header[place + 2 : place + 4], "big")
        yield header[place + 1], header[place + 4 : place + 2 + length]
        place += 2 + max(length, 2)


def _empty_block_is_zeros(tables: bytes) -> bool:
    """Whether a table for AC gives its shortest code, which is all zeros, to the end of a block."""
    place = 0
    while place + 17 <= len(tables):
        count = sum(tables[place + 1 : place + 17])
        if tables[place] >> 4 == 1 and tables[place + 17 : place + 18] == bytes([END_OF_BLOCK]):
            return True
        place += 17 + count
    return False


def ffv1_is_intact(frame: bytes) -> bool:
    """Whether a frame of FFV1 is made of slices that end with their length and a checksum (RFC 9043), which is right.

    Decoders show a slice whose checksum is wrong as they showed it before, or as they read it.
    """
    end = len(frame)
    while end >= SLICE_END_BYTES:
        start = end - SLICE_END_BYTES - int.from_bytes(frame[end - SLICE_END_BYTES : end - SLICE_END_BYTES + 3], "big")
        if start < 0 or _msb_first_crc(frame[start:end]):
            return False
        end = start
    return end == 0 and bool(frame)


def _msb_first_crc(data: bytes) -> int:
    """Return the CRC-32 of zlib's polynomial, 0 at the beginning, whose bits and whose result are mirrored."""
    return zlib.crc32(data.translate(MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
