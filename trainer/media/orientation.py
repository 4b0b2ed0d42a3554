"""How a player turns a coded picture before it shows it: display matrix and pixel shape."""

import math
import struct
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

Pixel = TypeVar("Pixel", bound=np.generic)

# Ratios such as 3201:3200 come from rounding a display size, not from anybody's pixels.
SQUARE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture down: swapped axes first, then mirrored."""

    transposed: bool = False
    flipped_x: bool = False
    flipped_y: bool = False

    @property
    def clockwise_degrees(self) -> int:
        """0, 90, 180 or 270; of a mirrored picture, what is left when its display is mirrored left to right."""
        if self.transposed:
            return 270 if self.flipped_y else 90
        return 180 if self.flipped_y else 0

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Size as displayed of a coded size, and the other way round."""
        return (height, width) if self.transposed else (width, height)

    def turn(self, picture: NDArray[Pixel]) -> NDArray[Pixel]:
        """A view of [H, W, C] as displayed."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]


RIGHT, LEFT = Orientation(True, True, False), Orientation(True, False, True)
AROUND = Orientation(False, True, True)


def side_data_of(frame: VideoFrame) -> dict[Type, bytes]:
    """What came beside the picture; nothing where libav has a kind of data that PyAV has no name for yet."""
    try:
        side_data: Any = frame.side_data
        return {data.type: bytes(data) for data in side_data}
    except ValueError:
        return {}


def orientation_of(frame: VideoFrame) -> Orientation:
    """From the display matrix that the container gave the frame; other than right angles count as the nearest one."""
    matrix = side_data_of(frame).get(Type.DISPLAYMATRIX)
    if matrix is None:
        return {90: LEFT, -90: RIGHT, 180: AROUND, -180: AROUND}.get(round(frame.rotation / 90) * 90, Orientation())
    # Rows (a b u) (c d v) (x y w): a coded (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def pixel_aspect(stream: VideoStream) -> float:
    """Width over height of one coded pixel; 1 for square pixels and for nonsense."""
    ratio = stream.sample_aspect_ratio
    if not ratio or not 1 / 8 < ratio < 8 or math.isclose(ratio, 1, abs_tol=SQUARE_TOLERANCE):
        return 1.0
    return float(ratio)


def display_size(frame: VideoFrame, aspect: float, orientation: Orientation) -> tuple[int, int]:
    """Width and height as a player shows the frame."""
    return orientation.shown_size(max(round(frame.width * aspect), 1), frame.height)
