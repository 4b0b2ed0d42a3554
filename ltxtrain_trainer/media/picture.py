"""Fit a decoded frame of any size, shape and colour into an RGB picture of the size that is asked for."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from tempfile import NamedTemporaryFile

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ltxtrain_trainer.media.color import Colors, colors_of
from ltxtrain_trainer.media.hdr import cube_file, peak_of
from ltxtrain_trainer.media.presentation import Crop, Declared, Orientation

# The one resampler of training and previews alike; the other flags keep chroma at full resolution and round exactly.
NO_CROP = Crop()
RESAMPLER = "bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"


@dataclass(frozen=True)
class Axis:
    """Along one axis of the coded picture: which pixels are scaled, to how many, and where the target begins there."""

    start: int
    length: int
    scaled: int
    offset: int


@dataclass(frozen=True)
class Cover:
    """The part of a picture that fills the target, centred (T1)."""

    x: Axis
    y: Axis
    # Share of the shown picture that is lost, in percent.
    crop_loss_percent: float


def cover(
    source: tuple[int, int], target: tuple[int, int], aspect: float, alignment: tuple[int, int], crop: Crop = NO_CROP
) -> Cover:
    """Find what is scaled, and how.

    source and target in pixels, width first; aspect of one source pixel; alignment of its chroma; crop: of the source.
    Cropping comes before scaling, so only pixels that are seen are scaled. Chroma lets a crop begin at every second
    pixel alone: the box is taken outwards to the next place, and what is too much is cut off after scaling.
    """
    width, height = crop.size(*source)
    target_width, target_height = target
    scale = max(target_width / (width * aspect), target_height / height)
    seen = min(target_width / (scale * aspect), width), min(target_height / scale, height)
    return Cover(
        _axis(crop.left, width, seen[0], scale * aspect, target_width, alignment[0]),
        _axis(crop.top, height, seen[1], scale, target_height, alignment[1]),
        100 * (1 - seen[0] * seen[1] / (width * height)),
    )


def _axis(begin: int, length: int, seen: float, scale: float, target: int, alignment: int) -> Axis:
    first = begin + (length - seen) / 2
    start = math.floor(first / alignment + 1e-6) * alignment
    end = min(math.ceil((first + seen) / alignment - 1e-6) * alignment, begin + length)
    offset = round((first - start) * scale)
    return Axis(start, end - start, max(round((end - start) * scale), offset + target), offset)


class PictureFitter:
    """Frames of one clip into [H, W, 3] uint8 RGB, BT.709, full range."""

    def __init__(
        self,
        width: int,
        height: int,
        aspect: float,
        orientation: Orientation,
        threads: int,
        declared: Declared | None = None,
    ) -> None:
        """declared: by the container, with the crop of its pictures."""
        self._declared = declared or Declared()
        self._target = orientation.shown_size(width, height)
        self._aspect = aspect
        self._orientation = orientation
        self._threads = threads
        self._kind: tuple[int, int, str, Colors] | None = None
        self.cover = cover((1, 1), (1, 1), 1, (1, 1))

    def fit(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Write the frame as displayed, filled and centre-cropped, into out [H, W, 3]."""
        kind = frame.width, frame.height, frame.format.name, colors_of(frame)
        if kind != self._kind:
            self._kind = kind
            size, crop = (frame.width, frame.height), self._declared.crop_of(frame)
            self.cover = cover(size, self._target, self._aspect, alignment_of(frame.format), crop)
            self._build(frame, kind[-1])
        self._source.push(frame)
        scaled = self._sink.pull()
        assert isinstance(scaled, VideoFrame)
        plane = scaled.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(scaled.height, plane.line_size)
        picture = rows[:, : scaled.width * 3].reshape(scaled.height, scaled.width, 3)
        x, y = self.cover.x.offset, self.cover.y.offset
        width, height = self._target
        np.copyto(out, self._orientation.turn(picture[y : y + height, x : x + width]))

    def _build(self, frame: VideoFrame, colors: Colors) -> None:
        box, graph = self.cover, Graph()
        graph.threads = self._threads
        self._graph = graph
        self._source = add_source(graph, frame)
        self._sink = graph.add("buffersink")
        filters: list[FilterContext] = [graph.add("setparams", colors.parameters())]
        if (box.x.length, box.y.length) != (frame.width, frame.height):
            crop = f"w={box.x.length}:h={box.y.length}:x={box.x.start}:y={box.y.start}:exact=1"
            filters.append(graph.add("crop", crop))
        if has_alpha(frame.format):
            # Colours times coverage: what is transparent ends on black.
            deep = max(component.bits for component in frame.format.components) > 8
            filters += [graph.add("format", "gbrap16" if deep else "gbrap"), graph.add("premultiply", "inplace=1")]
        size = f"w={box.x.scaled}:h={box.y.scaled}"
        filters.append(graph.add("scale", f"{size}:flags={RESAMPLER}:out_range=pc"))
        with NamedTemporaryFile("w", suffix=".cube") as table:
            if colors.needs_mapping:
                table.write(cube_file(colors, peak_of(frame)))
                table.flush()
                filters += [graph.add("format", "gbrp16"), graph.add("lut3d", file=table.name, interp="tetrahedral")]
            filters.append(graph.add("format", "rgb24"))
            graph.link_nodes(self._source, *filters, self._sink)
            graph.configure()


def add_source(graph: Graph, frame: VideoFrame) -> FilterContext:
    """Add the entry of a graph for frames like this one."""
    return graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000000:pixel_aspect=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )


def alignment_of(pixel_format: VideoFormat) -> tuple[int, int]:
    """Return how many pixels share one chroma sample, across and down."""
    return max(16 // max(pixel_format.chroma_width(16), 1), 1), max(16 // max(pixel_format.chroma_height(16), 1), 1)


def has_alpha(pixel_format: VideoFormat) -> bool:
    return pixel_format.name != "pal8" and any(component.is_alpha for component in pixel_format.components)


class Deinterlacer:
    """As many frames come out as go in, a frame later; frames that are not marked as interlaced pass through."""

    def __init__(self, time_base: Fraction | None, threads: int) -> None:
        self._time_base = time_base
        self._threads = threads
        self._graph: Graph | None = None
        self._kind: tuple[int, int, str] | None = None
        self._entered: deque[VideoFrame] = deque()

    def push(self, frame: VideoFrame) -> Iterator[VideoFrame]:
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            yield from self.flush()
            self._kind = kind
            graph = Graph()
            graph.threads = self._threads
            source, sink = add_source(graph, frame), graph.add("buffersink")
            # Not bwdif: it takes fine lines that alternate from field to field for a pattern that stands still.
            graph.link_nodes(source, graph.add("yadif", "mode=send_frame:parity=auto:deint=interlaced"), sink)
            graph.configure()
            self._graph = graph
        self._entered.append(frame)
        assert self._graph is not None
        self._graph.vpush(frame)
        yield from self._ready()

    def flush(self) -> Iterator[VideoFrame]:
        """The last frame, at the end or before another kind of frame."""
        if self._graph is not None and self._entered:
            self._graph.vpush(None)
            yield from self._ready()
        self._graph, self._kind = None, None
        self._entered.clear()

    def _ready(self) -> Iterator[VideoFrame]:
        assert self._graph is not None
        while self._entered:
            try:
                frame = self._graph.vpull()
            except (av.BlockingIOError, av.EOFError):
                return
            # The filter counts time in half frames; the times of a clip are those of what went in.
            entered = self._entered.popleft()
            frame.pts, frame.duration, frame.time_base = entered.pts, entered.duration, self._time_base
            yield frame
