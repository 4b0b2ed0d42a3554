"""Report lines and progress of one attempt, made durable together and announced to watchers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Generic, Self, TypeVar

from ltxtrain.v1.work_pb2 import Event, Progress, ReportLine, Stage

from ltxtrain_services.runtime.errors import ApiError
from ltxtrain_services.runtime.store import Resource
from ltxtrain_services.runtime.work import Attempt

M = TypeVar("M", bound=Resource)

COLLECTION = "report"
INTERVAL_SECONDS = 1.0
# Lines held in memory at most, so that an archive of many small files is written as it is read; what one transaction
# makes of them takes a few milliseconds of the event loop.
MAX_PENDING, MAX_PENDING_BYTES = 250, 2**19


async def add_missing(
    attempt: Attempt[M], stage: "Stage", lines: Sequence[tuple[str, ReportLine]]
) -> Sequence[ReportLine]:
    """Add, with their events, those lines whose keys have none; returns the whole report."""
    known = await attempt.named_children(COLLECTION, ReportLine)
    keys = {key for key, _ in known}
    missing = [(key, line) for key, line in lines if key not in keys]
    for start in range(0, len(missing), MAX_PENDING):
        async with attempt.edit() as edit:
            for key, line in missing[start : start + MAX_PENDING]:
                edit.put_child(COLLECTION, key, line)
                edit.add_event(Event(stage=stage, report_line=line))
    return [line for _, line in (*known, *missing)]


class ReportWriter(Generic[M]):
    """Lines and progress of one attempt, written together once a second inside `writing`.

    A line that an earlier attempt announced is not announced again, and one that this attempt did not write is dropped
    when it ends. `apply` sets what else the resource shows, in each transaction.
    """

    def __init__(
        self,
        attempt: Attempt[M],
        stage: "Stage",
        known: Sequence[tuple[str, ReportLine]],
        apply: Callable[[M], None],
    ) -> None:
        self._attempt = attempt
        self._stage = stage
        self._known = {key: _bytes(line) for key, line in known}
        self._apply = apply
        self._pending: list[tuple[str, ReportLine]] = []
        self._pending_bytes = 0
        self._in_turn: dict[int, Sequence[tuple[str, ReportLine]]] = {}
        self._next = 0
        self._written: set[str] = set()
        self._progress: dict[int, Progress] = {}
        self._announced: dict[int, Progress] = {}
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, attempt: Attempt[M], stage: "Stage", apply: Callable[[M], None] = lambda body: None) -> Self:
        """A writer that knows the lines of earlier attempts; its own lines belong to `stage`."""
        return cls(attempt, stage, await attempt.named_children(COLLECTION, ReportLine), apply)

    async def add(self, key: str, line: ReportLine) -> None:
        """Add a line, or replace the one of an earlier attempt."""
        self._pending.append((key, line))
        self._pending_bytes += line.ByteSize()
        if len(self._pending) >= MAX_PENDING or self._pending_bytes >= MAX_PENDING_BYTES:
            await self._write()

    def add_in_turn(self, position: int, lines: Sequence[tuple[str, ReportLine]]) -> None:
        """Hold lines back until those of all positions from 0 to the one before are there, or `writing` ends."""
        self._in_turn[position] = lines

    def progress(self, stage: "Stage", progress: Progress) -> None:
        """Set how far a stage is; announced with the next write if it changed."""
        self._progress[stage] = progress

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        """Write once a second while the block runs, and the rest when it ends, however it ends."""
        end = asyncio.Event()
        ticks = asyncio.create_task(self._tick(end))
        is_whole = final = False
        try:
            yield
            is_whole = final = True
        except ApiError:
            # The attempt ends the resource: there will be no other that writes the missing lines.
            final = True
            raise
        finally:
            # Not cancelled: a write that is under way has to end.
            end.set()
            await ticks
            self._release(every=True)
            await self._write(with_progress=is_whole, drop_stale=final)

    async def _tick(self, end: asyncio.Event) -> None:
        while not end.is_set():
            await self._write()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), INTERVAL_SECONDS)

    async def _write(self, *, with_progress: bool = True, drop_stale: bool = False) -> None:
        async with self._lock:
            self._release()
            lines, self._pending, self._pending_bytes = self._pending, [], 0
            news = self._changed_progress() if with_progress else []
            self._written.update(key for key, _ in lines)
            stale = [key for key in self._known if key not in self._written] if drop_stale else []
            if not lines and not news and not stale:
                return
            async with self._attempt.edit() as edit:
                for key, line in lines:
                    body = _bytes(line)
                    if self._known.get(key) == body:
                        continue
                    edit.put_child(COLLECTION, key, line)
                    edit.add_event(Event(stage=self._stage, report_line=line))
                    self._known[key] = body
                for key in stale:
                    edit.drop_child(COLLECTION, key)
                    del self._known[key]
                for stage, progress in news:
                    edit.add_event(Event(stage=stage, progress=progress))
                    self._announced[stage] = progress
                self._apply(edit.body)

    def _release(self, *, every: bool = False) -> None:
        """Move lines whose turn it is to the pending ones; all when no more will come."""
        while self._next in self._in_turn or (every and self._in_turn):
            self._pending += self._in_turn.pop(self._next, ())
            self._next += 1

    def _changed_progress(self) -> list[tuple["Stage", Progress]]:
        changed = []
        for stage, progress in self._progress.items():
            if self._announced.get(stage) != progress:
                copy = Progress()
                copy.CopyFrom(progress)
                changed.append((stage, copy))
        return changed  # type: ignore[return-value] # enum values are ints at run time


def _bytes(line: ReportLine) -> bytes:
    return line.SerializeToString(deterministic=True)
