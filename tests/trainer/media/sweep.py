"""Every container, codec, pixel format and channel layout that the bundled FFmpeg writes, each fitted as a clip.

    python -m tests.trainer.media.sweep FOLDER FIRST STEP [video|audio]

Prints one line for each combination before it is read, so that one that ends the process is known, and one for its end:
kept, refused and why, unwritable (FFmpeg's encoder or muxer does not take it), or wrong.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.format import AudioFormat
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.codec import codecs_available

from ltxtrain_trainer.errors import ClipError
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.downmix import _keep_map
from ltxtrain_trainer.media.fit import FittedClip, fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.clips import Video, as_seen, numbered, tones, write_clip

CONTAINERS = {"mp4": "mp4", "mov": "mov", "avi": "avi", "mkv": "matroska"}
# Encoders of hardware, and of nothing.
ABSENT = ("_qsv", "_nvenc", "_amf", "_v4l2m2m", "_vaapi", "_vulkan", "null", "wrapped_avframe")
# Where a codec takes no other size, rate or option.
SIZES = {"dvvideo": (720, 576), "dnxhd": (1920, 1080), "h261": (176, 144), "h263": (176, 144), "roqvideo": (256, 128)}
SIZES |= {"rv10": (176, 144), "rv20": (176, 144), "xface": (48, 48), "speedhq": (256, 144)}
OPTIONS = {
    "dnxhd": {"b": "185M"},
    "libx265": {"x265-params": "log-level=none"},
    "hevc": {"x265-params": "log-level=none"},
    "libsvtav1": {"preset": "12"},
    "av1": {"preset": "12"},
    "libvpx": {"deadline": "realtime"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "vp8": {"deadline": "realtime"},
    "vp9": {"deadline": "realtime", "cpu-used": "8"},
    "vc2": {"strict": "-2"},
    "libopus": {"mapping_family": "255"},
    "opus": {"mapping_family": "255"},
}
RAW = (
    *("yuv420p", "yuv422p", "yuv444p", "yuyv422", "uyvy422", "nv12", "p010le", "rgb24", "bgr24", "bgra", "rgba"),
    *("argb", "rgb565le", "rgb555le", "gray", "gray10le", "gray16le", "pal8", "monow", "rgb48le", "gbrp"),
)
FRAMES = 10
# Coarse coders and few colours are off by so much.
COLOUR_TOLERANCE = 60
# Every layout that FFmpeg names (libavutil/channel_layout.c).
LAYOUTS = (
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0", "5.0(side)", "4.1"),
    *("5.1", "5.1(side)", "6.0", "6.0(front)", "3.1.2", "hexagonal", "6.1", "6.1(back)", "6.1(front)", "7.0"),
    *("7.0(front)", "7.1", "7.1(wide)", "7.1(wide-side)", "5.1.2", "5.1.2(back)", "octagonal", "cube", "5.1.4"),
    *("7.1.2", "7.1.4", "7.2.3", "9.1.4", "9.1.6", "hexadecagonal", "binaural", "downmix", "22.2"),
)
LEFT_HERTZ, RIGHT_HERTZ, SEPARATION = 440, 1000, 4.0


@dataclass(frozen=True)
class Combination:
    container: str
    codec: str
    # Of pixels or samples.
    format: str
    layout: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.container, self.codec, self.format, self.layout)))


def encoders(kind: str) -> Iterator[Any]:
    for name in sorted(codecs_available):
        try:
            codec: Any = av.Codec(name, "w")
        except ValueError:
            continue
        if codec.type == kind and not any(part in name for part in ABSENT):
            yield codec


def videos() -> Iterator[Combination]:
    for container in CONTAINERS:
        for codec in encoders("video"):
            known = {form.name for form in codec.video_formats or ()}
            formats = [form.name for form in codec.video_formats or ()] if known else RAW
            for name in dict.fromkeys(formats):
                yield Combination(container, codec.name, name)


def sounds() -> Iterator[Combination]:
    for container in CONTAINERS:
        for codec in encoders("audio"):
            for form in dict.fromkeys(form.name for form in codec.audio_formats or ()):
                for layout in LAYOUTS:
                    yield Combination(container, codec.name, form, layout)


class Unwritable(Exception):
    """FFmpeg does not write this."""


def write_video(folder: Path, wanted: Combination) -> Path:
    size = SIZES.get(wanted.codec, (256, 144))
    if wanted.codec == "dvvideo" and wanted.format == "yuv411p":
        size = (720, 480)
    pictures = numbered(FRAMES, size=size)
    full = wanted.format.startswith("yuvj")
    rate = Fraction(30_000, 1001) if size == (720, 480) else Fraction(25)
    options = OPTIONS.get(wanted.codec, {})
    # Tags are of Y'CbCr; RGB has none.
    tagged = wanted.format.startswith(("yuv", "nv", "p0", "uyvy"))
    video = Video(
        codec=wanted.codec, pixel_format=wanted.format, options=options, full_range=full, rate=rate, tagged=tagged
    )
    path = folder / f"clip.{wanted.container}"
    try:
        write_clip(path, pictures, video)
    except (av.FFmpegError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
        raise Unwritable(str(error)) from error
    if wanted.codec == "rawvideo":
        with av.open(str(path)) as file:
            found = file.streams.video[0].codec_context.pix_fmt
        if found != wanted.format:
            raise Unwritable(f"the file says {found}")
    return path


def write_sound(folder: Path, wanted: Combination) -> Path:
    path, rate = folder / f"clip.{wanted.container}", 48_000
    try:
        names = [channel.name for channel in AudioLayout(wanted.layout).channels]
        waves = np.zeros((len(names), rate // 2), np.float32)
        for index, name in enumerate(names):
            side = side_of(name)
            if side:
                waves[index] = tones(0.5, hertz=(LEFT_HERTZ if side == "L" else RIGHT_HERTZ,), level=0.3)[0]
        with av.open(str(path), "w", format=CONTAINERS[wanted.container]) as file:
            video: Any = file.add_stream("mpeg4", rate=24, width=64, height=48, pix_fmt="yuv420p")
            track: Any = None
            for rate in (48_000, 44_100, 16_000, 8_000):
                try:
                    track = file.add_stream(
                        wanted.codec, rate=rate, layout=wanted.layout, options=OPTIONS.get(wanted.codec, {})
                    )
                    track.codec_context.format = wanted.format
                    track.codec_context.open()
                    break
                except (av.FFmpegError, ValueError):
                    if rate == 8_000:
                        raise
            given = AudioFrame.from_ndarray(
                np.ascontiguousarray(waves.T).reshape(1, -1), format="flt", layout=wanted.layout
            )
            given.sample_rate, given.pts = 48_000, 0
            resampler = AudioResampler(
                format=AudioFormat(wanted.format), layout=wanted.layout, rate=rate, frame_size=track.frame_size or 1024
            )
            packets: list[Any] = []
            for frame in (*resampler.resample(given), *resampler.resample(None)):
                packets += track.encode(frame)
            packets += track.encode(None)
            for index, picture in enumerate(numbered(FRAMES, size=(64, 48))):
                seen = as_seen(picture, Video())
                seen.pts, seen.time_base = index, Fraction(1, 24)
                packets += video.encode(seen)
            packets += video.encode(None)
            file.start_encoding()
            for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
                file.mux(packet)
    except (av.FFmpegError, ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
        raise Unwritable(str(error)) from error
    return path


def side_of(name: str) -> str:
    """L or R by the letters of FFmpeg's name of a channel; empty: neither, or bass."""
    letters = name.removesuffix("C") if name in ("FLC", "FRC") else name
    return letters[-1] if letters[-1] in "LR" and not name.startswith("LFE") else ""


