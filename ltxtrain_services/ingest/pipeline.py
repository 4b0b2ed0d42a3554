"""The work of one dataset: fetch, unpack, store, probe, report. Every step can run twice."""

import asyncio
import shutil
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import aclosing
from pathlib import Path

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason, Stage, State

from ltxtrain_services.ingest import sniff
from ltxtrain_services.ingest.archive import Archive, hash_file
from ltxtrain_services.ingest.clip_store import ClipStore
from ltxtrain_services.ingest.directory import ArchiveRefused, Entry, check_directory, read_directory, unreadable
from ltxtrain_services.ingest.gather import Candidate, ClipTally, Intake
from ltxtrain_services.ingest.plan import Plan, make_plan, no_videos, not_examined, refusal_lines
from ltxtrain_services.ingest.probing import Probing
from ltxtrain_services.ingest.report import DatasetReport, count_lines, line
from ltxtrain_services.ingest.sources import Sources
from ltxtrain_services.ingest.unpacking import Unpacking
from ltxtrain_services.runtime.addresses import shown
from ltxtrain_services.runtime.disk import told_when_full
from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition, NotFound
from ltxtrain_services.runtime.report import COLLECTION, add_missing
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Attempt, Ending

CLIPS = "clips"
ARCHIVE = "archive.zip"
# Report lines that are added in one go.
LINES_AT_ONCE = 50


class IngestWorkflow:
    """The work of one dataset; see ltxtrain_services.runtime.work."""

    def __init__(self, settings: Settings, sources: Sources, clips: ClipStore, probing: Probing) -> None:
        self._settings = settings
        self._sources = sources
        self._clips = clips
        self._probing = probing
        self.scratch = settings.state_dir / "ingest"

    async def run(self, attempt: Attempt[Dataset]) -> Ending[Dataset]:
        dataset = await attempt.get()
        report = await DatasetReport.open(attempt)
        tally = ClipTally(attempt.name)
        async with report.writing():
            await self._take(dataset, report, tally)
            if (warning := tally.few_clips()) is not None and dataset.WhichOneof("source") != "videos":
                await report.add(warning)
        await self._clear(attempt.name)

        def ending(edit: Edit[Dataset]) -> None:
            for clip in tally.in_order():
                edit.put_child(CLIPS, clip.name.rpartition("/")[2], clip)

        return ending

    async def salvage(self, attempt: Attempt[Dataset]) -> Ending[Dataset]:
        """The report of what was looked at, and a line for every file that was not."""
        dataset = await attempt.get()
        cancelled = dataset.lifecycle.state == State.STATE_CANCELLING
        reported = bool(await attempt.named_children(COLLECTION, ReportLine))
        files = await self._files(dataset, reported=reported)
        unseen = [(path, not_examined(path, cancelled=cancelled)) for path in files]
        lines = await add_missing(attempt, Stage.STAGE_INGEST, unseen)
        await self._clear(attempt.name)
        return lambda edit: count_lines(edit.body, lines)

    async def _files(self, dataset: Dataset, *, reported: bool) -> Sequence[str]:
        """Every path of a dataset as far as it is known; the archive itself before it is here.

        reported: lines were written, so that an archive which is not here has been looked at as a whole.
        """
        if dataset.WhichOneof("source") == "videos":
            return [await self._shown(url) for url in dataset.videos.urls]
        archive = self._folder(dataset.name) / ARCHIVE
        if not archive.exists():
            return [] if reported else [await self._shown(_archive_url(dataset))]
        try:
            return [entry.path for entry in await asyncio.to_thread(read_directory, archive, self._settings)]
        except ArchiveRefused:
            return []

    async def _shown(self, url: str) -> str:
        try:
            return await self._sources.shown(url)
        except NotFound:
            return shown(url)

    async def _take(self, dataset: Dataset, report: DatasetReport, tally: ClipTally) -> None:
        folder = self._folder(dataset.name)
        with told_when_full(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if dataset.WhichOneof("source") == "videos":
                await self._take_videos(list(dataset.videos.urls), folder, report, tally)
            else:
                await self._take_archive(_archive_url(dataset), folder, report, tally)

    async def sweep(self, unfinished: Callable[[], Awaitable[Sequence[Dataset]]]) -> None:
        """Remove the folders of datasets that nobody works on, which a killed process left."""
        # Folders first: a dataset has its row before its folder, so that one created from here on is in neither list.
        folders = await asyncio.to_thread(lambda: list(self.scratch.glob("*")))
        wanted = {self._folder(dataset.name) for dataset in await unfinished()}
        for folder in folders:
            if folder not in wanted:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _take_archive(self, url: str, folder: Path, report: DatasetReport, tally: ClipTally) -> None:
        archive = folder / ARCHIVE
        await self._fetch(url, archive, report)
        entries = await self._read_directory(url, archive)
        try:
            await asyncio.to_thread(check_directory, entries, archive.stat().st_size, self._settings)
            plan = await asyncio.to_thread(make_plan, entries)
            await _add(report, plan.lines)
            if not plan.clips:
                raise await asyncio.to_thread(no_videos, entries)
            await self._take_clips(archive, plan, folder, report, tally)
            await asyncio.to_thread(tally.check, every=False)
        except ApiError as error:
            await _add_the_rest(entries, error, report)
            raise

    async def _take_clips(
        self, archive: Path, plan: Plan, folder: Path, report: DatasetReport, tally: ClipTally
    ) -> None:
        with Archive(archive) as opened:
            unpacking = Unpacking(opened, plan, folder, report, tally)
            await self._gather(unpacking.files(), len(plan.clips), report, tally)

    async def _take_videos(self, urls: Sequence[str], folder: Path, report: DatasetReport, tally: ClipTally) -> None:
        # All are fetched before the first is probed: an actor that waits for a slow host would hold a CPU.
        files = [folder / f"video-{index}" for index in range(len(urls))]
        paths = [await self._sources.shown(url) for url in urls]
        for index, (url, file) in enumerate(zip(urls, files, strict=True)):
            try:
                await self._fetch(url, file, report)
                await asyncio.to_thread(_refuse_page, url, file)
            except ApiError as error:
                reasons = [ReportReason.REPORT_REASON_NOT_EXAMINED]
                await report.add(line(paths[index], Outcome.OUTCOME_REJECTED, reasons, str(error)))
                for other in (*paths[:index], *paths[index + 1 :]):
                    await report.add(not_examined(other))
                raise
        await self._gather(_candidates(paths, files), len(urls), report, tally)
        # A position in the list means something to the caller: none may be missing.
        await asyncio.to_thread(tally.check, every=True)

    async def _gather(
        self, files: AsyncGenerator[Candidate, None], total: int, report: DatasetReport, tally: ClipTally
    ) -> None:
        intake = Intake(self._clips, report, tally, total)
        async with (
            aclosing(files),
            aclosing(intake.unknown(files)) as unknown,
            aclosing(self._probing.results(unknown)) as results,
        ):
            async for stored, result in results:
                await intake.settle(stored, result)
        report.progress(tally.examined, total)

    async def _fetch(self, url: str, target: Path, report: DatasetReport) -> None:
        """Fetch to `target`, which appears whole or not at all; one that an earlier attempt left is taken as it is."""
        if target.exists():
            return
        part = target.with_suffix(".part")
        try:
            async with aclosing(self._sources.read(url, part)) as steps:
                async for step in steps:
                    report.fetched(step.completed_bytes, step.total_bytes)
        except OSError:
            # A disk that is full: others may need the rest of it while this one waits.
            part.unlink(missing_ok=True)
            raise
        part.replace(target)

    async def _read_directory(self, url: str, archive: Path) -> list[Entry]:
        try:
            return await asyncio.to_thread(read_directory, archive, self._settings)
        except ArchiveRefused:
            if await asyncio.to_thread(_is_page, archive):
                raise unreadable(f"{shown(url)} is a web page, not a zip archive. {sniff.link_advice(url)}") from None
            raise

    def _folder(self, name: str) -> Path:
        return self.scratch / name.rpartition("/")[2]

    async def _clear(self, name: str) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder(name), ignore_errors=True)


