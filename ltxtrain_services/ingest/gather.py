"""Clips on their way into a dataset: each content is stored and probed once, each file has its line of the report."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.work_pb2 import ClipNumbers, Outcome, ReportLine, ReportReason
from ltxtrain_client.enum_words import word
from ltxtrain_client.quantities import count_text

from ltxtrain_services.ingest.archive import Unpacked
from ltxtrain_services.ingest.clip_store import ClipStore
from ltxtrain_services.ingest.plan import images_refused
from ltxtrain_services.ingest.prober import ProbeResult
from ltxtrain_services.ingest.report import DatasetReport, line
from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition

RECOMMENDED_CLIPS = 10
# Share of silence (below -60 dBFS) from which a track is called silent.
SILENT_SHARE = 1.0
# Reasons for which a clip that is kept is not the whole file.
LOSSES = frozenset({ReportReason.REPORT_REASON_CLIP_DAMAGED, ReportReason.REPORT_REASON_LEADING_FRAMES_UNUSED})


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file on disk that may be a clip."""

    # Place among the clips of the dataset.
    index: int
    # In the archive, or the URL as it is shown.
    path: str
    file: Unpacked
    caption: str = ""
    # Where the caption is from and which others there are, for the report; empty: from the one file that there is.
    caption_note: str = ""
    # Warnings that its name and its caption gave rise to.
    reasons: Sequence["ReportReason"] = ()


@dataclass(frozen=True, kw_only=True)
class StoredCandidate:
    """A candidate whose bytes are in the object store."""

    candidate: Candidate
    blob: Blob
    # Path of an earlier candidate with the same bytes.
    duplicate_of: str = ""