def fitted(path: Path, *, with_audio: bool, frames: int = FRAMES - 1, threads: int = 1) -> FittedClip:
    plan = FitSettings(
        geometry=Geometry(width=144, height=144, frame_count=frames, frame_rate=24),
        auto_scale=False,
        with_audio=with_audio,
        normalize_audio=False,
        preserve_pitch=True,
    )
    return fit_clip(path, plan, threads=threads)


def look(folder: Path, wanted: Combination) -> str:
    """Return the outcome of one combination in a line."""
    try:
        path = write_sound(folder, wanted) if wanted.layout else write_video(folder, wanted)
    except Unwritable as error:
        return f"unwritable ({str(error)[:60]})"
    try:
        found = probe(path, threads=1)
        if found.damage:
            return f"wrong: damaged: {found.damage}"
        if wanted.layout:
            if found.audio_error:
                return f"refused: AudioUndecodable: {found.audio_error}"
            outcome, told = heard(fitted(path, with_audio=True), mono=wanted.layout == "mono"), told_layout(path)
            # A coder that stores no layout leaves nothing but the count of channels.
            return outcome if told == wanted.layout else f"kept as {told}"
        coloured = not wanted.format.startswith(("gray", "ya", "mono"))
        return seen_as(fitted(path, with_audio=False), found.frame_count, coloured=coloured)
    except ClipError as error:
        return f"refused: {type(error).__name__}: {error}"


def seen_as(clip: FittedClip, count: int, *, coloured: bool) -> str:
    if count != FRAMES:
        return f"wrong: {count} frames"
    for index, picture in enumerate(clip.frames):
        levels = cards.bits(picture)
        number = sum(1 << (15 - place) for place in range(16) if levels[place] > 0.5)
        if number != index:
            return f"wrong: frame {index} is {number}"
    off = max(cards.colour_errors(clip.frames[0]).values())
    return "kept" if off <= COLOUR_TOLERANCE or not coloured else f"wrong: colours off by {off:.0f}"


def heard(clip: FittedClip, *, mono: bool) -> str:
    assert clip.audio is not None
    if not np.isfinite(clip.audio).all():
        return "wrong: no numbers"
    powers = np.abs(np.fft.rfft(clip.audio[:, 1600:4800] * np.hanning(3200), axis=1))
    left, right = (powers[:, round(hertz * 3200 / 16_000)] for hertz in (LEFT_HERTZ, RIGHT_HERTZ))
    if left[0] < 1 and right[1] < 1:
        # One channel is on neither side; FFmpeg's AVI counts the times of some coders wrongly, and the report says so.
        told = mono or clip.audio_missing_seconds > 0.1
        return "kept (silent)" if told else "wrong: silent"
    apart = left[0] / max(left[1], 1e-3), right[1] / max(right[0], 1e-3)
    return "kept" if min(apart) > SEPARATION else f"wrong: left and right {apart[0]:.1f} {apart[1]:.1f}"


def told_layout(path: Path) -> str:
    """Return the layout that the file, or its coder, names."""
    with av.open(str(path)) as file:
        frame = next(file.decode(audio=0))
        _keep_map(frame.layout)
        return frame.layout.name


def main(folder: Path, first: int, step: int, kind: str) -> None:
    av.logging.set_level(av.logging.PANIC)
    everything = list(videos() if kind == "video" else sounds())
    for index in range(first, len(everything), step):
        print(f"{index} {everything[index]}", end=": ", flush=True)
        print(look(folder, everything[index]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
