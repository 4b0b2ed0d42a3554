"""Frames and sound into files: lossless ones to keep, H.264 ones to look at.

T frames uint8 [H, W, 3], RGB, BT.709, full range; sound float32 [2, S]. Equal input makes equal bytes.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ltxtrain_trainer.errors import Undecodable
from ltxtrain_trainer.media.downmix import Sound

Frame = NDArray[np.uint8]

LOSSLESS_AUDIO_RATE = 16_000
PREVIEW_AUDIO_RATE = 48_000
# Sound is handed over in pieces of this many seconds, so that it lies beside its pictures in the file.
PIECE_SECONDS = 0.5
# Matroska counts milliseconds; the exact rate is written beside.
RATE_TAG = "FRAME_RATE"
BT709, LIMITED_RANGE = 1, 1
# As many slices wherever it runs, so that equal frames are equal files.
FFV1 = {"level": "3", "slices": "4", "slicecrc": "1", "context": "1"}
# Nearly transparent, for previews are looked at for faults of the model, not of the coder. One thread: with more, the
# bytes depend on how many processors there are. Macroblock trees read memory that was never written, and the bytes
# follow it.
H264 = {"crf": "16", "preset": "medium", "threads": "1", "x264-params": "mbtree=0"}


@dataclass(frozen=True)
class LosslessClip:
    """A clip as write_lossless was given it: frames [T, H, W, 3], frames a second, sound [2, S] at 16 kHz or None."""

    frames: NDArray[np.uint8]
    frame_rate: float
    audio: Sound | None


def write_lossless(path: Path, frames: Iterable[Frame], frame_rate: float, audio: Sound | None = None) -> None:
    """Matroska with FFV1 and 32-bit PCM at 16 kHz: read_lossless gives back every bit."""
    with _new_file(path, "matroska") as container:
        container.metadata[RATE_TAG] = repr(float(frame_rate))
        video = _Video(container, "ffv1", "bgr0", frame_rate, FFV1)
        sound = _Sound(container, "pcm_f32le", "flt", audio, LOSSLESS_AUDIO_RATE)
        _interleave(container, video, frames, sound)


def read_lossless(path: Path) -> LosslessClip:
    """Raises Undecodable for a file that write_lossless did not write."""
    try:
        with av.open(f"file:{path.absolute()}", "r", format="matroska") as container:
            frame_rate = float(container.metadata[RATE_TAG])
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
        audio = None
        with av.open(f"file:{path.absolute()}", "r", format="matroska") as container:
            if container.streams.audio:
                blocks = [frame.to_ndarray().reshape(-1, 2).T for frame in container.decode(audio=0)]
                audio = np.ascontiguousarray(np.concatenate(blocks, axis=1), dtype=np.float32)
    except (av.FFmpegError, KeyError, ValueError, IndexError) as error:
        raise Undecodable(f"{path.name} is not a clip that was kept losslessly.") from error
    return LosslessClip(frames.astype(np.uint8, copy=False), frame_rate, audio)


def write_h264(
    path: Path,
    frames: Iterable[Frame],
    frame_rate: float,
    audio: Sound | None = None,
    audio_rate: int = PREVIEW_AUDIO_RATE,
) -> None:
    """MP4 that every browser plays: H.264 4:2:0 tagged BT.709, AAC at audio_rate, the index in front.

    Width and height must be even.
    """
    with _new_file(path, "mp4", movflags="+faststart") as container:
        video = _Video(container, "libx264", "yuv420p", frame_rate, H264)
        context = video.stream.codec_context
        context.color_range = LIMITED_RANGE
        context.colorspace = context.color_primaries = context.color_trc = BT709
        sound = _Sound(container, "aac", "fltp", audio, audio_rate)
        _interleave(container, video, frames, sound)


class _Video:
    def __init__(
        self, container: OutputContainer, codec: str, pixel_format: str, frame_rate: float, options: dict[str, str]
    ) -> None:
        self.rate = Fraction(frame_rate).limit_denominator(1001 * 1000)
        self.count = 0
        stream: Any = container.add_stream(codec, rate=self.rate, options=options)
        self.stream: VideoStream = stream
        self.stream.pix_fmt = pixel_format
        self._pixel_format = pixel_format
        self._reformatter = VideoReformatter()

    def encode(self, picture: Frame) -> Iterator[Any]:
        if self.count == 0:
            self.stream.height, self.stream.width = picture.shape[:2]
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        if self._pixel_format == "yuv420p":
            frame = self._reformatter.reformat(
                frame,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation=Interpolation.BICUBIC,
            )
            frame.color_primaries = frame.color_trc = BT709
        else:
            frame = self._reformatter.reformat(frame, format=self._pixel_format)
        frame.pts, frame.time_base = self.count, 1 / self.rate
        self.count += 1
        yield from self.stream.encode(frame)


class _Sound:
    def __init__(
        self, container: OutputContainer, codec: str, sample_format: str, audio: Sound | None, rate: int
    ) -> None:
        self.audio, self.rate, self.sample_format, self.done = audio, rate, sample_format, 0
        self.stream: AudioStream | None = None
        if audio is not None:
            stream: Any = container.add_stream(codec, rate=rate, layout="stereo")
            self.stream = stream

    def encode(self, until_seconds: float) -> Iterator[Any]:
        """Encode all sound before that time that was not encoded yet."""
        if self.audio is None or self.stream is None:
            return
        end = min(round(until_seconds * self.rate), self.audio.shape[1])
        if end > self.done:
            piece = np.ascontiguousarray(self.audio[:, self.done : end], dtype=np.float32)
            samples = piece if self.sample_format == "fltp" else np.ascontiguousarray(piece.T).reshape(1, -1)
            frame = AudioFrame.from_ndarray(samples, format=self.sample_format, layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = self.rate, self.done, Fraction(1, self.rate)
            self.done = end
            yield from self.stream.encode(frame)


def _interleave(container: OutputContainer, video: _Video, frames: Iterable[Frame], sound: _Sound) -> None:
    heard = 0.0
    for picture in frames:
        container.mux(list(video.encode(picture)))
        if video.count / video.rate >= heard:
            heard += PIECE_SECONDS
            container.mux(list(sound.encode(heard)))
    container.mux(list(sound.encode(float("1e9"))))
    container.mux(video.stream.encode(None))
    if sound.stream is not None:
        container.mux(sound.stream.encode(None))


@contextmanager
def _new_file(path: Path, kind: str, **options: str) -> Iterator[OutputContainer]:
    with av.open(f"file:{path.absolute()}", "w", format=kind, options={"fflags": "+bitexact", **options}) as container:
        yield container
