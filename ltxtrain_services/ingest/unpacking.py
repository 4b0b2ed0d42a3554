"""From an archive on disk to stored candidates, one file at a time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from ltxtrain.v1.work_pb2 import Outcome, ReportReason

from ltxtrain_services.ingest.archive import Archive
from ltxtrain_services.ingest.captions import NotText, decode_caption
from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.gather import Candidate, ClipTally
from ltxtrain_services.ingest.inflate import EntryCorrupt
from ltxtrain_services.ingest.plan import Plan, PlannedClip
from ltxtrain_services.ingest.report import DatasetReport, line
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES

T = TypeVar("T")


class Unpacking:
    """Unpacks the clips of a plan in the order of paths, and reads their captions."""

    def __init__(self, archive: Archive, plan: Plan, folder: Path, report: DatasetReport, tally: ClipTally) -> None:
        self._archive = archive
        self._plan = plan
        self._folder = folder
        self._report = report
        self._tally = tally
        self._reported: set[str] = set()

    async def files(self) -> AsyncGenerator[Candidate, None]:
        """Each clip on disk, with its caption; its file is deleted when the next one is asked for."""
        for clip in self._plan.clips:
            caption, reasons = await self._caption(clip)
            target = self._folder / f"clip-{clip.index}"
            try:
                unpacked = await self._in_thread(lambda: self._archive.unpack(clip.entry, target))  # noqa: B023
            except EntryCorrupt as error:
                reason = ReportReason.REPORT_REASON_ENTRY_CORRUPT
                await self._report.add(self._tally.skip(clip.entry.path, reason, f"damaged in the archive: {error}"))
                continue
            try:
                yield Candidate(index=clip.index, path=clip.entry.path, file=unpacked, caption=caption, reasons=reasons)
            finally:
                target.unlink(missing_ok=True)

    async def _caption(self, clip: PlannedClip) -> tuple[str, list["ReportReason"]]:
        """The caption (empty: none) and the reasons that it adds to the clip's line; its file gets its own line."""
        reasons = [ReportReason.REPORT_REASON_DUPLICATE_PATH] if clip.duplicated else []
        text = await self._read_caption(clip.caption, clip.shares_caption) if clip.caption is not None else ""
        if not text:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_MISSING)
        elif clip.shares_caption:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_SHARED)
        return text, reasons

    async def _read_caption(self, entry: Entry, shared: bool) -> str:
        text, outcome, reasons, description = "", Outcome.OUTCOME_KEPT, [], ""
        repairs = [self._plan.pairing.repaired[entry.path]] if entry.path in self._plan.pairing.repaired else []
        if entry.size > MAX_TEXT_BYTES:
            outcome, reasons = Outcome.OUTCOME_IGNORED, [ReportReason.REPORT_REASON_IGNORED_FILE]
            description = f"{entry.size} bytes; a text has {MAX_TEXT_BYTES} at most"
        else:
            try:
                text, repair = await self._in_thread(lambda: decode_caption(self._archive.read(entry)))
                repairs += [repair] if repair else []
            except EntryCorrupt as error:
                outcome, reasons = Outcome.OUTCOME_IGNORED, [ReportReason.REPORT_REASON_ENTRY_CORRUPT]
                description = str(error)
            except NotText as error:
                outcome, reasons = Outcome.OUTCOME_IGNORED, [ReportReason.REPORT_REASON_CAPTION_UNREADABLE]
                description = str(error)
            else:
                if not text:
                    outcome, reasons = Outcome.OUTCOME_IGNORED, [ReportReason.REPORT_REASON_CAPTION_MISSING]
                    description = "empty, which counts as no caption"
                elif repairs:
                    outcome, reasons = Outcome.OUTCOME_KEPT_CHANGED, [ReportReason.REPORT_REASON_CAPTION_REPAIRED]
                    description = "; ".join(repairs)
        if text and shared:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_SHARED)
        if entry.path not in self._reported:
            self._reported.add(entry.path)
            await self._report.add(line(entry.path, outcome, reasons, description))
        return text

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Like asyncio.to_thread, but the thread has ended when this returns, also when it is cancelled."""
        running = asyncio.create_task(asyncio.to_thread(work))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._archive.stop()
            await _ended(running)
            raise


async def _ended(task: Awaitable[object]) -> None:
    await asyncio.gather(task, return_exceptions=True)
