"""Suggestions of a training set's report: settings and captions that would make more of the data."""

from collections.abc import Sequence

from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings

from ltxtrain_services.preprocess.outcome import FitOutcome
from ltxtrain_trainer.geometry import BUCKETS, snap_frames
from ltxtrain_trainer.media.frame_schedule import MAX_STRETCH

# Another shape is suggested when it keeps so much more of the pictures on average.
SHAPE_GAIN_PERCENT = 5


def suggestions(clips: Sequence[tuple[Clip, FitOutcome]], settings: PreprocessSettings) -> list[str]:
    """Sentences for people, each with its count; empty when nothing would help."""
    used = [clip for clip, outcome in clips if outcome.kept]
    return [*_lengths(clips, settings), *_shapes(used, settings), *_captions(used, settings)]


def _shapes(clips: Sequence[Clip], settings: PreprocessSettings) -> list[str]:
    """The aspect ratio that keeps most of the pictures, unless it is the chosen one or nearly as good."""
    chosen = (settings.training.width, settings.training.height)
    names = {bucket: name for name, bucket in BUCKETS.items()}
    sized = [clip for clip in clips if clip.width and clip.height]
    if chosen not in names or not sized:
        return []
    resolution, present = names[chosen]
    kept = {
        ratio: [_kept_percent(clip, BUCKETS[resolution, ratio]) for clip in sized]
        for named, ratio in BUCKETS
        if named == resolution
    }
    mean = {ratio: sum(shares) / len(sized) for ratio, shares in kept.items()}
    best = max(mean, key=lambda ratio: mean[ratio])
    if mean[best] < mean[present] + SHAPE_GAIN_PERCENT:
        return []
    gaining = sum(then > now for then, now in zip(kept[best], kept[present], strict=True))
    return [
        f"With aspect_ratio = {best}, {mean[best]:.0f} % of the picture would be kept on average, and more of it in "
        f"{gaining} of {_count(len(sized))}; with {present} it is {mean[present]:.0f} %."
    ]


def _kept_percent(clip: Clip, bucket: tuple[int, int]) -> float:
    """Share of the picture that is left when it is resized to fill the bucket and cropped."""
    ratio = (clip.width * bucket[1]) / (clip.height * bucket[0])
    return 100 * min(ratio, 1 / ratio)


def _captions(clips: Sequence[Clip], settings: PreprocessSettings) -> list[str]:
    found = []
    bare = sum(not clip.caption.strip() for clip in clips)
    # None at all is a line of the report for itself.
    if bare and (bare < len(clips) or settings.trigger_phrase.strip()):
        prompt = "the trigger phrase alone" if settings.trigger_phrase.strip() else "an empty prompt"
        verb = "has" if bare == 1 else "have"
        found.append(f"{bare} of {_count(len(clips))} {verb} no caption and would be trained with {prompt}.")
    missing = sum(settings.trigger_phrase not in prompt for prompt in settings.validation_prompts)
    if missing:
        verb = "lacks" if missing == 1 else "lack"
        found.append(f"{missing} of {len(settings.validation_prompts)} validation prompts {verb} the trigger phrase.")
    return found


def _count(clips: int) -> str:
    return f"{clips} clip{'' if clips == 1 else 's'}"


def _lengths(clips: Sequence[tuple[Clip, FitOutcome]], settings: PreprocessSettings) -> list[str]:
    """Sentences "with X, N more clips fit"; empty when every clip is used."""
    short = [
        (clip, scene)
        for clip, outcome in clips
        for scene in outcome.scenes
        if scene.skipped and scene.skipped.for_length
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
    return f"{count} more clip{'' if count == 1 else 's'} would fit"
