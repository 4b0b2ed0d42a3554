"""Clips on their way: what is known of each, and its line of the report."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason
from ltxtrain_client.enum_words import word

from services.ingest import measured
from services.ingest.actors import Verdict
from services.ingest.archive import Unpacked
from services.ingest.plan import images_refused
from services.ingest.report import line
from services.runtime.errors import ApiError, FailedPrecondition

RECOMMENDED_CLIPS = 10


@dataclass(frozen=True, kw_only=True)
class Arrived:
    """A file on disk that may be a clip, with the warnings that its name gave rise to."""

    index: int
    # In the archive, or the URL as it is shown.
    path: str
    file: Unpacked
    caption: str = ""
    reasons: Sequence["ReportReason"] = ()


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A file that is stored and may be a clip."""

    index: int
    path: str
    blob: Blob
    caption: str = ""
    reasons: Sequence["ReportReason"] = ()
    # Path of an earlier candidate with the same bytes.
    duplicate_of: str = ""


@dataclass
class Gathered:
    """What became of the candidates so far."""

    dataset: str
    # By index.
    clips: dict[int, Clip] = field(default_factory=dict)
    # Path and why, of clips that cannot be used; images are apart.
    skipped: list[tuple[str, "ReportReason", str]] = field(default_factory=list)
    images: list[tuple[str, str]] = field(default_factory=list)
    caption_count: int = 0

    @property
    def looked_at(self) -> int:
        return len(self.clips) + len(self.skipped) + len(self.images)

    def keep(self, candidate: Candidate, found: Clip, *, reused: bool) -> ReportLine:
        """The clip and its line."""
        clip = Clip(name=f"{self.dataset}/clips/{candidate.index}", path=candidate.path, caption=candidate.caption)
        clip.MergeFrom(found)
        clip.blob.CopyFrom(candidate.blob)
        self.clips[candidate.index] = clip
        self.caption_count += bool(clip.caption)
        reasons = [*candidate.reasons, *measured.warnings(clip)]
        text = measured.summary(clip)
        if candidate.duplicate_of:
            reasons.append(ReportReason.REPORT_REASON_DUPLICATE_CONTENT)
            text += f"; the same bytes as {candidate.duplicate_of}"
        elif reused:
            text += "; stored and probed by an earlier dataset"
        return line(
            candidate.path,
            Outcome.OUTCOME_KEPT,
            reasons,
            text,
            frame_count=clip.frame_count,
            numbers=measured.numbers(clip, candidate.duplicate_of),
        )

    def drop(self, candidate: Candidate, verdict: Verdict) -> ReportLine:
        """The line of a file that is no clip."""
        if verdict.still_image:
            self.images.append((candidate.path, verdict.failure))
            reasons = [ReportReason.REPORT_REASON_IMAGE_NOT_ALLOWED]
            return line(candidate.path, Outcome.OUTCOME_REJECTED, reasons, verdict.failure)
        return self.skip(candidate.path, _reason(verdict), verdict.failure)

    def skip(self, path: str, reason: "ReportReason", text: str) -> ReportLine:
        self.skipped.append((path, reason, text))
        reasons = [reason]
        if reason == ReportReason.REPORT_REASON_ENTRY_CORRUPT:
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
        text = f"{len(self.clips)} clips; {RECOMMENDED_CLIPS} or more are recommended"
        return line("", Outcome.OUTCOME_KEPT, [ReportReason.REPORT_REASON_FEW_CLIPS], text)


def _reason(verdict: Verdict) -> "ReportReason":
    if verdict.exhausted:
        return ReportReason.REPORT_REASON_ACTOR_KILLED
    if verdict.no_video:
        return ReportReason.REPORT_REASON_NO_VIDEO_TRACK
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
