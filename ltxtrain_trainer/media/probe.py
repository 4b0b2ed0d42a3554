"""Measure a clip by decoding all of it."""

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from ltxtrain_trainer.errors import AudioTrackMissing, AudioUndecodable
from ltxtrain_trainer.media import color
from ltxtrain_trainer.media.audio import AudioNumbers, probe_audio
from ltxtrain_trainer.media.container import find_audio, open_clip
from ltxtrain_trainer.media.decode import VideoReader
from ltxtrain_trainer.media.presentation import display_size


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Sizes as displayed, counts as decoded, tags in ffmpeg's names (empty: untagged)."""

    container: str
    width: int
    height: int
    frame_count: int
    # Average; the exact rate when frames are evenly spaced.
    frame_rate: float
    variable_frame_rate: bool
    duration_seconds: float
    codec: str
    pixel_format: str
    # Clockwise degrees that a player turns the coded picture by.
    rotation: int
    # Width over height of one coded pixel.
    sample_aspect_ratio: float
    interlaced: bool
    color_matrix: str
    color_range: str
    color_primaries: str
    color_transfer: str
    hdr: bool
    # None without an audio track, and for one that cannot be decoded.
    audio: AudioNumbers | None
    # Why the audio track cannot be decoded; None: it can, or there is none.
    audio_error: str | None
    # How and where the clip ends before its file does, in a sentence; None: it is whole.
    damage: str | None
    # The damage is that the end of the file is missing.
    cut_off: bool = False
    # Frames left out before the first key frame.
    leading_frames: int = 0


def probe(path: Path, *, threads: int = 0) -> Probe:
    """Decode the clip from end to end; memory stays that of a few frames.

    Raises Undecodable, PresentationUnsupported, NoVideoTrack or StillImage.
    threads: of the decoder; 0 is one for each processor.
    """
    with ExitStack() as stack:
        container = stack.enter_context(open_clip(path))
        reader = stack.enter_context(closing(VideoReader(container, threads=threads, deinterlace=False)))
        picture = reader.first().picture
        times = []
        for frame in reader:
            times.append(frame.seconds)
            end = frame.end_seconds
        rate = reader.measure_rate(times, end)
        colors = color.colors_of(picture)
        size = reader.declared.crop_of(picture).size(picture.width, picture.height)
        width, height = display_size(size, reader.aspect, reader.orientation)
        video = {
            "container": container.format.name,
            "codec": reader.stream.codec_context.codec.canonical_name,
        }
        has_audio = find_audio(container) is not None
    audio, audio_error = None, None
    if has_audio:
        try:
            audio = probe_audio(path, reader.origin, reader.clock)
        except AudioTrackMissing:
            pass
        except AudioUndecodable as error:
            audio_error = str(error)
    return Probe(
        **video,
        width=width,
        height=height,
        frame_count=len(times),
        frame_rate=rate.frames_per_second,
        variable_frame_rate=rate.variable,
        duration_seconds=end if rate.variable else len(times) / rate.frames_per_second,
        pixel_format=picture.format.name,
        rotation=reader.orientation.clockwise_degrees,
        sample_aspect_ratio=reader.aspect,
        interlaced=reader.interlaced,
        color_matrix=color.MATRICES.get(colors.matrix, ""),
        color_range=color.RANGES.get(colors.range, ""),
        color_primaries=color.PRIMARIES.get(colors.primaries, ""),
        color_transfer=color.TRANSFERS.get(colors.transfer, ""),
        hdr=colors.hdr,
        audio=audio,
        audio_error=audio_error,
        damage=reader.damage,
        cut_off=reader.cut_off,
        leading_frames=reader.leading_frames,
    )
