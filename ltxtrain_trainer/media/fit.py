"""A clip, its scenes or its prefix, as the model sees and hears them."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ltxtrain_trainer.errors import ClipDamaged, ClipTooShort, Undecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.audio import SAMPLE_RATE, AudioReader, normalize_peak
from ltxtrain_trainer.media.container import open_clip
from ltxtrain_trainer.media.decode import VideoReader
from ltxtrain_trainer.media.downmix import Sound
from ltxtrain_trainer.media.frame_schedule import FitSettings, Scene, Schedule, plan, plan_prefix
from ltxtrain_trainer.media.picture import PictureFitter
from ltxtrain_trainer.media.probe import Probe
from ltxtrain_trainer.media.stretch import stretch

UNSTEADY = "The clip has another length each time it is read."


@dataclass(frozen=True, kw_only=True)
class FittedClip:
    """Frames and sound of one sample, and how they were made."""

    frames: NDArray[np.uint8]  # [T, H, W, 3]: RGB, BT.709, full range
    audio: Sound | None  # float32 [2, S]: 16 kHz, as long as the frames
    # Positions are computed from it: the clip's own rate when its frames are used as they are, else the geometry's.
    frame_rate: float
    source_frame_rate: float
    # First frame of the clip that was used, and the one after the last.
    start_frame: int
    end_frame: int
    # Frames of the clip, or of its scene, after the last one used, as far as their number is known.
    unused_frames: int
    # Duration after over before; 1: not stretched.
    stretch: float
    # Share of the picture that centre-cropping removed.
    crop_loss_percent: float
    # For how long the track has no sound beside the frames in use; silence stands there.
    audio_missing_seconds: float = 0.0


@dataclass(frozen=True)
class Part:
    """Frames of a clip from start_frame on; end_frame None: up to its end, wherever that is."""

    start_frame: int = 0
    end_frame: int | None = None


@dataclass(frozen=True)
class Ended:
    """The part had only so many frames, and lasted only so long."""

    frame_count: int
    seconds: float
    # The damage that the clip ends with.
    damage: str | None = None


def fit_clip(path: Path, settings: FitSettings, *, probe: Probe | None = None, threads: int = 0) -> FittedClip:
    """Fit the clip from its first frame on, as P11 says, reading no further than the last frame that is used.

    probe: of the clip, where there is one; it saves a second pass over short clips, and without it unused_frames is 0.
    threads: of the decoder; 0 is one for each processor. Raises Undecodable, ClipDamaged, PresentationUnsupported,
    NoVideoTrack, StillImage, ClipTooShort, AudioTrackMissing, AudioUndecodable.
    """
    known = Ended(probe.frame_count, probe.duration_seconds, probe.damage) if probe else None
    for _ in range(2):
        try:
            schedule = plan(settings.geometry, settings.auto_scale, known)
        except ClipTooShort as error:
            raise _damaged_or_short(error, known.damage if known else None) from None
        with SceneFitter(path, settings, threads) as fitter:
            fitted = fitter.fit(Part(0, known.frame_count if known else None), schedule)
        if isinstance(fitted, FittedClip):
            return fitted
        known = fitted
    raise Undecodable(UNSTEADY)


def fit_scenes(
    path: Path, scenes: Sequence[Scene], settings: FitSettings, *, threads: int = 0
) -> Iterator[FittedClip | ClipTooShort]:
    """Yield one result for each scene in their ascending order, from one pass over the clip.

    Raises what fit_clip raises.
    """
    with SceneFitter(path, settings, threads) as fitter:
        for scene in scenes:
            try:
                schedule = plan(settings.geometry, settings.auto_scale, scene)
            except ClipTooShort as error:
                yield error
                continue
            fitted = fitter.fit(Part(scene.start_frame, scene.end_frame), schedule)
            if isinstance(fitted, Ended):
                raise Undecodable(fitted.damage or "The clip ends before its last scene.")
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
    """Fit the first frames of a clip at the geometry's rate, never stretched, with their sound (P18).

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
    with SceneFitter(path, settings, threads) as fitter:
        fitted = fitter.fit(Part(), plan_prefix(geometry))
    if isinstance(fitted, Ended):
        try:
            plan_prefix(geometry, fitted)
        except ClipTooShort as error:
            raise _damaged_or_short(error, fitted.damage) from None
        raise Undecodable(UNSTEADY)
    return fitted


