"""Videos and archives made on the spot: test cards (tests/cards.py) with sound, in any codec and container.

Pictures are uint8 [H, W, 3]; sound float32 [channels, samples].
"""

import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from tests import cards

Picture = NDArray[np.uint8]
Waves = NDArray[np.float32]

# Fine enough for every rate that tests use, and for frames that come unevenly.
VIDEO_TICK = Fraction(1, 90_000)


@dataclass(frozen=True, kw_only=True)
class Video:
    """How pictures are coded. times: seconds of each frame; None: evenly at rate."""

    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: Fraction = Fraction(24)
    times: Sequence[float] | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    aspect: Fraction | None = None
    # Degrees counter-clockwise, as the container stores it; then mirrored.
    rotation: float = 0
    mirrored: bool = False
    # Matrix, range, primaries and transfer as in ITU-T H.273; the pictures are converted by matrix and range.
    matrix: int = 1
    full_range: bool = False
    primaries: int = 1
    transfer: int = 1
    tagged: bool = True
    interlaced: bool = False
    start_seconds: float = 0


@dataclass(frozen=True, kw_only=True)
class Sound:
    """waves [channels, samples] at rate, and how they are coded."""

    waves: Waves
    rate: int = 48_000
    codec: str = "aac"
    sample_format: str = "fltp"
    layout: str = "stereo"
    start_seconds: float = 0
    # Samples that are handed to the encoder at once; PCM makes a packet of them.
    piece: int = 1024


