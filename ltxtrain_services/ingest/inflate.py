"""The compression methods of zip, each a bounded piece at a time: however an entry is made, memory stays flat."""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import inflate64
import zstandard

STORED, DEFLATE, DEFLATE64, BZIP2, LZMA, ZSTANDARD, XZ = 0, 8, 9, 12, 14, 93, 95
METHODS = {
    STORED: "stored",
    DEFLATE: "deflate",
    DEFLATE64: "Deflate64",
    BZIP2: "bzip2",
    LZMA: "LZMA",
    ZSTANDARD: "Zstandard",
    XZ: "XZ",
}
# Small enough to stay in a processor's cache between checksum, digest and write.
PIECE_BYTES = 1 << 19
# Deflate64 may copy 64 KiB for two bytes of input and its decoder has no output limit: it is fed by the hundred.
DEFLATE64_FEED_BYTES = 256
MAX_WINDOW_BYTES = 64 << 20


class EntryCorrupt(Exception):
    """An entry's bytes are damaged; the text says how."""


class _Bounded(Protocol):
    """The interface that bz2 and lzma decompressors share."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def inflate(method: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Unpack an entry's raw bytes in pieces of at most a few MiB. Raises EntryCorrupt."""
    if method not in METHODS:
        raise EntryCorrupt(f"compression method {method} is not supported")
    try:
        yield from _DECODERS[method](pieces)
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError, OSError, RuntimeError) as error:
        raise EntryCorrupt(f"its {METHODS[method]} data are damaged") from error


def _deflate(pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in pieces:
        while piece and not inflater.eof:
            yield inflater.decompress(piece, PIECE_BYTES)
            piece = inflater.unconsumed_tail
    yield inflater.flush()


def _deflate64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    inflater = inflate64.Inflater()
    for piece in pieces:
        for start in range(0, len(piece), DEFLATE64_FEED_BYTES):
            if inflater.eof:
                return
            yield bytes(inflater.inflate(piece[start : start + DEFLATE64_FEED_BYTES]))


def _bounded(decompressor: _Bounded, pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        while not decompressor.eof:
            yield decompressor.decompress(piece, PIECE_BYTES)
            piece = b""
            if decompressor.needs_input:
                break
    while not decompressor.eof and not decompressor.needs_input:
        yield decompressor.decompress(b"", PIECE_BYTES)


def _bzip2(pieces: Iterable[bytes]) -> Iterator[bytes]:
    return _bounded(bz2.BZ2Decompressor(), pieces)


def _xz(pieces: Iterable[bytes]) -> Iterator[bytes]:
    return _bounded(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * MAX_WINDOW_BYTES), pieces)


def _lzma(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Zip puts a version, the length of the properties and the properties before the stream (APPNOTE 5.8.8)."""
    pieces = iter(pieces)
    head = next(pieces, b"")
    length = int.from_bytes(head[2:4], "little")
    properties = head[4 : 4 + length]
    if length != 5 or len(properties) != 5 or properties[0] >= 9 * 5 * 5:
        raise EntryCorrupt("its LZMA header is damaged")
    window = int.from_bytes(properties[1:], "little")
    if window > MAX_WINDOW_BYTES:
        raise EntryCorrupt(f"its LZMA window is larger than {MAX_WINDOW_BYTES >> 20} MiB")
    rest, lc = divmod(properties[0], 9)
    pb, lp = divmod(rest, 5)
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": window, "lc": lc, "lp": lp, "pb": pb}]
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=filters)
    yield from _bounded(decompressor, _with_head(head[4 + length :], pieces))


def _with_head(head: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield head
    yield from pieces


def _zstandard(pieces: Iterable[bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    with decompressor.stream_reader(io.BufferedReader(_Raw(pieces)), read_across_frames=True) as reader:
        while data := reader.read(PIECE_BYTES):
            yield data


class _Raw(io.RawIOBase):
    """A file-like reader over pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


_DECODERS: dict[int, Callable[[Iterable[bytes]], Iterable[bytes]]] = {
    STORED: iter,
    DEFLATE: _deflate,
    DEFLATE64: _deflate64,
    BZIP2: _bzip2,
    LZMA: _lzma,
    ZSTANDARD: _zstandard,
    XZ: _xz,
}
