"""The records of a zip as they lie in the file (APPNOTE 6.3.10), read as tolerantly as other tools read them.

What is needed of a record is taken and the rest ignored. The cost is linear in the bytes of the records that are read:
no record is kept, and none is parsed beyond what an honest writer puts into it.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

LOCAL, CENTRAL, END, END64, LOCATOR = b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7"
# Digital signature: may stand behind the last entry.
SIGNATURE = b"PK\5\5"
FIRST_PART = b"PK\7\x08" + LOCAL
LOCAL_BYTES, CENTRAL_BYTES, END_BYTES, LOCATOR_BYTES, END64_BYTES = 30, 46, 22, 20, 56
MAX_COMMENT_BYTES = 0xFFFF
SENTINEL16, SENTINEL32 = 0xFFFF, 0xFFFFFFFF
WRAP = 1 << 32
ZIP64_FIELD, UNICODE_PATH_FIELD = 0x0001, 0x7075
STREAMED_FLAG = 0x8
# Extra fields of one entry that are looked at; writers add half a dozen.
MAX_FIELDS = 64
# Zeros behind an archive that are skipped: block devices, tapes and transfers fill up their last block.
MAX_PADDING_BYTES = 64 << 20
BLOCK_BYTES = 1 << 20


class Unreadable(Exception):
    """The file is no zip that can be read; the text says what was seen and what to do."""

    def __init__(self, text: str, *, in_parts: bool = False) -> None:
        super().__init__(text)
        self.in_parts = in_parts


class NotAZip(Unreadable):
    """The file neither begins nor ends as a zip does."""


@dataclass(frozen=True, slots=True)
class Directory:
    """Position of the central directory in the file; `shift` is how many bytes stand before the archive itself."""

    start: int
    end: int
    shift: int


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of the central directory."""

    name: bytes
    flags: int
    method: int
    crc: int
    compressed_size: int
    size: int
    # DOS attributes in the low byte, Unix mode in the upper half.
    attributes: int
    # Position of the local header in the file.
    offset: int
    # Body of the Unicode Path field; empty: there is none.
    unicode_path: bytes
    # Why the entry cannot be unpacked; empty: nothing is known against it.
    damage: str


def find_directory(file: IO[bytes], max_entries: int) -> Directory:
    """Locate the directory by the end record whose comment ends the file, or else by one that something follows.

    Raises Unreadable.
    """
    size = file.seek(0, os.SEEK_END)
    exact, others, in_parts = _end_records(file, size)
    found = [directory for position in exact if (directory := _directory(file, position)) is not None]
    # The signature may stand in the comment, even as a whole record: the archive is the one that has files.
    if filled := [directory for directory in found if directory.start < directory.end]:
        return filled[0]
    file.seek(0)
    begins_as_zip = file.read(2) == LOCAL[:2]
    for position in others:
        directory = _directory(file, position)
        # An archive that is stored inside of a broken one has other offsets; so has one that is wrapped into a message.
        if directory is not None and directory.start < directory.end and not (directory.shift and begins_as_zip):
            return directory
    if found:
        return found[0]
    if in_parts:
        raise Unreadable(
            "This is the last part of an archive in several parts. Make one archive of one part.", in_parts=True
        )
    if exact:
        text = "The archive's directory is damaged: it is not where the archive's end says."
        raise Unreadable(f"{text} Make the archive again.")
    return _directory_by_walking(file, size, max_entries)


