"""What became of videos and of other files, in numbers and in an order for people."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_client.words import word

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv"})
# What a person has to look at comes first.
_ORDER = (
    Outcome.OUTCOME_REJECTED,
    Outcome.OUTCOME_SKIPPED,
    Outcome.OUTCOME_KEPT_CHANGED,
    Outcome.OUTCOME_IGNORED,
    Outcome.OUTCOME_KEPT,
)
_USED = (Outcome.OUTCOME_KEPT_CHANGED, Outcome.OUTCOME_KEPT)


def outcome_word(outcome: int) -> str:
    """The word for people: kept, changed, ignored, skipped, rejected."""
    return "changed" if outcome == Outcome.OUTCOME_KEPT_CHANGED else word(Outcome.DESCRIPTOR, outcome)


def in_order(lines: Iterable[ReportLine]) -> list[ReportLine]:
    """What was left out or changed first, each kind by path."""
    return sorted(lines, key=lambda line: (_rank(line.outcome), line.path))


def video_outcomes(lines: Iterable[ReportLine]) -> dict[str, int]:
    """Outcome of each video by its path: of one that has several lines (scenes, twice in the archive) the best."""
    found: dict[str, int] = {}
    for line in lines:
        if _is_video(line) and (line.path not in found or found[line.path] not in _USED):
            found[line.path] = line.outcome
    return found


def tally(lines: Sequence[ReportLine]) -> str:
    """Videos, then other files, each by outcome: "5 videos: 4 changed, 1 skipped; 2 other files: 2 kept"."""
    videos = video_outcomes(lines)
    others = [line.outcome for line in lines if line.path and line.path not in videos]
    parts = [_counted("video", list(videos.values())), _counted("other file", others)]
    return "; ".join(filter(None, parts)) or "no lines yet"


def trained(dataset: Iterable[ReportLine], training_set: Iterable[ReportLine]) -> str:
    """How many of a dataset's videos a training set uses: "4 of 5 videos train, 1 does not"."""
    videos = video_outcomes(dataset)
    used = [path for path, outcome in video_outcomes(training_set).items() if path in videos and outcome in _USED]
    rest = len(videos) - len(used)
    verb = "trains" if len(used) == 1 else "train"
    return f"{len(used)} of {_number(len(videos), 'video')} {verb}" + (
        f", {rest} {'does' if rest == 1 else 'do'} not" if rest else ""
    )


def of_paths(lines: Iterable[ReportLine], paths: Collection[str]) -> tuple[list[ReportLine], list[ReportLine]]:
    """Lines about these paths, and the others."""
    sides: tuple[list[ReportLine], list[ReportLine]] = ([], [])
    for line in lines:
        sides[line.path not in paths].append(line)
    return sides


def _is_video(line: ReportLine) -> bool:
    # What was not decoded has no numbers; of what a Mac leaves in archives the names end like videos'.
    named = PurePosixPath(line.path).suffix.lower() in VIDEO_SUFFIXES
    looked_for = ReportReason.REPORT_REASON_IGNORED_FILE not in line.reasons
    skipped = line.outcome == Outcome.OUTCOME_SKIPPED
    return bool(line.path) and (line.HasField("numbers") or skipped or (named and looked_for))


def _counted(noun: str, outcomes: Sequence[int]) -> str:
    if not outcomes:
        return ""
    counts = sorted(Counter(outcomes).items(), key=lambda item: -_rank(item[0]))
    return f"{_number(len(outcomes), noun)}: " + ", ".join(f"{count} {outcome_word(key)}" for key, count in counts)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _rank(outcome: int) -> int:
    return _ORDER.index(outcome) if outcome in _ORDER else len(_ORDER)
