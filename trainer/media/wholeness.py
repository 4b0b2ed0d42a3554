"""Whether a file ends where its container says that it ends: a download that broke off does not.

Demuxers read such a file up to its end without a word.
"""

import struct
from pathlib import Path
from typing import BinaryIO

# Recorders count the head of a RIFF list as part of it, or leave its padding out.
RIFF_SLACK = 16
BOXES = {b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"mdat", b"mfra", b"meta", b"free", b"skip", b"wide", b"uuid"}
EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def missing_bytes(path: Path) -> int:
    """How many bytes the file lacks at its end; 0 where it is whole, or does not tell."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(0)
        if head[:4] == b"RIFF":
            end = _riff_end(file, size) - RIFF_SLACK
        elif head[:4] == EBML.to_bytes(4, "big"):
            end = _matroska_end(file)
        else:
            end = _boxes_end(file, size)
    return max(end - size, 0)


def _boxes_end(file: BinaryIO, size: int) -> int:
    """Of an MP4 or MOV: where the last box ends."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind not in BOXES:
            break
        if length == 1:
            length = int.from_bytes(file.read(8), "big")
        # 0: up to the end of the file, wherever that is.
        if length < 8:
            break
        place += length
    return place


def _riff_end(file: BinaryIO, size: int) -> int:
    """Of an AVI: where its last RIFF list ends; large ones have several."""
    place = 0
    while place + 12 <= size:
        file.seek(place)
        kind, length = struct.unpack("<4sI", file.read(8))
        # A recorder that never finished leaves no length.
        if kind != b"RIFF" or length in (0, 0xFFFFFFFF):
            break
        place += 8 + length + length % 2
    return place


def _matroska_end(file: BinaryIO) -> int:
    """Of a Matroska: where its segment ends."""
    for wanted in (EBML, SEGMENT):
        if int.from_bytes(file.read(4), "big") != wanted:
            return 0
        length = _matroska_length(file)
        if length is None:
            return 0
        if wanted == EBML:
            file.seek(length, 1)
    return file.tell() + (length or 0)


def _matroska_length(file: BinaryIO) -> int | None:
    """A number of 1 to 8 bytes whose leading zeros tell how many; all ones: unknown."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    value = int.from_bytes(first + file.read(more), "big") & ((1 << 7 * (more + 1)) - 1)
    return None if value == (1 << 7 * (more + 1)) - 1 else value
