"""Captions from the tables of an archive, kept on disk by clip."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_services.ingest.archive import Archive
from ltxtrain_services.ingest.caption_rows import BadRow, Row, read_rows
from ltxtrain_services.ingest.caption_text import NotText
from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.inflate import EntryCorrupt
from ltxtrain_services.ingest.names import UnsafePath, composed, printable, safe_path, suffix_of
from ltxtrain_services.ingest.report import line

# For a hundred thousand captions of six hundred characters.
MAX_TABLE_BYTES = 64 << 20
# Rows of one kind that a line names.
MAX_NAMED = 3


@dataclass(frozen=True)
class TableCaption:
    """The caption that a table has for a clip."""

    # "metadata.jsonl, line 3".
    source: str
    text: str
    # Another row of the table, or another column of the row, has another caption.
    disputed: bool


@dataclass(slots=True)
class _Place:
    """A caption on disk."""

    table: str
    line: int
    offset: int
    size: int
    digest: int
    disputed: bool


@dataclass
class _Named:
    """How many rows have a fault, and the first of them."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        self.count += 1
        if len(self.first) < MAX_NAMED:
            self.first.append(text)

    def __str__(self) -> str:
        more = self.count - len(self.first)
        return "; ".join(self.first) + (f" and {more} more" if more else "")


class CaptionTables:
    """Captions of clips by the tables that were read; of two tables the one that was read first counts."""

    def __init__(self, spool: Path, clips: Iterable[str]) -> None:
        """`clips` are paths in the archive. The captions go to the file `spool`, which is deleted at the end."""
        self._path = spool
        self._file = spool.open("w+b")
        self._clips = set(clips)
        self._folded: dict[str, str] = {}
        for clip in sorted(self._clips):
            # Two of one name in other letter cases: neither is meant by a third.
            self._folded[clip.casefold()] = "" if clip.casefold() in self._folded else clip
        self._places: defaultdict[str, list[_Place]] = defaultdict(list)
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def captions(self, clip: str) -> list[TableCaption]:
        """The captions of a clip, the one that counts first."""
        return [
            TableCaption(f"{place.table}, line {place.line}", self._read(place), place.disputed)
            for place in self._places.get(clip, ())
        ]

    def read(self, archive: Archive, entry: Entry) -> ReportLine:
        """Read a table; its line of the report. Raises Stopped."""
        if entry.size > MAX_TABLE_BYTES:
            text = f"{entry.size} bytes; a table of captions has {MAX_TABLE_BYTES} at most"
            return line(entry.path, Outcome.OUTCOME_IGNORED, [ReportReason.REPORT_REASON_IGNORED_FILE], text)
        reading = _Reading(entry.path)
        try:
            rows, reading.repair = read_rows(
                lambda: archive.pieces(entry), comma_separated=suffix_of(entry.path) == ".csv"
            )
            self._take(rows, reading)
        except EntryCorrupt as error:
            reason, text = ReportReason.REPORT_REASON_ENTRY_CORRUPT, str(error)
            return line(entry.path, Outcome.OUTCOME_IGNORED, [reason], text)
        except NotText as error:
            reason, text = ReportReason.REPORT_REASON_CAPTION_UNREADABLE, str(error)
            return line(entry.path, Outcome.OUTCOME_IGNORED, [reason], text)
        for clip, place in reading.places.items():
            self._places[clip].append(place)
        return reading.line()

    def _take(self, rows: Iterator[Row | BadRow], reading: "_Reading") -> None:
        for row in rows:
            if isinstance(row, BadRow):
                reading.unreadable.add(f"line {row.line}: {row.why}")
            elif (clip := self._clip(row, reading)) is not None and row.caption:
                self._keep(clip, row, reading)

    def _clip(self, row: Row, reading: "_Reading") -> str | None:
        """The clip that a row is about."""
        folder = reading.path.rpartition("/")[0]
        try:
            name = printable(composed(safe_path(row.file_name)))
        except UnsafePath as error:
            reading.unreadable.add(f"line {row.line}: its file_name is {error}")
            return None
        path = f"{folder}/{name}" if folder else name
        if path in self._clips:
            return path
        if found := self._folded.get(path.casefold()):
            reading.other_case += 1
            return found
        reading.orphans.add(printable(row.file_name)[:80] or "an empty name")
        return None

    def _keep(self, clip: str, row: Row, reading: "_Reading") -> None:
        digest, earlier = hash(row.caption), reading.places.get(clip)
        disputed = row.ambiguous or (earlier is not None and (earlier.disputed or earlier.digest != digest))
        if earlier is not None and earlier.digest == digest:
            earlier.line, earlier.disputed = row.line, disputed
            return
        data = row.caption.encode()
        self._file.seek(self._end)
        self._file.write(data)
        reading.places[clip] = _Place(reading.path, row.line, self._end, len(data), digest, disputed)
        self._end += len(data)

    def _read(self, place: _Place) -> str:
        self._file.seek(place.offset)
        return self._file.read(place.size).decode()


@dataclass
class _Reading:
    """Outcome of one table."""

    path: str
    repair: str = ""
    other_case: int = 0
    places: dict[str, _Place] = field(default_factory=dict)
    unreadable: _Named = field(default_factory=_Named)
    orphans: _Named = field(default_factory=_Named)

    def line(self) -> ReportLine:
        reasons: list[ReportReason] = []
        count = len(self.places)
        parts = [f"captions of {count} clip{'' if count == 1 else 's'}"]
        if self.repair or self.other_case:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_REPAIRED)
            parts += [self.repair] if self.repair else []
            parts += [f"{self.other_case} file names spelled in another letter case"] if self.other_case else []
        if self.unreadable.count:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_UNREADABLE)
            parts.append(f"{_rows(self.unreadable)} not read: {self.unreadable}")
        if self.orphans.count:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_ORPHAN)
            parts.append(f"{_rows(self.orphans)} for no clip beside or below this table: {self.orphans}")
        if not count:
            return line(self.path, Outcome.OUTCOME_IGNORED, reasons or [_MISSING], "; ".join(parts))
        outcome = Outcome.OUTCOME_KEPT_CHANGED if reasons else Outcome.OUTCOME_KEPT
        return line(self.path, outcome, reasons, "; ".join(parts))


def _rows(found: _Named) -> str:
    return f"{found.count} row{'' if found.count == 1 else 's'}"


_MISSING = ReportReason.REPORT_REASON_CAPTION_MISSING
