"""Zips as other tools write them, made by hand where zipfile cannot."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import inflate64
import zstandard


def make_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def entry(
    name: bytes,
    raw: bytes,
    *,
    size: int,
    crc: int,
    method: int = 0,
    flags: int = 0,
    mode: int = 0o100644,
    attributes: int = 0,
    offset: int = 0,
    extra: bytes = b"",
    compressed_size: int | None = None,
) -> tuple[bytes, bytes]:
    """Local header with data, and directory header, of one entry."""
    packed = len(raw) if compressed_size is None else compressed_size
    common = struct.pack("<HHHHHIIIHH", 20, flags, method, 0, 33, crc, packed, size, len(name), len(extra))
    local = b"PK\3\4" + common + name + extra + raw
    central = struct.pack("<HHHII", 0, 0, 0, mode << 16 | attributes, offset)
    directory = b"PK\1\2" + struct.pack("<BB", 20, 3) + common + central + name + extra
    return local, directory


def build(*entries: tuple[bytes, bytes, Mapping[str, object]], comment: bytes = b"", count: int | None = None) -> bytes:
    """A zip of (name, raw bytes, fields of `entry`); without size and crc, those of raw."""
    body, directory = b"", b""
    for name, raw, fields in entries:
        values: dict[str, Any] = {"size": len(raw), "crc": zlib.crc32(raw), **fields}
        local, central = entry(name, raw, offset=len(body), **values)
        body += local
        directory += central
    number = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, number, number, len(directory), len(body), len(comment))
    return body + directory + end + comment


def deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=-15)
    return packer.compress(data) + packer.flush()


def deflate64(data: bytes) -> bytes:
    packer = inflate64.Deflater()
    return bytes(packer.deflate(data)) + bytes(packer.flush())


PACKERS: dict[int, Callable[[bytes], bytes]] = {
    8: deflate,
    9: deflate64,
    93: lambda data: zstandard.ZstdCompressor().compress(data),
}


def archive_bytes(files: Mapping[str, bytes]) -> bytes:
    """A zip in memory."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()