def _damaged_or_short(error: ClipTooShort, damage: str | None) -> ClipDamaged | ClipTooShort:
    """Name the cause: a clip may be too short for no other reason than its damage."""
    if damage is None:
        return error
    text = f"{damage} {error} before it"
    return ClipDamaged(text, frame_count=error.frame_count, needed_frames=error.needed_frames)


class SceneFitter:
    """Fits parts of one open clip, in order. Memory: the frames that are kept, and one window of sound."""

    def __init__(self, path: Path, settings: FitSettings, threads: int) -> None:
        self._settings = settings
        self._geometry = settings.geometry
        with ExitStack() as stack:
            container = stack.enter_context(open_clip(path))
            self._reader = stack.enter_context(closing(VideoReader(container, threads=threads)))
            self._reader.first()
            self._sound = None
            if settings.with_audio:
                # Sound is read from a second handle: how far pictures are ahead of it in the file does not matter then.
                self._sound = AudioReader(stack.enter_context(open_clip(path)), self._reader.clock)
            self._stack = stack.pop_all()
        self._pictures = PictureFitter(
            self._geometry.width,
            self._geometry.height,
            self._reader.aspect,
            self._reader.orientation,
            threads,
            self._reader.declared,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fit(self, part: Part, schedule: Schedule) -> FittedClip | Ended:
        """Fit a part that begins no earlier than the one before ended; read no further than its last frame in use."""
        frames = np.empty((schedule.frame_count, self._geometry.height, self._geometry.width, 3), np.uint8)
        times: list[float] = []
        shown, begin, end, last_index = 0, 0.0, 0.0, part.start_frame
        for frame in self._reader:
            if frame.index < part.start_frame:
                continue
            begin = begin if times else frame.seconds
            times.append(frame.seconds - begin)
            end = frame.end_seconds - begin
            is_last = frame.last or frame.index + 1 == part.end_frame
            repeats = schedule.repeats(shown, times[-1], end, is_last)
            if repeats:
                self._pictures.fit(frame.picture, frames[shown])
                frames[shown + 1 : shown + repeats] = frames[shown]
                shown, last_index = shown + repeats, frame.index
            if shown == schedule.frame_count or is_last:
                break
        if shown < schedule.frame_count:
            return Ended(len(times), end, self._reader.damage)
        own_rate = self._reader.measure_rate(times, end).frames_per_second
        frame_rate = schedule.frame_rate or own_rate
        audio = self._read_sound(begin, schedule, frame_rate)
        return FittedClip(
            frames=frames,
            audio=audio,
            frame_rate=frame_rate,
            source_frame_rate=own_rate,
            start_frame=part.start_frame,
            end_frame=last_index + 1,
            unused_frames=max((part.end_frame or 0) - last_index - 1, 0),
            stretch=schedule.stretch,
            crop_loss_percent=self._pictures.cover.crop_loss_percent,
            audio_missing_seconds=self._sound.missing_seconds if self._sound else 0.0,
        )

    def _read_sound(self, begin: float, schedule: Schedule, frame_rate: float) -> Sound | None:
        """Read the sound of a part, as long as its frames; begin: seconds after the first frame of the clip."""
        if self._sound is None:
            return None
        seconds = schedule.frame_count / frame_rate
        sound = self._sound.read(self._reader.origin + begin, seconds / schedule.stretch)
        length = round(seconds * SAMPLE_RATE)
        sound = stretch(sound, length, preserve_pitch=self._settings.preserve_pitch)
        return normalize_peak(sound) if self._settings.normalize_audio else sound
