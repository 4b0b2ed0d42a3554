"""The files of a zip before anything is unpacked, and everything for which an archive is refused as a whole."""

import stat
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import ReportReason
from ltxtrain_client.enum_words import word

from ltxtrain_services.ingest.inflate import METHODS
from ltxtrain_services.ingest.names import Kind, UnsafePath, decoded_name, kind_of, printable, safe_path
from ltxtrain_services.ingest.sniff import HEAD_BYTES, archive_format
from ltxtrain_services.ingest.zip_format import NotAZip, Record, Unreadable, find_directory, read_records
from ltxtrain_services.runtime.errors import FailedPrecondition
from ltxtrain_services.runtime.settings import Settings

ENCRYPTED_FLAGS = 0x1 | 0x40 | 0x2000
AES = 99
# Below this a high ratio is ordinary text; above it, no video is compressible a hundredfold.
RATIO_FREE_BYTES = 16 << 20
DOS_FOLDER = 0x10
# Hidden and of the system: what Windows and its programs keep for themselves, as the covers of Media Player.
DOS_PROTECTED = 0x06


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
    # Position of its local header in the file.
    offset: int
    encrypted: bool
    # Why its name or its kind is refused; empty: it is not.
    unsafe: str
    # Why it cannot be unpacked although the archive as a whole can; empty: nothing is known against it.
    damage: str = ""


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
    """Every file of the archive in the order of its directory. Raises ArchiveRefused when it cannot be read."""
    limit = settings.archive_max_entries
    entries: list[Entry] = []
    with archive.open("rb") as file:
        head = file.read(HEAD_BYTES)
        try:
            # One at a time: a record may have 128 KiB of name and extra fields, an entry keeps a thousand characters.
            for index, record in enumerate(read_records(file, find_directory(file, limit))):
                if index >= limit:
                    raise _too_many(limit)
                if not _is_folder(record):
                    entries.append(_entry(index, record))
        except NotAZip as error:
            raise unreadable(_not_a_zip(head) or str(error)) from None
        except Unreadable as error:
            raise _unsupported(str(error)) if error.in_parts else unreadable(str(error)) from None
    return _files(entries)


def check_directory(entries: Sequence[Entry], archive_bytes: int, settings: Settings) -> None:
    """Raises ArchiveRefused for what makes the archive as a whole unusable."""
    _refuse_unsafe(entries)
    _refuse_encrypted(entries)
    _refuse_large(entries, archive_bytes, settings)
    _refuse_methods(entries)


def unreadable(text: str) -> ArchiveRefused:
    return ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_UNREADABLE, text)


def _not_a_zip(head: bytes) -> str:
    """A sentence about a file that is something else; empty when nothing is known of it."""
    if not head:
        return "The file is empty."
    seems = archive_format(head)
    return f"This is not a zip archive but {seems}." if seems else ""


def _files(entries: Sequence[Entry]) -> list[Entry]:
    """Entries without folders that nothing marks: empty "files" that other files lie in."""
    paths = sorted(entry.path for entry in entries)

    def is_folder(entry: Entry) -> bool:
        inside = f"{entry.path}/"
        place = bisect_left(paths, inside)
        return not entry.size and place < len(paths) and paths[place].startswith(inside)

    return [entry for entry in entries if not is_folder(entry)]


def _is_folder(record: Record) -> bool:
    """Whether the entry is a folder, by the slash of its name, or by an attribute where it has no contents."""
    marked = record.attributes & DOS_FOLDER or stat.S_ISDIR(record.attributes >> 16)
    return record.name.endswith((b"/", b"\\")) or bool(marked and not record.size)


def _entry(index: int, record: Record) -> Entry:
    name = decoded_name(record.name, record.flags, record.unicode_path)
    try:
        path, unsafe = printable(safe_path(name)), _special(record)
    except UnsafePath as error:
        path, unsafe = printable(name), str(error)
    return Entry(
        index=index,
        path=path,
        kind=Kind.JUNK if record.attributes & DOS_PROTECTED == DOS_PROTECTED else kind_of(path),
        size=record.size,
        compressed_size=record.compressed_size,
        method=record.method,
        crc=record.crc,
        offset=record.offset,
        encrypted=bool(record.flags & ENCRYPTED_FLAGS) or record.method == AES,
        unsafe=unsafe,
        damage=record.damage,
    )


def _special(record: Record) -> str:
    kind = stat.S_IFMT(record.attributes >> 16)
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
    # Entries that reach beyond the end of the archive are skipped one by one.
    whole = [entry for entry in entries if not entry.damage and entry.offset + entry.compressed_size <= archive_bytes]
    dense = [
        (entry.path, f"{entry.size} bytes in {entry.compressed_size}")
        for entry in whole
        if entry.size > RATIO_FREE_BYTES and entry.size > limit * entry.compressed_size
    ]
    if dense:
        text = f"{dense[0][0]!r} unpacks to more than {limit:g} times its size ({dense[0][1]}): no video does."
        yield dense, text, {"maximumRatio": limit}
    total = sum(entry.size for entry in whole)
    if total > settings.archive_max_bytes:
        text = f"The archive unpacks to {total} bytes, {settings.archive_max_bytes} are the most."
        yield [], text, {"totalBytes": total, "maximumBytes": settings.archive_max_bytes}
    if total > RATIO_FREE_BYTES and total > limit * archive_bytes:
        text = f"The archive unpacks to more than {limit:g} times its size ({total} bytes): no videos do."
        yield [], text, {"maximumRatio": limit, "totalBytes": total}
    if sum(entry.compressed_size for entry in whole) > archive_bytes:
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


def _too_many(limit: int) -> ArchiveRefused:
    text = f"The archive has more than the {limit} entries that are unpacked at most."
    return ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE, text, metadata={"maximumEntries": limit})


def _unsupported(text: str) -> ArchiveRefused:
    return ArchiveRefused(ErrorReason.ERROR_REASON_ARCHIVE_UNSUPPORTED, text)


def _name(reason: "ReportReason") -> str:
    return word(ReportReason.DESCRIPTOR, reason)
