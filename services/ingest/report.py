"""The report of a dataset: one line for every file, durable and told to watchers while the work goes on."""

import time
from collections import Counter
from collections.abc import Sequence

from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.work_pb2 import ClipNumbers, Event, Outcome, Progress, ReportLine, ReportReason, Stage

from services.runtime.store import Store

COLLECTION = "report"
# Progress comes at most this often; lines are written together with it.
INTERVAL_SECONDS = 1.0
MAX_PENDING = 1000
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


class Report:
    """Writes lines and progress of one run; what an earlier run wrote already is not told again."""

    def __init__(
        self, datasets: Store[Dataset], name: str, attempt: int, known: Sequence[tuple[str, ReportLine]]
    ) -> None:
        self._datasets = datasets
        self._name = name
        self._attempt = attempt
        self._known = {key: item.SerializeToString(deterministic=True) for key, item in known}
        self._lines: list[tuple[str, ReportLine]] = []
        self._keys: Counter[str] = Counter()
        self._outcomes: Counter[int] = Counter()
        self._progress = Progress()
        self._written_progress: Progress | None = None
        self._flushed = 0.0
        self.clip_count = 0
        self.caption_count = 0
        self.reused_count = 0

    @classmethod
    async def open(cls, datasets: Store[Dataset], name: str, attempt: int) -> "Report":
        return cls(datasets, name, attempt, await datasets.named_children(name, COLLECTION, ReportLine))

    async def add(self, item: ReportLine) -> None:
        """A line of this run; several lines may have one path."""
        key = f"{item.path}//{self._keys[item.path]}" if item.path in self._keys else item.path
        self._keys[item.path] += 1
        self._outcomes[item.outcome] += 1
        if self._known.pop(key, None) != item.SerializeToString(deterministic=True):
            self._lines.append((key, item))
        if len(self._lines) >= MAX_PENDING:
            await self._flush()

    def has(self, path: str) -> bool:
        return path in self._keys

    async def progress(self, completed: int, total: int) -> None:
        """Clips done, of those that there are."""
        await self._advance(Progress(completed=completed, total=total))

    async def fetched(self, completed_bytes: int, total_bytes: int) -> None:
        """Bytes of the source at hand."""
        await self._advance(Progress(fetched_bytes=completed_bytes, fetch_total_bytes=total_bytes))

    async def close(self) -> None:
        """Write what is pending, and forget the lines of files that an earlier run saw and this one did not."""
        await self._flush(stale=list(self._known))

    async def _advance(self, progress: Progress) -> None:
        self._progress = progress
        if time.monotonic() - self._flushed >= INTERVAL_SECONDS:
            await self._flush()

    async def _flush(self, stale: Sequence[str] = ()) -> None:
        lines, self._lines = self._lines, []
        self._flushed = time.monotonic()
        async with self._datasets.edit(self._name, attempt=self._attempt) as edit:
            for key, item in lines:
                edit.put_child(COLLECTION, key, item)
                edit.add_event(Event(stage=Stage.STAGE_INGEST, report_line=item))
            for key in stale:
                edit.drop_child(COLLECTION, key)
            if self._progress != self._written_progress:
                edit.add_event(Event(stage=Stage.STAGE_INGEST, progress=self._progress))
                self._written_progress = Progress()
                self._written_progress.CopyFrom(self._progress)
            edit.body.clip_count = self.clip_count
            edit.body.caption_count = self.caption_count
            edit.body.reused_count = self.reused_count
            edit.body.skipped_count = self._outcomes[Outcome.OUTCOME_SKIPPED]
            edit.body.ignored_count = self._outcomes[Outcome.OUTCOME_IGNORED]
