"""Find where a long clip is cut into scenes (P12).

A cut is a jump of the whole picture that sticks out of the motion around it, and after which nothing looks as it did
before. Fades and dissolves are no cuts: they stay inside a scene.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, product, repeat
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from ltxtrain_trainer.media.container import open_clip
from ltxtrain_trainer.media.decode import VideoReader
from ltxtrain_trainer.media.frame_schedule import Scene

Thumbnail = NDArray[np.int16]

THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT = 64, 36
# A pixel that changes more than this counts no more: a small bright thing that moves is not another scene.
SATURATION = 48
# Mean change of a pixel, 0..SATURATION, that a cut has at least.
LEAST_CHANGE = 10.0
# A cut changes the picture so many times as much as the frames around it, in which nothing but motion is expected.
STANDS_OUT = 3.0
# So many frames before and after a jump are compared; a flash is over by then.
NEIGHBOURS = 4
# After a flash the picture is back: more alike than this share of the jump.
RETURN = 0.5


@dataclass(frozen=True)
class _Seen:
    index: int
    seconds: float
    end_seconds: float
    thumbnail: Thumbnail
    # From the frame before; 0 for the first.
    change: float


def find_scenes(path: Path, *, threads: int = 0) -> list[Scene]:
    """Find the scenes of a clip, ascending; one that spans all of it when there is no cut. Decodes the clip once.

    A single frame between two cuts is a mixture of both sides and belongs to neither: the scene after it begins a frame
    after the one before it ended. Raises Undecodable, PresentationUnsupported, NoVideoTrack or StillImage.
    threads: of the decoder; 0 is one for each processor.
    """
    scenes: list[Scene] = []
    start: _Seen | None = None
    end: _Seen | None = None
    for seen, is_cut in _judged(_watch(path, threads)):
        if start is None or end is None:
            start = seen
        elif is_cut:
            scenes.append(_scene(start, end))
            start = seen
        end = seen
    assert start is not None and end is not None, "a clip without frames does not open"
    scenes.append(_scene(start, end))
    return [scene for scene in scenes if scene.frame_count > 1] or scenes


def _scene(first: _Seen, last: _Seen) -> Scene:
    return Scene(
        start_frame=first.index,
        end_frame=last.index + 1,
        start_seconds=first.seconds,
        end_seconds=last.end_seconds,
        score=first.change,
    )


def _watch(path: Path, threads: int) -> Iterator[_Seen]:
    with open_clip(path) as container, closing(VideoReader(container, threads=threads, deinterlace=False)) as reader:
        reader.first()
        before: Thumbnail | None = None
        reformatter = VideoReformatter()
        for frame in reader:
            thumbnail = _thumbnail(reformatter, frame.picture)
            change = _change(before, thumbnail) if before is not None else 0.0
            yield _Seen(frame.index, frame.seconds, frame.end_seconds, thumbnail, change)
            before = thumbnail


def _judged(frames: Iterator[_Seen]) -> Iterator[tuple[_Seen, bool]]:
    """Yield every frame, and whether a scene begins with it, as soon as its neighbours are known."""
    past: deque[_Seen] = deque(maxlen=NEIGHBOURS + 1)
    coming: deque[_Seen] = deque()
    for frame in chain(frames, repeat(None, NEIGHBOURS)):
        if frame is not None:
            coming.append(frame)
        if len(coming) > NEIGHBOURS or (frame is None and coming):
            seen = coming.popleft()
            yield seen, _is_cut(past, seen, coming)
            past.append(seen)


def _is_cut(past: deque[_Seen], seen: _Seen, coming: deque[_Seen]) -> bool:
    if seen.change < LEAST_CHANGE:
        return False
    around = [frame.change for frame in (*list(past)[1:], *coming)]
    if around and seen.change < STANDS_OUT * sum(around) / len(around):
        return False
    pairs = product(past, (seen, *coming))
    return all(_change(before.thumbnail, after.thumbnail) > RETURN * seen.change for before, after in pairs)


def _thumbnail(reformatter: VideoReformatter, picture: VideoFrame) -> Thumbnail:
    small = reformatter.reformat(
        picture, width=THUMBNAIL_WIDTH, height=THUMBNAIL_HEIGHT, format="yuv444p", interpolation="AREA"
    )
    planes = [np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1) for plane in small.planes]
    return np.stack([plane[:, :THUMBNAIL_WIDTH] for plane in planes]).astype(np.int16)


def _change(before: Thumbnail, after: Thumbnail) -> float:
    """Return the mean over pixels of the change of luma and chroma together, saturated."""
    return float(np.minimum(np.abs(after - before).sum(axis=0), SATURATION).mean())