def card(number: int, width: int = 256, height: int = 144) -> Picture:
    """The test card of a number, in the centred square; grey beside it."""
    side = min(width, height)
    rows = np.arange(side) * cards.CELLS // side
    square = np.zeros((cards.CELLS, cards.CELLS, 3), np.uint8)
    for (row, column, count, columns), colour in cards.PATCHES.values():
        square[row : row + count, column : column + columns] = colour
    for place in range(16):
        white = number >> (15 - place) & 1
        square[2 + place // 4, 2 + place % 4] = cards.WHITE if white else cards.BLACK
    picture = np.full((height, width, 3), 90, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    picture[top : top + side, left : left + side] = square[rows][:, rows]
    return picture


def numbered(count: int, *, clip: int = 0, first: int = 0, size: tuple[int, int] = (256, 144)) -> list[Picture]:
    """Cards clip * 512 + first and on; size is width and height."""
    return [card(clip * 512 + first + index, *size) for index in range(count)]


def tones(seconds: float, *, rate: int = 48_000, hertz: Sequence[float] = (440, 660), level: float = 0.3) -> Waves:
    """One steady tone a channel."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([level * np.sin(2 * np.pi * frequency * time) for frequency in hertz]).astype(np.float32)


def add_burst(waves: Waves, at: float, *, rate: int = 48_000, level: float = 0.8) -> Waves:
    """A burst of 3 kHz that lasts 5 ms from `at` seconds on, in every channel."""
    start, length = round(at * rate), round(0.005 * rate)
    result = waves.copy()
    result[:, start : start + length] += level * np.sin(2 * np.pi * 3000 * np.arange(length) / rate)
    return result.astype(np.float32)


def write_clip(
    path: Path,
    pictures: Iterable[Picture],
    video: Video | None = None,
    sound: Sound | None = None,
    *,
    container: str | None = None,
    **options: str,
) -> Path:
    """Writes the file and returns its path; container and options are the muxer's."""
    video = video or Video()
    with av.open(str(path), "w", format=container, options=options) as file:
        writer = _VideoWriter(file, video)
        track = _audio_track(file, sound) if sound else None
        packets = [packet for picture in pictures for packet in writer.encode(picture)]
        packets += writer.stream.encode(None)
        if sound and track is not None:
            packets += _encode_sound(track, sound)
        file.start_encoding()
        packets.sort(key=lambda packet: float((packet.dts or 0) * packet.time_base))
        for packet in packets:
            file.mux(packet)
    return path


def write_zip(path: Path, entries: Mapping[str, bytes | Path | str]) -> Path:
    """An archive of stored entries: bytes, files, or text."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            data = content.read_bytes() if isinstance(content, Path) else content
            archive.writestr(name, data)
    return path


def as_seen(picture: Picture, video: Video) -> VideoFrame:
    """The picture as a frame of the video's format, matrix and range."""
    frame = VideoFrame.from_ndarray(picture, format="rgb48le" if picture.dtype == np.uint16 else "rgb24")
    if video.pixel_format.startswith(("yuv", "nv", "p0", "gray")):
        names = {1: "ITU709", 5: "ITU601", 6: "SMPTE170M", 7: "SMPTE240M", 9: "BT2020"}
        frame = frame.reformat(
            format=video.pixel_format,
            dst_colorspace=names[video.matrix],
            dst_color_range="JPEG" if video.full_range else "MPEG",
            interpolation="BICUBIC",
        )
    else:
        frame = frame.reformat(format=video.pixel_format)
    tags = (video.matrix, video.primaries, video.transfer, 2 if video.full_range else 1)
    frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range = tags if video.tagged else (2, 2, 2, 0)
    return frame


class _VideoWriter:
    def __init__(self, file: Any, video: Video) -> None:
        self.video = video
        options = {"threads": "1", **video.options}
        if video.codec == "libx264":
            options = {"crf": "12", "preset": "veryfast", **options}
        self.stream: Any = file.add_stream(video.codec, rate=video.rate, options=options)
        self.stream.pix_fmt = video.pixel_format
        # Codecs of the nineties take nothing but the rate itself for a clock.
        places = [time * float(video.rate) for time in video.times or ()]
        self.tick = 1 / video.rate if all(abs(place - round(place)) < 1e-6 for place in places) else VIDEO_TICK
        self.stream.codec_context.time_base = self.tick
        if video.rotation or video.mirrored:
            self.stream.set_display_rotation(video.rotation, hflip=video.mirrored)
        if video.aspect:
            self.stream.codec_context.sample_aspect_ratio = video.aspect
        if video.tagged:
            context = self.stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = (
                video.matrix,
                video.primaries,
                video.transfer,
            )
            context.color_range = 2 if video.full_range else 1
        self.count = 0

    def encode(self, picture: Picture) -> list[Any]:
        if self.count == 0:
            self.stream.height, self.stream.width = picture.shape[:2]
        frame = as_seen(picture, self.video)
        time = self.video.times[self.count] if self.video.times else self.count / float(self.video.rate)
        frame.pts = round((time + self.video.start_seconds) / float(self.tick))
        frame.time_base = self.tick
        self.count += 1
        packets: list[Any] = self.stream.encode(frame)
        return packets


def _audio_track(file: Any, sound: Sound) -> Any:
    track = file.add_stream(sound.codec, rate=sound.rate, layout=sound.layout)
    track.codec_context.format = sound.sample_format
    return track


def _encode_sound(track: Any, sound: Sound) -> list[Any]:
    planar = sound.sample_format.endswith("p")
    kind = {"flt": "f4", "dbl": "f8", "s16": "i2", "s32": "i4", "u8": "u1"}[sound.sample_format.removesuffix("p")]
    waves: NDArray[Any] = sound.waves
    if kind == "u1":
        waves = np.rint(waves * 127 + 128)
    elif kind.startswith("i"):
        waves = np.rint(np.clip(waves, -1, 1) * (2.0 ** (8 * int(kind[1]) - 1) - 1))
    waves = waves.astype(kind)
    packets: list[Any] = []
    for start in range(0, waves.shape[1], sound.piece):
        piece = waves[:, start : start + sound.piece]
        samples = piece if planar else piece.T.reshape(1, -1)
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=sound.sample_format, layout=sound.layout)
        frame.sample_rate = sound.rate
        frame.pts = start + round(sound.start_seconds * sound.rate)
        frame.time_base = Fraction(1, sound.rate)
        packets += track.encode(frame)
    packets += track.encode(None)
    return packets
