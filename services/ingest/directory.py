"""The directory of a zip: what is inside, before anything is unpacked; everything that is refused as a whole."""

import stat
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import ReportReason
from ltxtrain_client.enum_words import word

from services.ingest.inflate import METHODS
from services.ingest.names import Kind, UnsafePath, decoded_name, kind_of, printable, safe_path
from services.ingest.sniff import HEAD_BYTES, archive_format
from services.runtime.errors import FailedPrecondition
from services.runtime.settings import Settings

ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
AES = 99
# Below this a high ratio is ordinary text; above it, no video is compressible a hundredfold.
RATIO_FREE_BYTES = 16 << 20
END_BYTES, LOCATOR_BYTES, END64_BYTES, HEADER_BYTES = 22, 20, 56, 46
MAX_COMMENT_BYTES = 65535


@dataclass(frozen=True)
class Entry:
    """One file of the archive."""

    index: int
    # Composed, with slashes, without empty parts; bounded and printable.
    path: str
    kind: Kind
    size: int
    compressed_size: int
    method: int
    crc: int
    # Where its local header begins.
    offset: int
    encrypted: bool
    # Why its name or its kind is refused; empty: it is not.
    unsafe: str


class ArchiveRefused(FailedPrecondition):
    """The archive as a whole; `entries` are the paths concerned, with one reason and what is wrong with each."""

    def __init__(
        self,
        reason: "ErrorReason",
        text: str,
        *,
        metadata: dict[str, object] | None = None,
        entries: Sequence[tuple[str, str]] = (),
        line_reason: "ReportReason" = ReportReason.REPORT_REASON_UNSPECIFIED,
    ) -> None:
        values = dict(metadata or {}) | ({"path": entries[0][0]} if entries else {})
        super().__init__(reason, text, metadata=values, subjects=entries, kind=_name(line_reason))
        self.entries = list(entries)
        self.line_reason = line_reason


def read_directory(archive: Path, settings: Settings) -> list[Entry]:
    """Every file of the archive in the order of its directory. Raises ArchiveRefused when there is no telling."""
    with archive.open("rb") as file:
        count = _count(file, settings.archive_max_entries)
        if count > settings.archive_max_entries:
            text = f"The archive has more than the {settings.archive_max_entries} entries that are unpacked at most."
            metadata: dict[str, object] = {"maximumEntries": settings.archive_max_entries}
            raise ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE, text, metadata=metadata)
        try:
            with zipfile.ZipFile(file) as directory:
                infos = [info for info in directory.infolist() if not info.orig_filename.endswith(("/", "\\"))]
        except NotImplementedError as error:
            raise _unsupported(f"The archive needs what is not supported: {error}.") from None
        except (zipfile.BadZipFile, struct.error, UnicodeError, ValueError, OverflowError, EOFError, OSError) as error:
            raise unreadable(f"The archive's directory is damaged ({error}). Make the archive again.") from None
    return [_entry(index, info) for index, info in enumerate(infos)]


def check_directory(entries: Sequence[Entry], archive_bytes: int, settings: Settings) -> None:
    """Raises ArchiveRefused for what makes the archive as a whole unusable."""
    _refuse_unsafe(entries)
    _refuse_encrypted(entries)
    _refuse_large(entries, archive_bytes, settings)
    _refuse_methods(entries)


def unreadable(text: str) -> ArchiveRefused:
    return ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_UNREADABLE, text)


def _count(file: IO[bytes], limit: int) -> int:
    """Entries of the directory, at most limit + 1: it is walked without keeping it, however many there are."""
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(HEAD_BYTES)
    position, directory_bytes = _end(file, size, head)
    count, end = 0, position + directory_bytes
    while position + HEADER_BYTES <= end and count <= limit:
        file.seek(position)
        header = file.read(HEADER_BYTES)
        if not header.startswith(b"PK\1\2") or len(header) < HEADER_BYTES:
            break  # zipfile says what is wrong
        position += HEADER_BYTES + sum(struct.unpack("<HHH", header[28:34]))
        count += 1
    return count


def _end(file: IO[bytes], size: int, head: bytes) -> tuple[int, int]:
    """Where the directory begins and how long it is, by the record at the end of the file."""
    tail_bytes = min(size, END_BYTES + MAX_COMMENT_BYTES)
    file.seek(size - tail_bytes)
    tail = file.read(tail_bytes)
    found = tail.rfind(b"PK\5\6")
    if found < 0 or len(tail) - found < END_BYTES:
        raise unreadable(_not_a_zip(head, size))
    disk, first_disk, _, _, directory_bytes, _ = struct.unpack("<4x4HLL2x", tail[found : found + END_BYTES])
    position = size - tail_bytes + found
    if disk not in (0, 0xFFFF) or first_disk not in (0, 0xFFFF):
        raise _unsupported("This is the last part of an archive in several parts. Make one archive of one part.")
    file.seek(max(0, position - LOCATOR_BYTES))
    if file.read(4) == b"PK\6\7":
        file.seek(max(0, position - LOCATOR_BYTES - END64_BYTES))
        end64 = file.read(END64_BYTES)
        if end64.startswith(b"PK\6\6") and len(end64) == END64_BYTES:
            directory_bytes = struct.unpack("<Q", end64[40:48])[0]
            position -= LOCATOR_BYTES + END64_BYTES
    if directory_bytes > position:
        raise unreadable("The archive's directory is damaged. Make the archive again.")
    return position - directory_bytes, directory_bytes


