"""The plan for an archive: what happens to each of its files, decided by name alone."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_services.ingest.captions import Pairing, pair
from ltxtrain_services.ingest.directory import ArchiveRefused, Entry
from ltxtrain_services.ingest.names import Kind, suffix_of
from ltxtrain_services.ingest.report import line

_TABLES = "captions of many clips are read from metadata.jsonl and metadata.csv"
_IGNORED = {
    Kind.JUNK: (ReportReason.REPORT_REASON_IGNORED_FILE, "hidden, or left by an operating system"),
    Kind.OTHER: (ReportReason.REPORT_REASON_IGNORED_FILE, "neither a video nor a caption"),
    Kind.ARCHIVE: (
        ReportReason.REPORT_REASON_NESTED_ARCHIVE,
        "an archive inside the archive is not unpacked; put its files into this one",
    ),
    Kind.CAPTION: (ReportReason.REPORT_REASON_CAPTION_ORPHAN, "no clip of this name is in its folder"),
    Kind.JSON: (ReportReason.REPORT_REASON_IGNORED_FILE, f"not named like a clip; {_TABLES}"),
}
# Other files that may hold captions.
_DATA = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})


@dataclass(frozen=True)
class PlannedClip:
    """A video of the archive; `index` is its place among all of them in the order of paths."""

    index: int
    entry: Entry
    # Its caption files; the first that has a caption counts.
    captions: Sequence[Entry]
    # Earlier entries have this path.
    duplicated: bool


@dataclass(frozen=True)
class Plan:
    """The clips in the order of paths, and the lines of files that need no look inside."""

    clips: Sequence[PlannedClip]
    lines: Sequence[ReportLine]
    pairing: Pairing
    # Caption files that several clips have.
    shared: frozenset[str]
    # Tables of captions; of two that name a clip, the first counts.
    tables: Sequence[Entry]


def make_plan(entries: Sequence[Entry]) -> Plan:
    """Raises ArchiveRefused (IMAGE_NOT_ALLOWED). The plan may have no clips."""
    last = {entry.path: entry for entry in entries}
    kept = sorted(last.values(), key=lambda entry: entry.path)
    _refuse_images(kept)
    pairing = pair(kept)
    videos = [entry for entry in kept if entry.kind is Kind.VIDEO]
    files = Counter(entry.path for captions in pairing.captions.values() for entry in captions)
    superseded = {entry.path for entry in entries if last[entry.path] is not entry}
    clips = [
        PlannedClip(
            index=index,
            entry=entry,
            captions=pairing.captions.get(entry.path, ()),
            duplicated=entry.path in superseded,
        )
        for index, entry in enumerate(videos)
    ]
    return Plan(
        clips,
        [*_other_lines(kept, set(files)), *_duplicate_lines(entries, last)],
        pairing,
        shared=frozenset(path for path, count in files.items() if count > 1),
        tables=sorted((entry for entry in kept if entry.kind is Kind.TABLE), key=_precedence),
    )


def _precedence(table: Entry) -> tuple[int, bool, str]:
    """The table that is nearest to a clip counts; of two in one folder, metadata.jsonl."""
    return -table.path.count("/"), suffix_of(table.path) != ".jsonl", table.path


def refusal_lines(entries: Sequence[Entry], error: ArchiveRefused) -> Iterator[ReportLine]:
    """One line for every file of an archive that is refused before any file was looked at."""
    rejected = dict(error.entries)
    for entry in entries:
        if (why := rejected.get(entry.path)) is not None:
            yield line(entry.path, Outcome.OUTCOME_REJECTED, [error.line_reason], why)
        elif entry.kind in (Kind.JUNK, Kind.OTHER, Kind.ARCHIVE):
            yield _ignored(entry)
        else:
            yield not_examined(entry.path)


def not_examined(path: str, *, cancelled: bool = False) -> ReportLine:
    reasons = [ReportReason.REPORT_REASON_NOT_EXAMINED]
    text = f"the request {'was cancelled' if cancelled else 'failed'} before this file was looked at"
    return line(path, Outcome.OUTCOME_IGNORED, reasons, text)


def _refuse_images(entries: Sequence[Entry]) -> None:
    images = [
        (entry.path, "an image; there is nothing to continue in time") for entry in entries if entry.kind is Kind.IMAGE
    ]
    if images:
        raise images_refused(images)


def images_refused(images: Sequence[tuple[str, str]]) -> ArchiveRefused:
    names = ", ".join(path for path, _ in images[:5]) + (f" and {len(images) - 5} more" if len(images) > 5 else "")
    text = f"Images are not allowed, for there is nothing to continue in time. Take out: {names}."
    reason = ReportReason.REPORT_REASON_IMAGE_NOT_ALLOWED
    return ArchiveRefused(ErrorReason.ERROR_REASON_IMAGE_NOT_ALLOWED, text, entries=images, line_reason=reason)


def no_videos(entries: Sequence[Entry]) -> ArchiveRefused:
    """The error for an archive whose plan has no clips."""
    nested = [entry.path for entry in entries if entry.kind is Kind.ARCHIVE]
    others = [entry.path for entry in entries if entry.kind is Kind.OTHER_VIDEO]
    if nested:
        why = f"It holds a nested archive, {nested[0]!r}, which is not unpacked: put its files into this one."
    elif others:
        why = f"Videos end in .mp4, .mov, .avi or .mkv: convert {others[0]!r}."
    else:
        why = "Put videos that end in .mp4, .mov, .avi or .mkv into it." if entries else "It is empty."
    text = f"The archive has no videos. {why}"
    return ArchiveRefused(ErrorReason.ERROR_REASON_NO_VIDEOS, text)


def _other_lines(entries: Sequence[Entry], captions: set[str]) -> Iterator[ReportLine]:
    for entry in entries:
        if entry.kind is Kind.OTHER_VIDEO:
            yield _other_video(entry)
        elif entry.kind in _IGNORED and entry.path not in captions:
            yield _ignored(entry)


def _duplicate_lines(entries: Sequence[Entry], last: dict[str, Entry]) -> Iterator[ReportLine]:
    for entry in entries:
        if last[entry.path] is not entry:
            outcome = Outcome.OUTCOME_SKIPPED if entry.kind is Kind.VIDEO else Outcome.OUTCOME_IGNORED
            reasons = [ReportReason.REPORT_REASON_DUPLICATE_PATH]
            yield line(entry.path, outcome, reasons, "the archive holds this path again; the last one counts")


def _other_video(entry: Entry) -> ReportLine:
    reasons = [ReportReason.REPORT_REASON_IGNORED_FILE]
    text = "videos end in .mp4, .mov, .avi or .mkv; convert this one"
    return line(entry.path, Outcome.OUTCOME_SKIPPED, reasons, text)


def _ignored(entry: Entry) -> ReportLine:
    reason, text = _IGNORED[entry.kind]
    if entry.kind is Kind.OTHER and suffix_of(entry.path) in _DATA:
        text = f"{text}; {_TABLES}"
    return line(entry.path, Outcome.OUTCOME_IGNORED, [reason], text)
