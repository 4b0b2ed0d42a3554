"""From an archive on disk to stored candidates, one file at a time."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from ltxtrain.v1.work_pb2 import Outcome, ReportReason

from ltxtrain_services.ingest.archive import Archive
from ltxtrain_services.ingest.caption_tables import CaptionTables
from ltxtrain_services.ingest.caption_text import (
    MAX_JSON_BYTES,
    NoCaption,
    NotText,
    decode_caption,
    decode_json_caption,
)
from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.gather import Candidate, ClipTally
from ltxtrain_services.ingest.inflate import EntryCorrupt
from ltxtrain_services.ingest.names import Kind
from ltxtrain_services.ingest.plan import Plan, PlannedClip
from ltxtrain_services.ingest.report import DatasetReport, line
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES

T = TypeVar("T")

_REASONS: dict[type[Exception], "ReportReason"] = {
    EntryCorrupt: ReportReason.REPORT_REASON_ENTRY_CORRUPT,
    NotText: ReportReason.REPORT_REASON_CAPTION_UNREADABLE,
    NoCaption: ReportReason.REPORT_REASON_IGNORED_FILE,
}
# Other captions of a clip that its line names.
MAX_OTHERS_NAMED = 2


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption of a clip, from a file or from a row of a table."""

    # Empty: there is none, for `reason`.
    text: str = ""
    # The file's path; of a row, with its line.
    source: str = ""
    # Why there is none, or how it was repaired.
    why: str = ""
    reason: "ReportReason" = ReportReason.REPORT_REASON_UNSPECIFIED
    in_table: bool = False
    # Its table has another one for the clip.
    disputed: bool = False
    note: str = ""


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
        with await self._in_thread(self._open_tables) as tables:
            for table in self._plan.tables:
                await self._report.add(await self._in_thread(lambda: tables.read(self._archive, table)))  # noqa: B023
            for clip in self._plan.clips:
                async with aclosing(self._candidate(clip, tables)) as candidates:
                    async for candidate in candidates:
                        yield candidate

    async def _candidate(self, clip: PlannedClip, tables: CaptionTables) -> AsyncGenerator[Candidate, None]:
        """The clip on disk as long as this runs; none when it is damaged."""
        path = clip.entry.path
        caption, reasons = await self._caption(clip, tables)
        target = self._folder / f"clip-{clip.index}"
        try:
            unpacked = await self._in_thread(lambda: self._archive.unpack(clip.entry, target))
        except EntryCorrupt as error:
            reason = ReportReason.REPORT_REASON_ENTRY_CORRUPT
            await self._report.add(self._tally.skip(path, reason, f"damaged in the archive: {error}"))
            return
        try:
            yield Candidate(
                index=clip.index,
                path=path,
                file=unpacked,
                caption=caption.text,
                caption_note=caption.note,
                reasons=reasons,
            )
        finally:
            target.unlink(missing_ok=True)

    def _open_tables(self) -> CaptionTables:
        return CaptionTables(self._folder / "captions", [clip.entry.path for clip in self._plan.clips])

    async def _caption(self, clip: PlannedClip, tables: CaptionTables) -> tuple[Caption, list["ReportReason"]]:
        """The caption and the reasons that it adds to the clip's line; each caption file gets its own line."""
        reasons = [ReportReason.REPORT_REASON_DUPLICATE_PATH] if clip.duplicated else []
        used, others = Caption(), list[Caption]()
        for entry in clip.captions:
            found = await self._in_thread(lambda: self._read_file(entry))  # noqa: B023
            if found.text and used.text:
                others.append(found)
            used = used if used.text else found
            await self._report_file(entry, found, used)
        for row in await self._in_thread(lambda: tables.captions(clip.entry.path)):
            found = Caption(text=row.text, source=row.source, disputed=row.disputed, in_table=True)
            if used.text:
                others.append(found)
            used = used if used.text else found
        if not used.text:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_MISSING)
            return used, reasons
        if used.in_table:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_FROM_TABLE)
        elif used.source in self._plan.shared:
            reasons.append(ReportReason.REPORT_REASON_CAPTION_SHARED)
        if used.disputed or any(other.text != used.text or other.disputed for other in others):
            reasons.append(ReportReason.REPORT_REASON_CAPTION_CONFLICT)
        return replace(used, note=_note(used, others)), reasons

    def _read_file(self, entry: Entry) -> Caption:
        """The caption of a file, and what its line of the report says."""
        is_json = entry.kind is Kind.JSON
        limit = MAX_JSON_BYTES if is_json else MAX_TEXT_BYTES
        if entry.size > limit:
            text = f"{entry.size} bytes; a text has {limit} at most"
            return Caption(source=entry.path, why=text, reason=ReportReason.REPORT_REASON_IGNORED_FILE)
        try:
            text, repair = (decode_json_caption if is_json else decode_caption)(self._archive.read(entry))
        except (EntryCorrupt, NotText, NoCaption) as error:
            return Caption(source=entry.path, why=str(error), reason=_REASONS[type(error)])
        if not text:
            why = "empty, which counts as no caption"
            return Caption(source=entry.path, why=why, reason=ReportReason.REPORT_REASON_CAPTION_MISSING)
        repairs = filter(None, (self._plan.pairing.repaired.get(entry.path), repair))
        return Caption(text=text, source=entry.path, why="; ".join(repairs))

    async def _report_file(self, entry: Entry, found: Caption, used: Caption) -> None:
        """Add the line of a caption file; `used` is the caption that counts."""
        if entry.path in self._reported:
            return
        self._reported.add(entry.path)
        if not found.text:
            await self._report.add(line(entry.path, Outcome.OUTCOME_IGNORED, [found.reason], found.why))
            return
        shared = [ReportReason.REPORT_REASON_CAPTION_SHARED] if entry.path in self._plan.shared else []
        if found is not used:
            same = found.text == used.text
            reason = ReportReason.REPORT_REASON_IGNORED_FILE if same else ReportReason.REPORT_REASON_CAPTION_CONFLICT
            text = f"{used.source} counts, with {'the same' if same else 'another'} caption"
            await self._report.add(line(entry.path, Outcome.OUTCOME_IGNORED, [reason, *shared], text))
        elif found.why:
            reasons = [ReportReason.REPORT_REASON_CAPTION_REPAIRED, *shared]
            await self._report.add(line(entry.path, Outcome.OUTCOME_KEPT_CHANGED, reasons, found.why))
        else:
            await self._report.add(line(entry.path, Outcome.OUTCOME_KEPT, shared))

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


def _note(used: Caption, others: Sequence[Caption]) -> str:
    """Where a caption is from, and which others there are; empty for the one file that there is."""
    if not used.in_table and not others:
        return ""
    text = f"caption from {used.source}"
    if used.disputed:
        text += ", the last of several that differ"
    named = [f"{other.source} has {_compared(other, used)}" for other in others[:MAX_OTHERS_NAMED]]
    return "; ".join([text, *named]) + (f" and {len(others) - len(named)} more" if len(others) > len(named) else "")


def _compared(other: Caption, used: Caption) -> str:
    return "the same" if other.text == used.text else "another, which does not count"
