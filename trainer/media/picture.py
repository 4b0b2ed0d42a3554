"""A decoded frame of any size, shape and colour into an RGB picture of the size that is asked for."""

import math
from dataclasses import dataclass
from tempfile import NamedTemporaryFile

import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from trainer.media.color import Colors, colors_of
from trainer.media.orientation import Orientation
from trainer.media.tone import cube_file, peak_of

# The one resampler of training and previews alike; the other flags keep chroma at full resolution and round exactly.
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
    # Share of the picture that is not shown, in percent.
    crop_loss_percent: float


def cover(source: tuple[int, int], target: tuple[int, int], aspect: float, alignment: tuple[int, int]) -> Cover:
    """source and target in pixels, width first; aspect of one source pixel; alignment of its chroma.

    Cropping comes before scaling, so only pixels that are seen are scaled. Chroma lets a crop begin at every second
    pixel alone: the box is taken outwards to the next place, and what is too much is cut off after scaling.
    """
    (width, height), (target_width, target_height) = source, target
    scale = max(target_width / (width * aspect), target_height / height)
    seen = min(target_width / (scale * aspect), width), min(target_height / scale, height)
    return Cover(
        _axis(width, seen[0], scale * aspect, target_width, alignment[0]),
        _axis(height, seen[1], scale, target_height, alignment[1]),
        100 * (1 - seen[0] * seen[1] / (width * height)),
    )


def _axis(length: int, seen: float, scale: float, target: int, alignment: int) -> Axis:
    first = (length - seen) / 2
    start = math.floor(first / alignment + 1e-6) * alignment
    end = min(math.ceil((first + seen) / alignment - 1e-6) * alignment, length)
    offset = round((first - start) * scale)
    return Axis(start, end - start, max(round((end - start) * scale), offset + target), offset)


class PictureFitter:
    """Frames of one clip into [H, W, 3] uint8 RGB, BT.709, full range."""

    def __init__(self, width: int, height: int, aspect: float, orientation: Orientation, threads: int) -> None:
        self._target = orientation.shown_size(width, height)
        self._aspect = aspect
        self._orientation = orientation
        self._threads = threads
        self._kind: tuple[int, int, str, Colors] | None = None
        self.cover = cover((1, 1), (1, 1), 1, (1, 1))

    def fit(self, frame: VideoFrame, out: NDArray[np.uint8]) -> None:
        """Writes the frame as displayed, filled and centre-cropped, into out [H, W, 3]."""
        kind = frame.width, frame.height, frame.format.name, colors_of(frame)
        if kind != self._kind:
            self._kind = kind
            self.cover = cover((frame.width, frame.height), self._target, self._aspect, alignment_of(frame.format))
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
    """The entry of a graph for frames like this one."""
    return graph.add(
        "buffer",
        f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000000:pixel_aspect=1/1"
        f":colorspace={int(frame.colorspace)}:range={int(frame.color_range)}",
    )


def alignment_of(pixel_format: VideoFormat) -> tuple[int, int]:
    """Pixels that share one chroma sample, across and down."""
    return max(16 // max(pixel_format.chroma_width(16), 1), 1), max(16 // max(pixel_format.chroma_height(16), 1), 1)


def has_alpha(pixel_format: VideoFormat) -> bool:
    return pixel_format.name != "pal8" and any(component.is_alpha for component in pixel_format.components)