def read_records(file: IO[bytes], directory: Directory) -> Iterator[Record]:
    """Every entry in the order of the directory. Raises Unreadable where an entry should be and is not."""
    file.seek(directory.start)
    position, index = directory.start, 0
    # macOS writes archives of more than 4 GB without Zip64: of every position, the directory's among them, it keeps 32
    # bits, and the entries stand in the order of the file.
    wraps = directory.shift > 0 and directory.shift % WRAP == 0
    shift, last = 0 if wraps else directory.shift, 0
    while position + CENTRAL_BYTES <= directory.end:
        header = file.read(CENTRAL_BYTES)
        if header[:4] != CENTRAL or len(header) < CENTRAL_BYTES:
            if header[:4] in (SIGNATURE, END64, LOCATOR, END):
                return
            raise Unreadable(f"The archive's directory is damaged at its entry {index + 1}. Make the archive again.")
        flags, method, crc, packed, size, name_bytes, extra_bytes, comment_bytes = struct.unpack(
            "<8xHH4xLLLHHH12x", header
        )
        attributes, offset = struct.unpack("<38xLL", header)
        name, extra = file.read(name_bytes), file.read(extra_bytes)
        file.seek(comment_bytes, os.SEEK_CUR)
        fields = _extra_fields(extra)
        (size, packed, offset), damage = _zip64((size, packed, offset), fields.get(ZIP64_FIELD, b""))
        shift += WRAP if wraps and offset < last else 0
        last = offset
        yield Record(
            name=name,
            flags=flags,
            method=method,
            crc=crc,
            compressed_size=packed,
            size=size,
            attributes=attributes,
            offset=offset + shift,
            unicode_path=fields.get(UNICODE_PATH_FIELD, b""),
            damage=damage,
        )
        position += CENTRAL_BYTES + name_bytes + extra_bytes + comment_bytes
        index += 1


def _end_records(file: IO[bytes], size: int) -> tuple[list[int], list[int], bool]:
    """Positions of end records whose comment ends the file, first ones first; of others near the end, last ones first;
    and whether the former belong to an archive in several parts."""
    data_end = size - _padding(file, size)
    start = max(0, data_end - END_BYTES - MAX_COMMENT_BYTES)
    file.seek(start)
    # The record may end in zeros itself.
    tail = file.read(min(size, data_end + END_BYTES) - start)
    exact: list[int] = []
    others: list[int] = []
    in_parts = False
    at = tail.find(END)
    while at >= 0:
        if len(tail) - at >= END_BYTES:
            disk, first_disk, comment_bytes = struct.unpack_from("<4xHH12xH", tail, at)
            whole = {disk, first_disk} <= {0, SENTINEL16}
            ends_the_file = start + at + END_BYTES + comment_bytes == size
            if whole:
                (exact if ends_the_file else others).append(start + at)
            in_parts = in_parts or (ends_the_file and not whole)
        at = tail.find(END, at + 1)
    return exact, others[::-1], in_parts


def _padding(file: IO[bytes], size: int) -> int:
    """Zero bytes at the end of the file, as far as they are skipped."""
    zeros = 0
    while zeros < min(size, MAX_PADDING_BYTES):
        count = min(BLOCK_BYTES, size - zeros)
        file.seek(size - zeros - count)
        block = file.read(count)
        zeros += count - len(block.rstrip(b"\0"))
        if block.strip(b"\0"):
            break
    return zeros


def _directory(file: IO[bytes], position: int) -> Directory | None:
    """The directory that the end record at `position` describes; None when there is none at that place."""
    file.seek(position)
    count, directory_bytes, offset = struct.unpack("<10xHLL2x", file.read(END_BYTES))
    end = position
    if (end64 := _end64(file, position)) is not None:
        end, count64, bytes64, offset64 = end64
        count = count64 if count == SENTINEL16 else count
        directory_bytes = bytes64 if directory_bytes == SENTINEL32 else directory_bytes
        offset = offset64 if offset == SENTINEL32 else offset
    if not count and not directory_bytes:
        return Directory(end, end, 0)
    for start in (end - directory_bytes, offset):
        if 0 <= start < end:
            file.seek(start)
            if file.read(4) == CENTRAL:
                return Directory(start, end, _shift(file, start, start - offset))
    return None