def _not_a_zip(head: bytes, size: int) -> str:
    if not size:
        return "The file is empty."
    if head.startswith(b"PK\7\x08PK"):
        return "This is the first part of an archive in several parts. Make one archive of one part."
    if head.startswith(b"PK\3\4"):
        return "The archive is cut off: it begins as a zip but has no directory at its end. Make or upload it again."
    seems = archive_format(head)
    return f"This is not a zip archive{f' but {seems}' if seems else ''}."


def _entry(index: int, info: zipfile.ZipInfo) -> Entry:
    name = decoded_name(info.orig_filename, info.flag_bits, info.extra)
    try:
        path, unsafe = printable(safe_path(name)), _special(info)
    except UnsafePath as error:
        path, unsafe = printable(name), str(error)
    return Entry(
        index=index,
        path=path,
        kind=kind_of(path),
        size=info.file_size,
        compressed_size=info.compress_size,
        method=info.compress_type,
        crc=info.CRC,
        offset=info.header_offset,
        encrypted=bool(info.flag_bits & ENCRYPTED_FLAGS) or info.compress_type == AES,
        unsafe=unsafe,
    )


def _special(info: zipfile.ZipInfo) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "a symbolic link"
    return "not a plain file" if kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK) else ""


def _refuse_unsafe(entries: Sequence[Entry]) -> None:
    if found := [(entry.path, entry.unsafe) for entry in entries if entry.unsafe]:
        text = f"{found[0][0]!r} is {found[0][1]}. Archives hold plain files below one folder."
        reason = ReportReason.REPORT_REASON_UNSAFE_PATH
        raise ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_PATH_UNSAFE, text, entries=found, line_reason=reason)


def _refuse_encrypted(entries: Sequence[Entry]) -> None:
    if found := [(entry.path, "encrypted") for entry in entries if entry.encrypted]:
        text = f"The archive is encrypted ({found[0][0]!r}). Make it again without a password."
        reason = ReportReason.REPORT_REASON_ENTRY_ENCRYPTED
        raise ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_ENCRYPTED, text, entries=found, line_reason=reason)


def _refuse_large(entries: Sequence[Entry], archive_bytes: int, settings: Settings) -> None:
    for refused, text, metadata in _too_large(entries, archive_bytes, settings):
        raise ArchiveRefused(
            ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE,
            text,
            metadata=metadata,
            entries=refused,
            line_reason=ReportReason.REPORT_REASON_ENTRY_TOO_LARGE,
        )


def _too_large(
    entries: Sequence[Entry], archive_bytes: int, settings: Settings
) -> Iterator[tuple[list[tuple[str, str]], str, dict[str, object]]]:
    limit = settings.archive_max_ratio
    dense = [
        (entry.path, f"{entry.size} bytes in {entry.compressed_size}")
        for entry in entries
        if entry.size > RATIO_FREE_BYTES and entry.size > limit * entry.compressed_size
    ]
    if dense:
        text = f"{dense[0][0]!r} unpacks to more than {limit:g} times its size ({dense[0][1]}): no video does."
        yield dense, text, {"maximumRatio": limit}
    total = sum(entry.size for entry in entries)
    if total > settings.archive_max_bytes:
        text = f"The archive unpacks to {total} bytes, {settings.archive_max_bytes} are the most."
        yield [], text, {"totalBytes": total, "maximumBytes": settings.archive_max_bytes}
    if sum(entry.compressed_size for entry in entries) > archive_bytes:
        yield [], "The archive's entries overlap: it unpacks to more than it holds.", {}


def _refuse_methods(entries: Sequence[Entry]) -> None:
    found = [
        (entry.path, f"compression method {entry.method}")
        for entry in entries
        if entry.method not in METHODS and entry.kind in (Kind.VIDEO, Kind.CAPTION)
    ]
    if found:
        names = ", ".join(METHODS.values())
        text = f"{found[0][0]!r} uses {found[0][1]}, which is not supported. Use one of: {names}."
        raise ArchiveRefused(
            ErrorReason.ERROR_REASON_ARCHIVE_UNSUPPORTED,
            text,
            entries=found,
            line_reason=ReportReason.REPORT_REASON_COMPRESSION_UNSUPPORTED,
        )


def _unsupported(text: str) -> ArchiveRefused:
    return ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_UNSUPPORTED, text)


def _name(reason: "ReportReason") -> str:
    return word(ReportReason.DESCRIPTOR, reason)
