"""Parts of one open clip, in order, as frames and sound."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from trainer.geometry import Geometry
from trainer.media.audio import SAMPLE_RATE, AudioReader, normalize_peak
from trainer.media.container import open_clip
from trainer.media.decode import VideoReader
from trainer.media.mix import Sound
from trainer.media.pick import Pick
from trainer.media.picture import PictureFitter
from trainer.media.rate import measure_rate
from trainer.media.stretch import stretch


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """preserve_pitch and normalize_audio matter with with_audio alone, preserve_pitch when a clip is slowed down."""

    geometry: Geometry
    auto_scale: bool
    with_audio: bool
    normalize_audio: bool
    preserve_pitch: bool


@dataclass(frozen=True, kw_only=True)
class FittedClip:
    """frames uint8 [T, H, W, 3]: RGB, BT.709, full range. audio float32 [2, S]: 16 kHz, as long as the frames."""

    frames: NDArray[np.uint8]
    audio: Sound | None
    # What positions are computed from: the clip's own rate when its frames are used as they are, else the geometry's.
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


class ClipFitter:
    """Decodes a clip once, from front to back. Memory: the frames that are kept, and one window of sound."""

    def __init__(self, path: Path, settings: FitSettings, threads: int) -> None:
        self._settings = settings
        self._geometry = settings.geometry
        with ExitStack() as stack:
            container = stack.enter_context(open_clip(path))
            self._reader = stack.enter_context(closing(VideoReader(container, threads=threads)))
            self._reader.first()
            # Sound is read from a second handle: how far pictures are ahead of it in the file does not matter then.
            self._sound = AudioReader(stack.enter_context(open_clip(path))) if settings.with_audio else None
            self._stack = stack.pop_all()
        self._pictures = PictureFitter(
            self._geometry.width, self._geometry.height, self._reader.aspect, self._reader.orientation, threads
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fit(self, part: Part, pick: Pick) -> FittedClip | Ended:
        """A part that begins no earlier than the one before ended; reads no further than its last frame in use."""
        frames = np.empty((pick.frame_count, self._geometry.height, self._geometry.width, 3), np.uint8)
        times: list[float] = []
        shown, begin, end, last_index = 0, 0.0, 0.0, part.start_frame
        for frame in self._reader:
            if frame.index < part.start_frame:
                continue
            begin = begin if times else frame.seconds
            times.append(frame.seconds - begin)
            end = frame.end_seconds - begin
            is_last = frame.last or frame.index + 1 == part.end_frame
            repeats = pick.repeats(shown, times[-1], end, is_last)
            if repeats:
                self._pictures.fit(frame.picture, frames[shown])
                frames[shown + 1 : shown + repeats] = frames[shown]
                shown, last_index = shown + repeats, frame.index
            if shown == pick.frame_count or is_last:
                break
        if shown < pick.frame_count:
            return Ended(len(times), end)
        own_rate = measure_rate(times, end, self._reader.nominal_rate).frames_per_second
        frame_rate = pick.frame_rate or own_rate
        return FittedClip(
            frames=frames,
            audio=self._hear(begin, pick, frame_rate),
            frame_rate=frame_rate,
            source_frame_rate=own_rate,
            start_frame=part.start_frame,
            end_frame=last_index + 1,
            unused_frames=max((part.end_frame or 0) - last_index - 1, 0),
            stretch=pick.stretch,
            crop_loss_percent=self._pictures.cover.crop_loss_percent,
        )

    def _hear(self, begin: float, pick: Pick, frame_rate: float) -> Sound | None:
        if self._sound is None:
            return None
        seconds = pick.frame_count / frame_rate
        sound = self._sound.read(self._reader.origin + begin, seconds / pick.stretch)
        length = round(seconds * SAMPLE_RATE)
        sound = stretch(sound, length, preserve_pitch=self._settings.preserve_pitch)
        return normalize_peak(sound) if self._settings.normalize_audio else sound
