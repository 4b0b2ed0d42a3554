"""Settings under which more clips would fit, for people (X1)."""

from collections.abc import Sequence

from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings

from services.preprocess.outcome import Outcome
from trainer.geometry import snap_frames
from trainer.media.frame_schedule import MAX_STRETCH


def suggestions(clips: Sequence[tuple[Clip, Outcome]], settings: PreprocessSettings) -> list[str]:
    """Sentences "with X, N more clips fit"; empty when every clip is used."""
    short = [
        (clip, scene) for clip, outcome in clips for scene in outcome.scenes if scene.skipped.endswith("TOO_SHORT")
    ]
    found = []
    lengths = [_usable_frames(clip, scene.source_frames, settings) for clip, scene in short]
    for count in _counts_to_try(lengths, settings.conditioning_frames):
        fitting = sum(length >= count for length in lengths)
        found.append(f"With number_of_frames = {count}, {_more(fitting)}.")
    if not settings.auto_scale_input:
        stretched = [
            clip for clip, scene in short if _seconds(clip, scene.source_frames) * MAX_STRETCH >= _needed(settings)
        ]
        if stretched:
            found.append(f"With auto_scale_input, {_more(len(stretched))}.")
    whole = [
        clip
        for clip, outcome in clips
        if not outcome.kept and len(outcome.scenes) > 1 and clip.frame_count >= settings.training.frame_count
    ]
    if whole:
        found.append(f"Without split_input_into_scenes, {_more(len(whole))}.")
    return found


def _counts_to_try(lengths: Sequence[int], prefix: int) -> list[int]:
    """The largest count that saves a clip, and the one that saves as many as any does."""
    counts = sorted({snap_frames(length) for length in lengths if snap_frames(length) > max(prefix, 8)})
    return list(dict.fromkeys([counts[-1], counts[0]])) if counts else []


def _usable_frames(clip: Clip, frames: int, settings: PreprocessSettings) -> int:
    """Frames that a clip yields without being cut short: its own, or with scaling those of four times its duration."""
    if not settings.auto_scale_input:
        return frames
    return int(_seconds(clip, frames) * settings.training.frame_rate * MAX_STRETCH)


def _seconds(clip: Clip, frames: int) -> float:
    return frames / clip.frame_rate if clip.frame_rate and frames > 1 else 0.0


def _needed(settings: PreprocessSettings) -> float:
    return settings.training.frame_count / settings.training.frame_rate


def _more(count: int) -> str:
    return f"{count} more clip{'s' if count != 1 else ''} would fit"