@dataclass
class ClipTally:
    """The clips of a dataset that were kept so far, and the files that were not."""

    dataset: str
    # By index.
    clips: dict[int, Clip] = field(default_factory=dict)
    # Path, reason and text of files that cannot be used; images are apart.
    skipped: list[tuple[str, "ReportReason", str]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    caption_count: int = 0

    @property
    def examined(self) -> int:
        return len(self.clips) + len(self.skipped) + len(self.images)

    def keep(self, stored: StoredCandidate, found: Clip, *, reused: bool) -> ReportLine:
        """Add a clip; its line."""
        candidate = stored.candidate
        clip = Clip(name=f"{self.dataset}/clips/{candidate.index}", path=candidate.path, caption=candidate.caption)
        clip.MergeFrom(found)
        clip.blob.CopyFrom(stored.blob)
        self.clips[candidate.index] = clip
        self.caption_count += bool(clip.caption)
        reasons = [*candidate.reasons, *_warnings(clip)]
        text = _summary(clip)
        if candidate.caption_note:
            text += f"; {candidate.caption_note}"
        if stored.duplicate_of:
            reasons.append(ReportReason.REPORT_REASON_DUPLICATE_CONTENT)
            text += f"; the same bytes as {stored.duplicate_of}"
        elif reused:
            text += "; stored and probed by an earlier dataset"
        return line(
            candidate.path,
            Outcome.OUTCOME_KEPT_CHANGED if LOSSES.intersection(reasons) else Outcome.OUTCOME_KEPT,
            reasons,
            text,
            frame_count=clip.frame_count,
            numbers=_numbers(clip, stored.duplicate_of),
        )

    def drop(self, path: str, result: ProbeResult) -> ReportLine:
        """Add a file that is no clip; its line."""
        if result.still_image:
            self.images.append((path, result.failure))
            reasons = [ReportReason.REPORT_REASON_IMAGE_NOT_ALLOWED]
            return line(path, Outcome.OUTCOME_REJECTED, reasons, result.failure)
        return self.skip(path, _reason(result), result.failure)

    def skip(self, path: str, reason: "ReportReason", text: str) -> ReportLine:
        """Add a file that cannot be used; its line."""
        self.skipped.append((path, reason, text))
        reasons = [reason]
        if reason in (ReportReason.REPORT_REASON_ENTRY_CORRUPT, ReportReason.REPORT_REASON_CLIP_DAMAGED):
            reasons.append(ReportReason.REPORT_REASON_UNDECODABLE)
        return line(path, Outcome.OUTCOME_SKIPPED, reasons, text)

    def check(self, *, every: bool) -> None:
        """Raises FailedPrecondition when images were found or no clip is left; with `every`, when one is missing."""
        if self.images:
            raise images_refused(sorted(self.images))
        if not self.clips or (every and self.skipped):
            raise _unusable(sorted(self.skipped))

    def in_order(self) -> list[Clip]:
        return [self.clips[index] for index in sorted(self.clips)]

    def few_clips(self) -> ReportLine | None:
        """The warning for a dataset of fewer clips than recommended; its line has no path."""
        if len(self.clips) >= RECOMMENDED_CLIPS:
            return None
        text = f"{count_text(len(self.clips), 'clip')}; {RECOMMENDED_CLIPS} or more are recommended"
        return line("", Outcome.OUTCOME_KEPT, [ReportReason.REPORT_REASON_FEW_CLIPS], text)


class Intake:
    """Stores the candidates of one dataset and has each content probed once."""

    def __init__(self, clips: ClipStore, report: DatasetReport, tally: ClipTally, total: int) -> None:
        self._clips = clips
        self._report = report
        self._tally = tally
        self._total = total
        # By key of the content.
        self._first: dict[str, tuple[int, str]] = {}
        self._settled: dict[str, Clip | ProbeResult] = {}
        self._waiting: defaultdict[str, list[StoredCandidate]] = defaultdict(list)

    async def unknown(self, candidates: AsyncGenerator[Candidate, None]) -> AsyncGenerator[StoredCandidate, None]:
        """Store every candidate; yields those that have to be probed, all others are settled on the way."""
        self._report.progress(0, self._total)
        async for candidate in candidates:
            blob, known = await self._clips.keep(candidate.file, candidate.path, self._tally.dataset)
            first_index, first_path = self._first.setdefault(blob.key, (candidate.index, candidate.path))
            duplicate_of = "" if first_index == candidate.index else first_path
            stored = StoredCandidate(candidate=candidate, blob=blob, duplicate_of=duplicate_of)
            if (settled := self._settled.get(blob.key)) is not None:
                await self._settle(stored, settled)
            elif blob.key in self._waiting:
                self._waiting[blob.key].append(stored)
            elif known is not None:
                self._settled[blob.key] = known
                self._report.reused_count += 1
                await self._settle(stored, known, reused=True)
            else:
                self._waiting[blob.key] = []
                yield stored

    async def settle(self, stored: StoredCandidate, result: ProbeResult) -> None:
        """Record the probe's result, for the candidate and for all with the same bytes."""
        found: Clip | ProbeResult = result
        if result.clip is not None:
            found = result.clip
            await self._clips.describe(stored.blob, found, self._tally.dataset)
        self._settled[stored.blob.key] = found
        for item in (stored, *self._waiting.pop(stored.blob.key)):
            await self._settle(item, found)

    async def _settle(self, stored: StoredCandidate, found: Clip | ProbeResult, *, reused: bool = False) -> None:
        if isinstance(found, Clip):
            item = self._tally.keep(stored, found, reused=reused)
        else:
            item = self._tally.drop(stored.candidate.path, found)
        self._report.clip_count = len(self._tally.clips)
        self._report.caption_count = self._tally.caption_count
        await self._report.add(item)
        self._report.progress(self._tally.examined, self._total)


def _numbers(clip: Clip, duplicate_of: str) -> ClipNumbers:
    """The numbers of a clip's report line."""
    return ClipNumbers(
        source_frame_rate=clip.frame_rate,
        width=clip.width,
        height=clip.height,
        duration_seconds=clip.probe.duration_seconds,
        audio=clip.probe.audio if clip.probe.HasField("audio") else None,
        duplicate_of=duplicate_of,
    )


def _summary(clip: Clip) -> str:
    """A clip in one sentence."""
    rate = f"{'about ' if clip.probe.variable_frame_rate else ''}{clip.frame_rate:.4g} fps"
    sound = f"audio {clip.audio_sample_rate} Hz" if clip.HasField("audio_sample_rate") else "no audio"
    text = f"{clip.frame_count} frames, {clip.width}x{clip.height}, {rate}, {sound}"
    if clip.probe.leading_frames:
        before = count_text(clip.probe.leading_frames, "frame")
        text += f"; {before} before the first whole one left out: what such frames build on is missing or damaged"
    return f"{text}; {clip.probe.damage}" if clip.probe.damage else text


def _warnings(clip: Clip) -> list["ReportReason"]:
    """Warnings about a clip that is kept."""
    found: list[ReportReason] = []
    if clip.probe.HasField("audio") and clip.probe.audio.silence_share >= SILENT_SHARE:
        found.append(ReportReason.REPORT_REASON_AUDIO_SILENT)
    if clip.probe.audio_error:
        found.append(ReportReason.REPORT_REASON_AUDIO_UNDECODABLE)
    if clip.probe.damage:
        found.append(ReportReason.REPORT_REASON_CLIP_DAMAGED)
    if clip.probe.leading_frames:
        found.append(ReportReason.REPORT_REASON_LEADING_FRAMES_UNUSED)
    return found


def _reason(result: ProbeResult) -> "ReportReason":
    if result.exhausted:
        return ReportReason.REPORT_REASON_ACTOR_KILLED
    if result.no_video:
        return ReportReason.REPORT_REASON_NO_VIDEO_TRACK
    if result.unsupported:
        return ReportReason.REPORT_REASON_PRESENTATION_UNSUPPORTED
    if result.damaged:
        return ReportReason.REPORT_REASON_CLIP_DAMAGED
    return ReportReason.REPORT_REASON_UNDECODABLE


def _unusable(skipped: Sequence[tuple[str, "ReportReason", str]]) -> ApiError:
    names = [word(ReportReason.DESCRIPTOR, reason) for _, reason, _ in skipped]
    subjects = [(path, f"{name}: {text}") for (path, _, text), name in zip(skipped, names, strict=True)]
    causes = sorted(set(names))
    first = f"{skipped[0][0]!r}: {skipped[0][2]}" if skipped else ""
    text = f"No usable clip is left. {first}" if len(skipped) > 1 else f"The only video cannot be used. {first}"
    return FailedPrecondition(
        ErrorReason.ERROR_REASON_NO_USABLE_CLIPS,
        text,
        metadata={"causes": ", ".join(causes)},
        subjects=subjects,
        kind=causes[0] if len(causes) == 1 else "CLIP",
    )
