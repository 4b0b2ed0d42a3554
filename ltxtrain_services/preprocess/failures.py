"""When a training set fails because of its clips, and what its error says."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.rpc.error_details_pb2 import PreconditionFailure
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason
from ltxtrain_client.enum_words import word

from ltxtrain_services.preprocess.outcome import SceneOutcome, Skip
from ltxtrain_services.runtime.errors import MAX_SUBJECTS, MAX_TEXT, ApiError, FailedPrecondition

ALL_TOO_SHORT = "All training videos are too short to be trainable"
TOO_SHORT = frozenset({ReportReason.REPORT_REASON_CLIP_TOO_SHORT, ReportReason.REPORT_REASON_SCENE_TOO_SHORT})
IN_WORDS = {
    ReportReason.REPORT_REASON_CLIP_TOO_SHORT: "too short",
    ReportReason.REPORT_REASON_SCENE_TOO_SHORT: "too short after splitting",
    ReportReason.REPORT_REASON_UNDECODABLE: "undecodable",
    ReportReason.REPORT_REASON_CLIP_DAMAGED: "damaged",
    ReportReason.REPORT_REASON_PRESENTATION_UNSUPPORTED: "shown in a way that is not supported",
    ReportReason.REPORT_REASON_NO_VIDEO_TRACK: "without a moving picture",
    ReportReason.REPORT_REASON_AUDIO_UNDECODABLE: "with sound that cannot be decoded",
    ReportReason.REPORT_REASON_ACTOR_KILLED: "impossible to decode within the limits",
}


@dataclass
class Faults:
    """Faults that make the data as a whole unfit before anything is encoded; all come back together (D12, P18)."""

    without_audio: list[Clip] = field(default_factory=list)
    # Validation clips whose prefix could not be fitted, with the outcome.
    unusable: list[tuple[Clip, SceneOutcome]] = field(default_factory=list)

    def error(self) -> ApiError | None:
        """The first kind of fault gives the reason, the details name every clip of every kind."""
        violations = [("AUDIO", clip.path, "no audio track") for clip in self.without_audio]
        violations += [("VALIDATION", clip.path, scene.description) for clip, scene in self.unusable]
        if not violations:
            return None
        sentences = [f"The validation clip {clip.path}: {scene.description}." for clip, scene in self.unusable]
        if self.without_audio:
            has = "has" if len(self.without_audio) == 1 else "have"
            text = f"with_audio needs an audio track in every clip; {_paths(self.without_audio)} {has} none."
            sentences.insert(0, f"{text} Take them out, or turn with_audio off.")
        counts = {"withoutAudio": len(self.without_audio), "validation": len(self.unusable), "count": len(violations)}
        error = FailedPrecondition(self._reason(), " ".join(sentences), metadata=counts)
        error.details.append(
            PreconditionFailure(
                violations=[
                    PreconditionFailure.Violation(type=kind, subject=path[:MAX_TEXT], description=text[:MAX_TEXT])
                    for kind, path, text in violations[:MAX_SUBJECTS]
                ]
            )
        )
        return error

    def _reason(self) -> "ErrorReason":
        if self.without_audio:
            return ErrorReason.ERROR_REASON_AUDIO_TRACK_MISSING
        if any(scene.skipped is Skip.VALIDATION_CLIP_TOO_SHORT for _, scene in self.unusable):
            return ErrorReason.ERROR_REASON_VALIDATION_CLIP_TOO_SHORT
        return ErrorReason.ERROR_REASON_NO_USABLE_CLIPS


def nothing_left(skipped: Sequence[ReportLine]) -> FailedPrecondition:
    """The error of a training set without a sample: too short word for word (D10), or every cause."""
    subjects = [(line.path, line.description) for line in skipped]
    causes = Counter(line.reasons[0] for line in skipped)
    if all_too_short(skipped):
        longest = max((line.frame_count for line in skipped), default=0)
        needed = max((line.needed_frames for line in skipped), default=0)
        numbers = {"longestFrames": longest, "neededFrames": needed}
        reason = ErrorReason.ERROR_REASON_ALL_CLIPS_TOO_SHORT
        return FailedPrecondition(reason, ALL_TOO_SHORT, metadata=numbers, subjects=subjects, kind="LENGTH")
    counted = ", ".join(f"{count} {_in_words(cause)}" for cause, count in causes.most_common())
    text = f"No training video can be used: {counted}."
    return FailedPrecondition(
        ErrorReason.ERROR_REASON_NO_USABLE_CLIPS, text, subjects=subjects, kind="CLIP", metadata={"causes": counted}
    )


def all_too_short(skipped: Sequence[ReportLine]) -> bool:
    return all(line.reasons[0] in TOO_SHORT for line in skipped)


def clip_skipped(skipped: Sequence[ReportLine]) -> FailedPrecondition:
    """on_skipped_clip is FAIL and these were left out."""
    first = skipped[0]
    more = f" and {len(skipped) - 1} more" if len(skipped) > 1 else ""
    text = f"A clip was skipped and on_skipped_clip is FAIL: {first.path} ({first.description}){more}."
    subjects = [(line.path, line.description) for line in skipped]
    return FailedPrecondition(ErrorReason.ERROR_REASON_CLIP_SKIPPED, text, subjects=subjects, kind="CLIP")


def skipped_lines(lines: Sequence[ReportLine]) -> list[ReportLine]:
    return [line for line in lines if line.outcome == Outcome.OUTCOME_SKIPPED and not _is_parent(line)]


def _is_parent(line: ReportLine) -> bool:
    return list(line.reasons) == [ReportReason.REPORT_REASON_SPLIT]


def _in_words(cause: "ReportReason") -> str:
    return IN_WORDS.get(cause, word(ReportReason.DESCRIPTOR, cause).lower().replace("_", " "))


def _paths(clips: Sequence[Clip], limit: int = 5) -> str:
    named = ", ".join(clip.path for clip in clips[:limit])
    return named if len(clips) <= limit else f"{named} and {len(clips) - limit} more"