def _archive_url(dataset: Dataset) -> str:
    return f"upload:{dataset.upload}" if dataset.upload else dataset.archive_url


async def _candidates(paths: Sequence[str], files: Sequence[Path]) -> AsyncGenerator[Candidate, None]:
    for index, (path, file) in enumerate(zip(paths, files, strict=True)):
        hashed = await asyncio.to_thread(hash_file, file)
        yield Candidate(index=index, path=path, file=hashed)
        file.unlink()


async def _add_the_rest(entries: Sequence[Entry], error: ApiError, report: DatasetReport) -> None:
    """Add a line for every file that has none yet."""

    def lines() -> list[ReportLine]:
        if isinstance(error, ArchiveRefused):
            return [item for item in refusal_lines(entries, error) if not report.has(item.path)]
        return [not_examined(entry.path) for entry in entries if not report.has(entry.path)]

    await _add(report, await asyncio.to_thread(lines))


async def _add(report: DatasetReport, lines: Iterable[ReportLine]) -> None:
    """Add a hundred thousand lines without keeping the event loop from its other work."""
    for number, item in enumerate(lines):
        await report.add(item)
        if number % LINES_AT_ONCE == 0:
            await asyncio.sleep(0)


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return sniff.is_web_page(file.read(sniff.HEAD_BYTES))


def _refuse_page(url: str, path: Path) -> None:
    if _is_page(path):
        text = f"{shown(url)} is a web page, not a video. {sniff.link_advice(url)}"
        raise FailedPrecondition(ErrorReason.ERROR_REASON_DOWNLOAD_REFUSED, text, metadata={"url": shown(url)})
