"""Summaries of data reports: outcomes counted, and lines sorted for people."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_client.enum_words import word
from ltxtrain_client.local_data import VIDEO_SUFFIXES
from ltxtrain_client.quantities import count_text

# Most urgent first.
_ORDER = (
    Outcome.OUTCOME_REJECTED,
    Outcome.OUTCOME_SKIPPED,
    Outcome.OUTCOME_KEPT_CHANGED,
    Outcome.OUTCOME_IGNORED,
    Outcome.OUTCOME_KEPT,
)
_UPLOADED = re.compile(r"^upload:uploads/\w+/(?=.)")
NOT_EXAMINED = "not looked at"
_USED = (Outcome.OUTCOME_KEPT_CHANGED, Outcome.OUTCOME_KEPT)


def outcome_word(outcome: int) -> str:
    """Word of an outcome: kept, changed, ignored, skipped or rejected."""
    return "changed" if outcome == Outcome.OUTCOME_KEPT_CHANGED else word(Outcome.DESCRIPTOR, outcome)


def line_word(line: ReportLine) -> str:
    """Word of a line's outcome; a file that nobody looked at was not ignored."""
    return NOT_EXAMINED if _is_unseen(line) else outcome_word(line.outcome)


def path_text(path: str) -> str:
    """A file of a report as people know it: an upload by the name of its file, where it has one."""
    return _UPLOADED.sub("", path)


def headlines(lines: Iterable[ReportLine]) -> list[str]:
    """Sentences that a reader of the report has to see first."""
    return [line.description for line in lines if ReportReason.REPORT_REASON_NO_TEXT in line.reasons]


def worst_first(lines: Iterable[ReportLine]) -> list[ReportLine]:
    """Lines sorted by outcome, most urgent first, then by path."""
    return sorted(lines, key=lambda line: (_rank(line.outcome), line.path))


def video_outcomes(lines: Iterable[ReportLine]) -> dict[str, int]:
    """Best outcome of each video by its path; a video has several lines when it was split or occurs twice."""
    return {path: line.outcome for path, line in _videos(lines).items()}


def _videos(lines: Iterable[ReportLine]) -> dict[str, ReportLine]:
    found: dict[str, ReportLine] = {}
    for line in lines:
        if _is_video(line) and (line.path not in found or found[line.path].outcome not in _USED):
            found[line.path] = line
    return found


def outcome_summary(lines: Sequence[ReportLine]) -> str:
    """Outcome counts: "5 videos: 4 changed, 1 skipped; 2 other files: 2 kept"."""
    videos = _videos(lines)
    others = [line for line in lines if line.path and line.path not in videos]
    parts = [_counted("video", list(videos.values())), _counted("other file", others)]
    return "; ".join(filter(None, parts)) or "no lines yet"


def joined(found: Iterable[ReportLine], fitted: Sequence[ReportLine]) -> list[ReportLine]:
    """Lines of files as they were fitted, or else as they were found; those of no file stay."""
    paths = {line.path for line in fitted if line.path}
    return [*fitted, *(line for line in found if line.path not in paths)]


def training_summary(dataset: Iterable[ReportLine], training_set: Iterable[ReportLine]) -> str:
    """Share of a dataset's videos that a training set uses: "4 of 5 videos are used for training, 1 is not"."""
    videos = video_outcomes(dataset)
    used = [path for path, outcome in video_outcomes(training_set).items() if path in videos and outcome in _USED]
    rest = len(videos) - len(used)
    text = f"{len(used)} of {count_text(len(videos), 'video')} {'is' if len(used) == 1 else 'are'} used for training"
    return f"{text}, {rest} {'is' if rest == 1 else 'are'} not" if rest else text


def data_summary(dataset: Sequence[ReportLine], training_set: Sequence[ReportLine]) -> list[str]:
    """Sentences about the data of a training: how much of it is used, and what became of its files, each counted once.

    `training_set` may have lines about clips for validation, which `dataset` has not.
    """
    training, validation = split_by_path(training_set, {line.path for line in dataset})
    files = outcome_summary(joined(dataset, training))
    used = [training_summary(dataset, training)] if training else []
    return [*used, files + (f"; for validation {outcome_summary(validation)}" if validation else "")]


def split_by_path(lines: Iterable[ReportLine], paths: Collection[str]) -> tuple[list[ReportLine], list[ReportLine]]:
    """Lines about these paths, and all others."""
    sides: tuple[list[ReportLine], list[ReportLine]] = ([], [])
    for line in lines:
        sides[line.path not in paths].append(line)
    return sides


def _is_video(line: ReportLine) -> bool:
    # A video that was not decoded has no numbers; files that macOS adds to archives are named like videos.
    named = PurePosixPath(line.path).suffix.lower() in VIDEO_SUFFIXES
    looked_for = ReportReason.REPORT_REASON_IGNORED_FILE not in line.reasons
    skipped = line.outcome == Outcome.OUTCOME_SKIPPED
    return bool(line.path) and (line.HasField("numbers") or skipped or (named and looked_for))


def _is_unseen(line: ReportLine) -> bool:
    return line.outcome == Outcome.OUTCOME_IGNORED and ReportReason.REPORT_REASON_NOT_EXAMINED in line.reasons


def _counted(noun: str, lines: Sequence[ReportLine]) -> str:
    if not lines:
        return ""
    counts = Counter((-_rank(line.outcome), line_word(line)) for line in lines)
    listed = ", ".join(f"{count} {word}" for (_, word), count in sorted(counts.items()))
    return f"{count_text(len(lines), noun)}: {listed}"


def _rank(outcome: int) -> int:
    return _ORDER.index(outcome) if outcome in _ORDER else len(_ORDER)