def _shift(file: IO[bytes], start: int, shift: int) -> int:
    """How far the entries are from where the directory says: as far as itself, unless only its own place is wrong."""
    if shift and shift % WRAP:
        file.seek(start)
        (offset,) = struct.unpack("<42xL", file.read(CENTRAL_BYTES).ljust(CENTRAL_BYTES, b"\0"))
        for found in (shift, 0):
            file.seek(max(offset + found, 0))
            if offset + found >= 0 and file.read(4) == LOCAL:
                return found
    return shift


def _end64(file: IO[bytes], position: int) -> tuple[int, int, int, int] | None:
    """Position, entries, bytes and offset by the Zip64 end record of the end record at `position`; None without one."""
    at = position - LOCATOR_BYTES
    if at < 0:
        return None
    file.seek(at)
    locator = file.read(LOCATOR_BYTES)
    if locator[:4] != LOCATOR:
        return None
    # Right before its locator; elsewhere when it is longer than usual, then where the locator says.
    for place in (at - END64_BYTES, struct.unpack("<8xQ4x", locator)[0]):
        if 0 <= place <= at - END64_BYTES:
            file.seek(place)
            record = file.read(END64_BYTES)
            if record[:4] == END64:
                return place, *struct.unpack("<32xQQQ", record)
    return None


def _directory_by_walking(file: IO[bytes], size: int, max_entries: int) -> Directory:
    """The directory of an archive without an end record near its end, by its local headers. Raises Unreadable."""
    file.seek(0)
    head = file.read(len(FIRST_PART))
    if head == FIRST_PART:
        raise Unreadable("This is the first part of an archive in several parts. Make one archive of one part.")
    unknown = (
        "This begins as a zip and does not end as one: its end is missing, or something else was added behind it. "
        "Make or upload it again."
    )
    if not head.startswith(LOCAL):
        raise NotAZip("This is not a zip archive.")
    position = 0
    for _ in range(max_entries + 1):
        file.seek(position)
        header = file.read(LOCAL_BYTES)
        if header[:4] != LOCAL or len(header) < LOCAL_BYTES:
            break
        flags, packed, name_bytes, extra_bytes = struct.unpack("<6xH10xL4xHH", header)
        if flags & STREAMED_FLAG or packed == SENTINEL32:
            raise Unreadable(unknown)
        position += LOCAL_BYTES + name_bytes + extra_bytes + packed
        if position > size:
            text = f"The archive is cut off: its last file needs {position - size} bytes more than there are."
            raise Unreadable(f"{text} Make or upload it again.")
    start = position
    for _ in range(max_entries + 1):
        file.seek(position)
        header = file.read(CENTRAL_BYTES)
        if header[:4] in (SIGNATURE, END, END64) and position > start:
            return Directory(start, position, 0)
        if header[:4] != CENTRAL or len(header) < CENTRAL_BYTES:
            break
        position += CENTRAL_BYTES + sum(struct.unpack("<28xHHH12x", header))
    if position >= size or len(header) < CENTRAL_BYTES:
        raise Unreadable("The archive is cut off: it ends inside of its directory. Make or upload it again.")
    raise Unreadable(unknown)


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """Extra fields by their identity, the first of each; one that claims more bytes than there are ends them."""
    fields: dict[int, bytes] = {}
    position = 0
    for _ in range(MAX_FIELDS):
        if position + 4 > len(extra):
            break
        identity, size = struct.unpack_from("<HH", extra, position)
        position += 4
        if position + size > len(extra):
            break
        fields.setdefault(identity, extra[position : position + size])
        position += size
    return fields


def _zip64(values: tuple[int, int, int], field: bytes) -> tuple[tuple[int, int, int], str]:
    """Size, compressed size and offset, those that do not fit into 32 bits taken from the Zip64 field in this order."""
    found = list(values)
    position = 0
    for index, value in enumerate(values):
        if value != SENTINEL32:
            continue
        if position + 8 > len(field):
            # Four gigabytes less a byte are a size, too; nothing is a file that begins there.
            return values, "its Zip64 field, which holds its sizes, is missing or damaged"
        found[index] = struct.unpack_from("<Q", field, position)[0]
        position += 8
    return (found[0], found[1], found[2]), ""
