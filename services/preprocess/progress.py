"""What watchers hear while a training set is made: progress once a second, report lines in the order of the clips."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.work_pb2 import Event, Progress, ReportLine, Stage

from services.runtime.store import Store

PROGRESS_SECONDS = 1.0


class Journal:
    """The events of one attempt at one training set, written together once a second.

    Clips end in any order; their lines are written in the order of the dataset, each once over all attempts.
    """

    def __init__(self, sets: Store[TrainingSet], name: str, attempt: int, known: Sequence[ReportLine] = ()) -> None:
        self._sets = sets
        self._name = name
        self._attempt = attempt
        self._known = {_bytes(line) for line in known}
        self._total = 0
        self._reached: dict[int, set[int]] = {Stage.STAGE_PREPROCESS: set(), Stage.STAGE_ENCODE: set()}
        self._told: dict[int, Progress] = {}
        self._waiting: dict[int, Sequence[tuple[str, ReportLine]]] = {}
        self._next = 0

    @classmethod
    async def open(cls, sets: Store[TrainingSet], name: str, attempt: int) -> "Journal":
        """A journal that knows which lines an earlier attempt has written."""
        return cls(sets, name, attempt, await sets.all_children(name, "report", ReportLine))

    def expect(self, total: int) -> None:
        """How many clips there are to fit and to encode."""
        self._total = total

    def reach(self, stage: "Stage", position: int) -> None:
        """The clip at a position is through with a stage."""
        self._reached[stage].add(position)

    def add_lines(self, position: int, lines: Sequence[tuple[str, ReportLine]]) -> None:
        """Named lines of the clip at a position; every position from 0 on has to come once."""
        self._waiting[position] = lines

    @contextlib.asynccontextmanager
    async def writing(self, *stages: "Stage") -> AsyncIterator[None]:
        """Writes while the block runs, and what is left when it ends, however it ends."""
        end = asyncio.Event()
        ticks = asyncio.create_task(self._tick(stages, end))
        untold: Sequence[Stage] = ()
        try:
            yield
            untold = stages
        finally:
            # Not cancelled: a write that is under way has to end.
            end.set()
            await ticks
            await self._write(untold, every=True)

    async def _tick(self, stages: Sequence["Stage"], end: asyncio.Event) -> None:
        while not end.is_set():
            await self._write(stages)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), PROGRESS_SECONDS)

    async def _write(self, stages: Sequence["Stage"], *, every: bool = False) -> None:
        lines = self._take_lines(every)
        news = [(stage, progress) for stage in stages if (progress := self._news(stage)) is not None]
        if not lines and not news:
            return
        async with self._sets.edit(self._name, attempt=self._attempt) as edit:
            for name, line in lines:
                edit.put_child("report", name, line)
                if _bytes(line) not in self._known:
                    edit.add_event(Event(stage=Stage.STAGE_PREPROCESS, report_line=line))
                self._known.add(_bytes(line))
            for stage, progress in news:
                edit.add_event(Event(stage=stage, progress=progress))

    def _take_lines(self, every: bool) -> list[tuple[str, ReportLine]]:
        """Lines whose turn it is; all that there are when no more will come."""
        taken: list[tuple[str, ReportLine]] = []
        while self._next in self._waiting or (every and self._waiting):
            taken += self._waiting.pop(self._next, ())
            self._next += 1
        return taken

    def _news(self, stage: "Stage") -> Progress | None:
        progress = Progress(completed=len(self._reached[stage]), total=self._total)
        if self._told.get(stage) == progress:
            return None
        self._told[stage] = progress
        return progress


def _bytes(line: ReportLine) -> bytes:
    return line.SerializeToString(deterministic=True)
