"""The report of a dataset: one line for every file of its archive, or for every video."""

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Self

from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.work_pb2 import ClipNumbers, Outcome, Progress, ReportLine, ReportReason, Stage

from ltxtrain_services.runtime.report import ReportWriter
from ltxtrain_services.runtime.work import Attempt

MAX_DESCRIPTION_CHARS = 500


def line(
    path: str,
    outcome: "Outcome",
    reasons: Sequence["ReportReason"] = (),
    description: str = "",
    *,
    frame_count: int | None = None,
    numbers: ClipNumbers | None = None,
) -> ReportLine:
    """One line; the description is bounded."""
    return ReportLine(
        path=path,
        outcome=outcome,
        reasons=reasons,
        description=description[:MAX_DESCRIPTION_CHARS],
        frame_count=frame_count,
        numbers=numbers,
    )


class DatasetReport:
    """Lines, progress and counts of one attempt at a dataset."""

    def __init__(self) -> None:
        self._writer: ReportWriter[Dataset]
        self._keys: Counter[str] = Counter()
        self._outcomes: Counter[int] = Counter()
        self._not_examined = 0
        self.clip_count = 0
        self.caption_count = 0
        self.reused_count = 0

    @classmethod
    async def open(cls, attempt: Attempt[Dataset]) -> Self:
        report = cls()
        report._writer = await ReportWriter.open(attempt, Stage.STAGE_INGEST, report._count)
        return report

    def writing(self) -> AbstractAsyncContextManager[None]:
        """See ReportWriter.writing."""
        return self._writer.writing()

    async def add(self, item: ReportLine) -> None:
        """A line of this attempt; several lines may have one path."""
        key = f"{item.path}//{self._keys[item.path]}" if item.path in self._keys else item.path
        self._keys[item.path] += 1
        self._outcomes[item.outcome] += 1
        self._not_examined += is_not_examined(item)
        await self._writer.add(key, item)

    def has(self, path: str) -> bool:
        return path in self._keys

    def progress(self, completed: int, total: int) -> None:
        """Set how many of the clips are done."""
        self._writer.progress(Stage.STAGE_INGEST, Progress(completed=completed, total=total))

    def fetched(self, completed_bytes: int, total_bytes: int) -> None:
        """Set how many bytes of the source are here."""
        progress = Progress(fetched_bytes=completed_bytes, fetch_total_bytes=total_bytes)
        self._writer.progress(Stage.STAGE_INGEST, progress)

    def _count(self, dataset: Dataset) -> None:
        dataset.clip_count = self.clip_count
        dataset.caption_count = self.caption_count
        dataset.reused_count = self.reused_count
        dataset.skipped_count = self._outcomes[Outcome.OUTCOME_SKIPPED]
        dataset.ignored_count = self._outcomes[Outcome.OUTCOME_IGNORED]
        dataset.not_examined_count = self._not_examined


def count_lines(dataset: Dataset, lines: Sequence[ReportLine]) -> None:
    """Set the counts of a dataset that ended early to those of its report."""
    outcomes = Counter(item.outcome for item in lines)
    dataset.skipped_count = outcomes[Outcome.OUTCOME_SKIPPED]
    dataset.ignored_count = outcomes[Outcome.OUTCOME_IGNORED]
    dataset.not_examined_count = sum(map(is_not_examined, lines))


def is_not_examined(item: ReportLine) -> bool:
    return ReportReason.REPORT_REASON_NOT_EXAMINED in item.reasons
