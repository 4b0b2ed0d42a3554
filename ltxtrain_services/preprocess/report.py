"""The lines of a training set's report: what became of each clip and scene, in numbers and for people."""

from collections.abc import Sequence
from dataclasses import dataclass

from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings
from ltxtrain.v1.work_pb2 import ClipNumbers, Outcome, ReportLine, ReportReason, SceneCut

from ltxtrain_services.preprocess.outcome import FitOutcome, SceneOutcome
from ltxtrain_trainer.geometry import snap_frames
from ltxtrain_trainer.media.frame_schedule import MAX_STRETCH

# Relative difference of a clip's own rate from frame_rate above which the report mentions it (conformance P11).
RATE_TOLERANCE = 0.01
# Share of the picture lost to the bucket's shape from which the report mentions it.
REPORT_CROP_ABOVE_PERCENT = 5
# Coders round the end of a track to their blocks, of which the longest in use lasts less.
REPORT_MISSING_SOUND_SECONDS = 0.1
CHANGES = frozenset(
    {
        ReportReason.REPORT_REASON_FRAMES_UNUSED,
        ReportReason.REPORT_REASON_STRETCHED,
        ReportReason.REPORT_REASON_CAPTION_TRUNCATED,
        ReportReason.REPORT_REASON_SPLIT,
        ReportReason.REPORT_REASON_CLIP_DAMAGED,
        ReportReason.REPORT_REASON_LEADING_FRAMES_UNUSED,
    }
)


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as it is embedded; no token count where no tokenizer was loaded."""

    text: str
    tokens: int = 0
    truncated: bool = False


def clip_lines(
    clip: Clip, outcome: FitOutcome, caption: Caption, settings: PreprocessSettings, duplicate_of: str
) -> list[ReportLine]:
    """One line of a clip that was not split; of one that was, one of its own and one of each scene."""
    scenes = outcome.scenes
    if len(scenes) == 1:
        return [_scene_line(clip, scenes[0], caption, settings, duplicate_of)]
    parent = ReportLine(
        path=clip.path,
        outcome=Outcome.OUTCOME_KEPT_CHANGED if outcome.kept else Outcome.OUTCOME_SKIPPED,
        reasons=[ReportReason.REPORT_REASON_SPLIT],
        description=f"split into {len(scenes)} scenes, {len(outcome.kept)} of them used",
        frame_count=clip.frame_count,
        numbers=_clip_numbers(clip, caption, duplicate_of),
    )
    parent.numbers.scene_cuts.extend(_cut(scene) for scene in scenes[1:])
    return [parent, *(_scene_line(clip, scene, caption, settings, duplicate_of, split=True) for scene in scenes)]


def validation_line(clip: Clip, scene: SceneOutcome, caption: Caption, settings: PreprocessSettings) -> ReportLine:
    """The line of a validation clip; its prompt is used as given, with a word when the trigger phrase is missing."""
    line = ReportLine(path=clip.path, numbers=_clip_numbers(clip, caption, ""))
    if scene.skipped:
        line.outcome, line.description = Outcome.OUTCOME_REJECTED, scene.description
        line.reasons.append(scene.reason)
        _add_length(line, scene)
        return line
    _add_fit(line.numbers, scene)
    if scene.silent and settings.HasField("audio"):
        line.reasons.append(ReportReason.REPORT_REASON_AUDIO_SILENT)
    if _lacks_sound(scene):
        line.reasons.append(ReportReason.REPORT_REASON_AUDIO_INCOMPLETE)
    if caption.truncated:
        line.reasons.append(ReportReason.REPORT_REASON_CAPTION_TRUNCATED)
    if settings.trigger_phrase and settings.trigger_phrase not in caption.text:
        line.reasons.append(ReportReason.REPORT_REASON_TRIGGER_MISSING)
    line.outcome = _kept(line.reasons)
    line.frame_count = scene.frame_count
    line.description = f"{scene.frame_count} frames are continued"
    return line


def no_text_line() -> ReportLine:
    """The line of a whole training set without a caption and a trigger phrase."""
    return ReportLine(
        outcome=Outcome.OUTCOME_KEPT,
        reasons=[ReportReason.REPORT_REASON_NO_TEXT],
        description="No clip has a caption and there is no trigger phrase: no words would call the LoRA. "
        "Add captions, or set trigger_phrase.",
    )


def not_examined_line(clip: Clip, *, cancelled: bool) -> ReportLine:
    text = f"the training set {'was cancelled' if cancelled else 'failed'} before this clip was looked at"
    reasons = [ReportReason.REPORT_REASON_NOT_EXAMINED]
    return ReportLine(path=clip.path, outcome=Outcome.OUTCOME_IGNORED, reasons=reasons, description=text)


def rejected_line(clip: Clip, reason: "ReportReason", description: str) -> ReportLine:
    """A clip because of which the whole training set fails."""
    return ReportLine(path=clip.path, outcome=Outcome.OUTCOME_REJECTED, reasons=[reason], description=description)


def _scene_line(
    clip: Clip,
    scene: SceneOutcome,
    caption: Caption,
    settings: PreprocessSettings,
    duplicate_of: str,
    *,
    split: bool = False,
) -> ReportLine:
    line = ReportLine(path=clip.path, numbers=_clip_numbers(clip, caption, duplicate_of))
    place = f"frames {scene.start_frame} to {scene.start_frame + scene.source_frames - 1}: " if split else ""
    if split and scene.start_frame:
        line.numbers.scene_cuts.append(_cut(scene))
    if scene.skipped:
        line.outcome = Outcome.OUTCOME_SKIPPED
        line.description = place + scene.description + _would_fit(scene, settings)
        line.reasons.append(scene.reason)
        if scene.reason == ReportReason.REPORT_REASON_CLIP_DAMAGED and scene.have_frames is not None:
            line.reasons.append(ReportReason.REPORT_REASON_CLIP_TOO_SHORT)
        _add_length(line, scene)
        return line
    _add_fit(line.numbers, scene)
    line.reasons.extend(_reasons(clip, scene, caption, settings))
    line.outcome = _kept(line.reasons)
    line.description = place + _description(clip, scene, settings)
    line.frame_count = scene.source_frames
    return line


def _reasons(clip: Clip, scene: SceneOutcome, caption: Caption, settings: PreprocessSettings) -> list["ReportReason"]:
    found = {
        ReportReason.REPORT_REASON_STRETCHED: scene.stretch > 1,
        ReportReason.REPORT_REASON_FRAMES_UNUSED: scene.unused_frames > 0,
        ReportReason.REPORT_REASON_FRAME_RATE_DIFFERS: _rate_differs(clip, settings),
        ReportReason.REPORT_REASON_AUDIO_SILENT: settings.HasField("audio") and scene.silent,
        ReportReason.REPORT_REASON_AUDIO_INCOMPLETE: _lacks_sound(scene),
        ReportReason.REPORT_REASON_CLIP_DAMAGED: bool(_damage_after(clip, scene)),
        ReportReason.REPORT_REASON_LEADING_FRAMES_UNUSED: _frames_before(clip, scene) > 0,
        ReportReason.REPORT_REASON_CAPTION_MISSING: not clip.caption.strip(),
        ReportReason.REPORT_REASON_CAPTION_TRUNCATED: caption.truncated,
    }
    return [reason for reason, present in found.items() if present]


def _frames_before(clip: Clip, scene: SceneOutcome) -> int:
    """Frames before the first key frame, of the scene that begins with that."""
    return clip.probe.leading_frames if scene.start_frame == 0 else 0


def _damage_after(clip: Clip, scene: SceneOutcome) -> str:
    """The damage that a clip ends with, of the scene before it."""
    return clip.probe.damage if scene.start_frame + scene.source_frames == clip.frame_count else ""


def _lacks_sound(scene: SceneOutcome) -> bool:
    return scene.audio_missing_seconds > REPORT_MISSING_SOUND_SECONDS


def _rate_differs(clip: Clip, settings: PreprocessSettings) -> bool:
    target = settings.training.frame_rate
    return not settings.auto_scale_input and abs(clip.frame_rate - target) > RATE_TOLERANCE * target


def _description(clip: Clip, scene: SceneOutcome, settings: PreprocessSettings) -> str:
    parts = [f"{scene.frame_count} frames at {scene.frame_rate:g} a second"]
    if scene.stretch > 1:
        parts.append(f"slowed down {scene.stretch:.2f} times")
    if scene.unused_frames:
        parts.append(f"{scene.unused_frames} frames unused")
    if scene.crop_loss_percent >= REPORT_CROP_ABOVE_PERCENT:
        parts.append(f"cropped to {100 - scene.crop_loss_percent:.0f} % of its picture")
    if _rate_differs(clip, settings):
        asked = settings.training.frame_rate
        parts.append(f"the clip's own rate, where {asked:g} was asked for: auto_scale_input resamples")
    if _lacks_sound(scene):
        parts.append(f"{scene.audio_missing_seconds:.2f} s of the frames in use have no sound: silence stands there")
    if before := _frames_before(clip, scene):
        parts.append(f"{before} frames before the first key frame left out")
    if damage := _damage_after(clip, scene):
        parts.append(f"used up to its damage: {damage}")
    return ", ".join(parts)


def _would_fit(scene: SceneOutcome, settings: PreprocessSettings) -> str:
    """The number_of_frames at which a clip that is too short would fit, as the end of a sentence."""
    if scene.have_frames is None:
        return ""
    length = snap_frames(int(scene.have_frames * (MAX_STRETCH if settings.auto_scale_input else 1)))
    prefix = settings.conditioning_frames
    return f"; would fit at {length}" if length > prefix else f"; too short to continue after a prefix of {prefix}"


def _kept(reasons: Sequence["ReportReason"]) -> "Outcome":
    return Outcome.OUTCOME_KEPT_CHANGED if CHANGES.intersection(reasons) else Outcome.OUTCOME_KEPT


def _clip_numbers(clip: Clip, caption: Caption, duplicate_of: str) -> ClipNumbers:
    return ClipNumbers(
        source_frame_rate=clip.frame_rate,
        audio=clip.probe.audio if clip.probe.HasField("audio") else None,
        caption=caption.text,
        caption_tokens=caption.tokens,
        caption_truncated=caption.truncated,
        duplicate_of=duplicate_of,
        width=clip.width,
        height=clip.height,
        duration_seconds=clip.probe.duration_seconds,
    )


def _add_fit(numbers: ClipNumbers, scene: SceneOutcome) -> None:
    numbers.used_frame_rate = scene.frame_rate
    numbers.unused_frames = scene.unused_frames
    numbers.crop_loss_percent = scene.crop_loss_percent
    numbers.stretch = scene.stretch
    numbers.audio_missing_seconds = scene.audio_missing_seconds


def _add_length(line: ReportLine, scene: SceneOutcome) -> None:
    if scene.have_frames is not None and scene.needed_frames is not None:
        line.frame_count, line.needed_frames = scene.have_frames, scene.needed_frames


def _cut(scene: SceneOutcome) -> SceneCut:
    return SceneCut(frame=scene.start_frame, time_seconds=scene.cut_seconds, score=scene.cut_score)
