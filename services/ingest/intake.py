"""Stores what arrives and has it probed, each content once."""

from collections import defaultdict
from collections.abc import AsyncGenerator

from ltxtrain.v1.ingest_pb2 import Clip

from services.ingest import measured
from services.ingest.actors import Verdict
from services.ingest.clips import ClipStore
from services.ingest.gather import Arrived, Candidate, Gathered
from services.ingest.report import DatasetReport


class Intake:
    """The files of one dataset."""

    def __init__(self, clips: ClipStore, report: DatasetReport, gathered: Gathered, total: int) -> None:
        self._clips = clips
        self._report = report
        self._gathered = gathered
        self._total = total
        # By key of the content.
        self._first: dict[str, tuple[int, str]] = {}
        self._settled: dict[str, Clip | Verdict] = {}
        self._waiting: defaultdict[str, list[Candidate]] = defaultdict(list)

    async def unknown(self, files: AsyncGenerator[Arrived, None]) -> AsyncGenerator[Candidate, None]:
        """Store every file; yields those that have to be probed, all others are settled on the way."""
        self._report.progress(0, self._total)
        async for arrived in files:
            blob, known = await self._clips.keep(arrived.file, arrived.path, self._gathered.dataset)
            first_index, first_path = self._first.setdefault(blob.key, (arrived.index, arrived.path))
            candidate = Candidate(
                index=arrived.index,
                path=arrived.path,
                blob=blob,
                caption=arrived.caption,
                reasons=arrived.reasons,
                duplicate_of="" if first_index == arrived.index else first_path,
            )
            if (settled := self._settled.get(blob.key)) is not None:
                await self._settle(candidate, settled)
            elif blob.key in self._waiting:
                self._waiting[blob.key].append(candidate)
            elif known is not None:
                self._settled[blob.key] = known
                self._report.reused_count += 1
                await self._settle(candidate, known, reused=True)
            else:
                self._waiting[blob.key] = []
                yield candidate

    async def settle(self, candidate: Candidate, verdict: Verdict) -> None:
        """Take up what probing found, for the candidate and for all with the same bytes."""
        found: Clip | Verdict = verdict
        if verdict.probe is not None:
            found = measured.describe(verdict.probe)
            await self._clips.describe(candidate.blob, found, self._gathered.dataset)
        self._settled[candidate.blob.key] = found
        for item in (candidate, *self._waiting.pop(candidate.blob.key)):
            await self._settle(item, found)

    async def _settle(self, candidate: Candidate, found: Clip | Verdict, *, reused: bool = False) -> None:
        if isinstance(found, Clip):
            item = self._gathered.keep(candidate, found, reused=reused)
        else:
            item = self._gathered.drop(candidate, found)
        self._report.clip_count = len(self._gathered.clips)
        self._report.caption_count = self._gathered.caption_count
        await self._report.add(item)
        self._report.progress(self._gathered.looked_at, self._total)
