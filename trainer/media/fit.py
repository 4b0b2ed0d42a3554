"""A clip, its scenes or its prefix, as the model sees and hears them."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from trainer.errors import ClipTooShort, Undecodable
from trainer.geometry import Geometry
from trainer.media.fitter import ClipFitter, Ended, FitSettings, FittedClip, Part
from trainer.media.pick import plan, plan_prefix
from trainer.media.probe import Probe
from trainer.media.scenes import Scene

__all__ = ["FitSettings", "FittedClip", "fit_clip", "fit_prefix", "fit_scenes"]

UNSTEADY = "The clip has another length each time it is read."


def fit_clip(path: Path, settings: FitSettings, *, probe: Probe | None = None, threads: int = 0) -> FittedClip:
    """The clip from its first frame on, fitted as P11 says, read no further than the last frame that is used.

    probe: what is known of the clip; it saves a second look at short ones, and without it unused_frames is 0.
    threads: of the decoder; 0 is one for each processor. Raises Undecodable, NoVideoTrack, StillImage, ClipTooShort,
    AudioTrackMissing, AudioUndecodable.
    """
    known = Ended(probe.frame_count, probe.duration_seconds) if probe else None
    for _ in range(2):
        pick = plan(settings.geometry, settings.auto_scale, known)
        with ClipFitter(path, settings, threads) as fitter:
            fitted = fitter.fit(Part(0, known.frame_count if known else None), pick)
        if isinstance(fitted, FittedClip):
            return fitted
        known = fitted
    raise Undecodable(UNSTEADY)


def fit_scenes(
    path: Path, scenes: Sequence[Scene], settings: FitSettings, *, threads: int = 0
) -> Iterator[FittedClip | ClipTooShort]:
    """One result for each scene in their ascending order, from one pass over the clip; raises what fit_clip raises."""
    with ClipFitter(path, settings, threads) as fitter:
        for scene in scenes:
            try:
                pick = plan(settings.geometry, settings.auto_scale, scene)
            except ClipTooShort as error:
                yield error
                continue
            fitted = fitter.fit(Part(scene.start_frame, scene.end_frame), pick)
            if isinstance(fitted, Ended):
                raise Undecodable("The clip ends before its last scene.")
            yield fitted


def fit_prefix(
    path: Path,
    geometry: Geometry,
    conditioning_frames: int,
    with_audio: bool,
    *,
    normalize_audio: bool = True,
    threads: int = 0,
) -> FittedClip:
    """The first conditioning_frames frames of a clip at the geometry's rate, never stretched, with their sound (P18).

    Raises ClipTooShort with the clip's count at that rate, and what fit_clip raises.
    """
    geometry = replace(geometry, frame_count=conditioning_frames)
    settings = FitSettings(
        geometry=geometry,
        auto_scale=True,
        with_audio=with_audio,
        normalize_audio=normalize_audio,
        preserve_pitch=True,
    )
    with ClipFitter(path, settings, threads) as fitter:
        fitted = fitter.fit(Part(), plan_prefix(geometry))
    if isinstance(fitted, Ended):
        plan_prefix(geometry, fitted)
        raise Undecodable(UNSTEADY)
    return fitted
