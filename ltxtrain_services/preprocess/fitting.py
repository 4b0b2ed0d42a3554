"""A clip file fitted to the shape of a training set, scene by scene, with the faults of clips as outcomes."""

import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from ltxtrain_services.preprocess.outcome import FitTask, SceneOutcome, Skip
from ltxtrain_trainer.errors import (
    AudioTrackMissing,
    AudioUndecodable,
    ClipDamaged,
    ClipError,
    ClipTooShort,
    NoVideoTrack,
    PresentationUnsupported,
    StillImage,
)
from ltxtrain_trainer.media.fit import FittedClip, fit_prefix, fit_scenes
from ltxtrain_trainer.media.frame_schedule import Scene
from ltxtrain_trainer.media.scenes import find_scenes

log = logging.getLogger(__name__)

# FFmpeg's message when its process reaches its memory limit.
OUT_OF_MEMORY = os.strerror(errno.ENOMEM)
SKIPS: dict[type[ClipError], Skip] = {
    StillImage: Skip.IMAGE_NOT_ALLOWED,
    NoVideoTrack: Skip.NO_VIDEO_TRACK,
    AudioTrackMissing: Skip.AUDIO_TRACK_MISSING,
    AudioUndecodable: Skip.AUDIO_UNDECODABLE,
    ClipDamaged: Skip.CLIP_DAMAGED,
    PresentationUnsupported: Skip.PRESENTATION_UNSUPPORTED,
}
# A fitter has one processor.
THREADS = 1
# A fitted sound that never gets louder is a track of zeros (D15).
SILENCE = 1e-4


def fit(path: Path, task: FitTask) -> Iterator[tuple[SceneOutcome, FittedClip | None]]:
    """Every scene in order, with frames and sound where it can be used. One pass over the clip, two to find scenes."""
    if task.prefix:
        yield _prefix(path, task)
        return
    whole = Scene(
        start_frame=0,
        end_frame=task.frame_count,
        start_seconds=0.0,
        end_seconds=task.duration_seconds,
        score=0.0,
    )
    count = 0
    found = [whole]
    try:
        if task.split:
            found = find_scenes(path, threads=THREADS)
        for scene, fitted in zip(found, fit_scenes(path, found, task.settings, threads=THREADS), strict=True):
            count += 1
            if isinstance(fitted, ClipTooShort):
                reason = Skip.SCENE_TOO_SHORT if len(found) > 1 else Skip.CLIP_TOO_SHORT
                text = str(fitted)
                if task.damage and scene is found[-1]:
                    reason, text = Skip.CLIP_DAMAGED, f"{task.damage} {text} before it"
                yield _skipped(scene, reason, text, fitted), None
            else:
                yield _kept(scene, fitted), fitted
    except Exception as error:
        # Scenes before the fault have been handed on and stay.
        reason, text = _fault(error)
        for scene in found[count:]:
            yield _skipped(scene, reason, text), None


def _prefix(path: Path, task: FitTask) -> tuple[SceneOutcome, FittedClip | None]:
    settings = task.settings
    try:
        fitted = fit_prefix(
            path,
            settings.geometry,
            settings.geometry.frame_count,
            settings.with_audio,
            normalize_audio=settings.normalize_audio,
            threads=THREADS,
        )
    except ClipTooShort as error:
        scene = SceneOutcome(
            skipped=Skip.VALIDATION_CLIP_TOO_SHORT,
            description=str(error),
            have_frames=error.frame_count,
            needed_frames=error.needed_frames,
        )
        return scene, None
    except Exception as error:
        reason, text = _fault(error)
        return SceneOutcome(skipped=reason, description=text), None
    return _fitted(fitted, 0, fitted.end_frame), fitted


def _kept(scene: Scene, fitted: FittedClip) -> SceneOutcome:
    return _fitted(fitted, scene.start_frame, scene.frame_count, scene.start_seconds, scene.score)


def _fitted(
    fitted: FittedClip, start_frame: int, source_frames: int, cut_seconds: float = 0.0, cut_score: float = 0.0
) -> SceneOutcome:
    return SceneOutcome(
        start_frame=start_frame,
        source_frames=source_frames,
        frame_count=len(fitted.frames),
        frame_rate=fitted.frame_rate,
        stretch=fitted.stretch,
        unused_frames=fitted.unused_frames,
        crop_loss_percent=fitted.crop_loss_percent,
        silent=fitted.audio is not None and not (abs(fitted.audio) > SILENCE).any(),
        audio_missing_seconds=fitted.audio_missing_seconds,
        cut_seconds=cut_seconds,
        cut_score=cut_score,
    )


def _fault(error: Exception) -> tuple[Skip, str]:
    """The reason of a clip's fault, and a sentence."""
    if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error):
        return Skip.ACTOR_KILLED, "fitting it needs more memory than a clip may use"
    if isinstance(error, ClipError):
        return SKIPS.get(type(error), Skip.UNDECODABLE), str(error)
    # Files are untrusted input: an unexpected error is blamed on the file, and logged here in full.
    log.exception("unforeseen", exc_info=error)
    return Skip.UNDECODABLE, f"its reader failed unexpectedly ({type(error).__name__})"


def _skipped(scene: Scene, reason: Skip, text: str, too_short: ClipTooShort | None = None) -> SceneOutcome:
    return SceneOutcome(
        start_frame=scene.start_frame,
        source_frames=scene.frame_count,
        skipped=reason,
        description=text,
        have_frames=too_short.frame_count if too_short else None,
        needed_frames=too_short.needed_frames if too_short else None,
        cut_seconds=scene.start_seconds,
        cut_score=scene.score,
    )
