"""Previews as files that play everywhere: one continuation plain or with its decoration, and the reel of all.

Letters: T frames, N of them prefix, H W pixels, S samples. In every file the prefix frames are the source's own: the
latents of the prefix are exact, but a decoder gives back only nearly what was encoded.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ltxtrain_trainer.media.video_file import write_h264
from ltxtrain_trainer.preview.panels import Frame, Panels

AUDIO_RATE = 48_000

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB
Audio = npt.NDArray[np.float32]  # [2, S] at 48 kHz


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A decoded continuation: all T frames, prefix included; audio of the same length, or None."""

    label: str
    frames: Frames
    audio: Audio | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One validation entry: source prefix [N, H, W, 3] and its continuations, left to right; the last one is heard."""

    prompt: str
    prefix: Frames
    continuations: tuple[Continuation, ...]

    def __post_init__(self) -> None:
        shapes = {continuation.frames.shape for continuation in self.continuations}
        if len(shapes) != 1 or self.prefix.shape[1:] != next(iter(shapes))[1:]:
            raise ValueError(f"Continuations of shapes {sorted(shapes)} cannot be shown side by side.")


def paste_prefix(frames: Frames, prefix: Frames) -> Frames:
    """[T, H, W, 3] with the source's own first N frames."""
    return np.concatenate([prefix, frames[len(prefix) :]])


def write_preview(path: Path, continuation: Continuation, prefix: Frames, frame_rate: float) -> None:
    """One continuation and nothing else, at its own size."""
    frames = paste_prefix(continuation.frames, prefix)
    audio = None if continuation.audio is None else _lasting(continuation.audio, 0, len(frames), frame_rate)
    write_h264(path, frames, frame_rate, audio)


def write_reel(path: Path, segments: Sequence[Segment], frame_rate: float) -> None:
    """All segments one after another, decorated; without audio the file has no audio stream.

    Raises ValueError unless all are of one size and have as many continuations, all with audio or all without.
    """
    layouts = {(len(segment.continuations), segment.prefix.shape[1:]) for segment in segments}
    if len(layouts) != 1:
        raise ValueError(f"A reel has segments of one layout, not of {len(layouts)}.")
    write_h264(path, _frames(segments), frame_rate, _soundtrack(segments, frame_rate))


def segment_frames(segment: Segment) -> Iterator[Frame]:
    """The T decorated frames, as they are encoded."""
    total, height, width, _ = segment.continuations[0].frames.shape
    panels = Panels(
        size=(width, height),
        labels=tuple(continuation.label for continuation in segment.continuations),
        prompt=segment.prompt,
        given_frames=len(segment.prefix),
        frame_count=total,
    )
    for number in range(total):
        pictures = [
            segment.prefix[number] if number < len(segment.prefix) else continuation.frames[number]
            for continuation in segment.continuations
        ]
        yield panels.frame(number, pictures)


def _frames(segments: Sequence[Segment]) -> Iterator[Frame]:
    for segment in segments:
        yield from segment_frames(segment)


def _soundtrack(segments: Sequence[Segment], frame_rate: float) -> Audio | None:
    tracks = [segment.continuations[-1].audio for segment in segments]
    heard = [track for track in tracks if track is not None]
    if not heard:
        return None
    if len(heard) < len(tracks):
        raise ValueError("Some segments have audio and others have none; a reel has one soundtrack or none.")
    parts, start = [], 0
    for track, segment in zip(heard, segments, strict=True):
        end = start + len(segment.continuations[-1].frames)
        parts.append(_lasting(track, start, end, frame_rate))
        start = end
    return np.concatenate(parts, axis=1)


def _lasting(audio: Audio, first_frame: int, end_frame: int, frame_rate: float) -> Audio:
    """Cut, or followed by silence, to last exactly as long as its frames at their place in the file."""
    start, end = (round(frame / frame_rate * AUDIO_RATE) for frame in (first_frame, end_frame))
    audio = audio[:, : end - start]
    return np.pad(audio, ((0, 0), (0, end - start - audio.shape[1])))
