"""How a player shows a coded picture: its crop, its display matrix, the shape of its pixels.

libav hands on most of what a container says about that. The crop, the configuration of Dolby Vision and the declared
duration of a frame it keeps to itself: these are read from the container here.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from av.sidedata.sidedata import Type
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray

from ltxtrain_trainer.errors import PresentationUnsupported
from ltxtrain_trainer.media.pieces import SEGMENT, TRACKS, Piece, Pieces, mapped, read_box, read_element

Pixel = TypeVar("Pixel", bound=np.generic)
# The four numbers of a matrix that turn and mirror.
Corner = tuple[float, float, float, float]

# Ratios such as 3201:3200 come from rounding a display size, not from anybody's pixels.
SQUARE_TOLERANCE = 0.01
# The fields of a video sample entry before its first box (ISO/IEC 14496-12, 12.1.3).
SAMPLE_ENTRY_BYTES = 78
# Where the matrix begins in version 0 of a tkhd and of a mvhd.
TRACK_MATRIX, MOVIE_MATRIX = 40, 36
DOLBY_VISION_BOXES = (b"dvcC", b"dvvC", b"dvwC")
# IDs of Matroska elements (RFC 9559).
TRACK_ENTRY, TRACK_TYPE, VIDEO, DEFAULT_DURATION = 0xAE, 0x83, 0xE0, 0x23E383
PIXEL_WIDTH, PIXEL_HEIGHT = 0xB0, 0xBA
PIXEL_CROP = {"left": 0x54CC, "top": 0x54BB, "right": 0x54DD, "bottom": 0x54AA}
PROJECTION, PROJECTION_TYPE, PROJECTION_YAW, PROJECTION_ROLL = 0x7670, 0x7671, 0x7673, 0x7675
BLOCK_ADDITION, ADDITION_TYPE, ADDITION_DATA = 0x41E4, 0x41E7, 0x41ED
VIDEO_TRACK = 1
# AVStereo3DType and AVSphericalProjection of libavutil: what lies in one picture, by how a player would say it.
STEREO_LAYOUTS = {1: "side by side", 2: "top and bottom", 3: "frame by frame", 4: "in a checkerboard"}
STEREO_LAYOUTS |= {5: "side by side", 6: "line by line", 7: "column by column"}
PROJECTIONS = {0: "equirectangular", 1: "cube map", 2: "equirectangular", 3: "half equirectangular", 5: "fisheye"}
PROJECTIONS |= {6: "parametric immersive"}


def _unnamed(kinds: Any, value: int) -> Any:
    """Make a member for a kind of side data that libav knows and PyAV does not (PyAV-Org/PyAV#2392)."""
    member = object.__new__(kinds)
    member._name_, member._value_ = f"UNNAMED_{value}", value
    return member


# Without it, one such kind (Exif in every frame of a camera) hides all other side data of its frame.
Type._missing_ = classmethod(_unnamed)  # type: ignore[assignment, method-assign]


@dataclass(frozen=True)
class Crop:
    """Pixels of the coded picture that are not shown."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return the size of what is left of a coded picture."""
        return width - self.left - self.right, height - self.top - self.bottom

    def fits(self, width: int, height: int) -> bool:
        """Whether anything is left."""
        return min(self.left, self.top, self.right, self.bottom) >= 0 and min(self.size(width, height)) > 0


@dataclass(frozen=True)
class Orientation:
    """One of the eight ways to lay a picture down: axes are swapped first, then mirrored."""

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
        """Return the displayed size of a coded size, or the other way round."""
        return (height, width) if self.transposed else (width, height)

    def turn(self, picture: NDArray[Pixel]) -> NDArray[Pixel]:
        """Return a view of [H, W, C] as displayed."""
        if self.transposed:
            picture = picture.swapaxes(0, 1)
        return picture[:: -1 if self.flipped_y else 1, :: -1 if self.flipped_x else 1]


@dataclass(frozen=True)
class Declared:
    """Facts of a video track that the container declares and libav does not hand on."""

    crop: Crop = Crop()
    # Size of the pictures that the crop is about; decoders may have cut off a part already.
    coded_size: tuple[int, int] | None = None
    # Profile, and the format that the base layer is compatible with (0: none); None: no Dolby Vision.
    dolby_vision: tuple[int, int] | None = None
    # FFmpeg replaces it by the one of the Exif data that cameras write beside each picture of motion JPEG.
    orientation: Orientation = Orientation()
    # Matroska's DefaultDuration.
    frame_seconds: float | None = None

    def crop_of(self, frame: VideoFrame) -> Crop:
        """Return what is cut off the frame: nothing where it has another size than the container says."""
        size = frame.width, frame.height
        return self.crop if size == self.coded_size and self.crop.fits(*size) else Crop()


def side_data_of(frame: VideoFrame) -> dict[Type, bytes]:
    """Return everything that came beside the picture."""
    side_data: Any = frame.side_data
    return {data.type: bytes(data) for data in side_data}


def orientation_of(side_data: Mapping[Type, bytes]) -> Orientation:
    """Read the display matrix; other than right angles count as the nearest one."""
    matrix = side_data.get(Type.DISPLAYMATRIX)
    if matrix is None or len(matrix) < 36:
        return Orientation()
    return _nearest(_corner(struct.unpack("=9i", matrix[:36])))


def _corner(matrix: Sequence[int]) -> Corner:
    """Take what turns and mirrors out of rows (a b u) (c d v) (x y w): (x, y) is shown at (a x + c y, b x + d y)."""
    return float(matrix[0]), float(matrix[1]), float(matrix[3]), float(matrix[4])


def _nearest(corner: Corner) -> Orientation:
    a, b, c, d = corner
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)


def refuse_unsupported(side_data: Mapping[Type, bytes], declared: Declared) -> None:
    """Raises PresentationUnsupported, by name, for pictures that are shown in a way that is not implemented here."""
    if declared.dolby_vision is not None:
        profile, compatible = declared.dolby_vision
        # Profile 5 and its successors (10.0, 20.0): the base layer is IPT, which nothing but Dolby Vision shows.
        if profile == 5 or (compatible == 0 and profile >= 10):
            text = f"The video is Dolby Vision profile {profile}, whose colours only a Dolby Vision decoder can show."
            raise PresentationUnsupported(f"{text} Export it as HDR10, HLG or SDR.")
    stereo = STEREO_LAYOUTS.get(_first_number(side_data, Type.STEREO3D))
    if stereo:
        raise PresentationUnsupported(f"The video is stereoscopic: every frame holds two pictures, {stereo}.")
    projection = PROJECTIONS.get(_first_number(side_data, Type.SPHERICAL))
    if projection:
        raise PresentationUnsupported(
            f"The video is spherical ({projection}): players show a part of it that the viewer chooses. Remove the "
            "spherical metadata to train on the flat picture."
        )


def _first_number(side_data: Mapping[Type, bytes], kind: Type) -> int:
    """Return the enumeration that the data of a kind begin with; -1: there are none."""
    data = side_data.get(kind, b"")
    return int(struct.unpack("=i", data[:4])[0]) if len(data) >= 4 else -1


def pixel_aspect(stream: VideoStream) -> float:
    """Return width over height of one coded pixel; 1 for square pixels and for nonsense."""
    ratio = stream.sample_aspect_ratio
    if not ratio or not 1 / 8 < ratio < 8 or math.isclose(ratio, 1, abs_tol=SQUARE_TOLERANCE):
        return 1.0
    return float(ratio)


def display_size(size: tuple[int, int], aspect: float, orientation: Orientation) -> tuple[int, int]:
    """Return width and height as a player shows a picture of this size after its crop."""
    return orientation.shown_size(max(round(size[0] * aspect), 1), size[1])


def declared_by(path: Path, stream: VideoStream) -> Declared:
    """Read what the container says about the track."""
    name = stream.container.format.name
    with mapped(path) as data:
        if name.startswith("matroska"):
            place = [track.index for track in stream.container.streams.video].index(stream.index)
            return _declared_by_matroska(Pieces(data, read_element), place)
        if name.startswith("mov"):
            return _declared_by_boxes(Pieces(data, read_box), stream)
    return Declared()


def _declared_by_matroska(elements: Pieces, place: int) -> Declared:
    """place: of the track among those of its type, in the order in which libav makes streams of them."""
    tracks = elements.find(None, SEGMENT, TRACKS)
    entries = [entry for entry in elements.within(tracks) if entry.kind == TRACK_ENTRY] if tracks else []
    for entry in entries:
        kind = elements.find(entry, TRACK_TYPE)
        if kind is None or elements.number(kind) != VIDEO_TRACK:
            continue
        if place == 0:
            return _declared_by_track_entry(elements, entry)
        place -= 1
    return Declared()


def _declared_by_track_entry(elements: Pieces, entry: Piece) -> Declared:
    sides = {name: elements.find(entry, VIDEO, kind) for name, kind in PIXEL_CROP.items()}
    width, height = (elements.find(entry, VIDEO, kind) for kind in (PIXEL_WIDTH, PIXEL_HEIGHT))
    nanoseconds = elements.find(entry, DEFAULT_DURATION)
    dolby_vision = None
    for addition in elements.within(entry):
        kind = elements.find(addition, ADDITION_TYPE) if addition.kind == BLOCK_ADDITION else None
        if kind is not None and elements.number(kind).to_bytes(8, "big")[4:] in DOLBY_VISION_BOXES:
            configuration = elements.find(addition, ADDITION_DATA)
            dolby_vision = _dolby_vision(elements, configuration) if configuration else dolby_vision
    return Declared(
        crop=Crop(**{name: elements.number(side) for name, side in sides.items() if side is not None}),
        coded_size=(elements.number(width), elements.number(height)) if width and height else None,
        dolby_vision=dolby_vision,
        orientation=_projected(elements, entry),
        frame_seconds=elements.number(nanoseconds) / 1e9 if nanoseconds else None,
    )


def _projected(elements: Pieces, entry: Piece) -> Orientation:
    """Read the pose of a rectangular projection: rolled around its middle, mirrored where it is seen from behind."""
    kind = elements.find(entry, VIDEO, PROJECTION, PROJECTION_TYPE)
    if kind is not None and elements.number(kind) != 0:
        return Orientation()
    yaw, roll = (
        _float(elements, elements.find(entry, VIDEO, PROJECTION, angle)) for angle in (PROJECTION_YAW, PROJECTION_ROLL)
    )
    sine, cosine = math.sin(math.radians(roll)), math.cos(math.radians(roll))
    mirror = -1 if abs(yaw) == 180 else 1
    return _nearest((cosine * mirror, -sine * mirror, sine, cosine))


def _float(elements: Pieces, piece: Piece | None) -> float:
    """Read an EBML float of four or eight bytes; 0 where there is none."""
    body = elements.body(piece, 8) if piece else b""
    value = struct.unpack(">f" if len(body) == 4 else ">d", body)[0] if len(body) in (4, 8) else 0.0
    return float(value) if math.isfinite(value) else 0.0


def _declared_by_boxes(boxes: Pieces, stream: VideoStream) -> Declared:
    moov = boxes.find(None, b"moov")
    movie = boxes.find(moov, b"mvhd") if moov else None
    for track in boxes.within(moov) if moov else ():
        header = boxes.find(track, b"tkhd") if track.kind == b"trak" else None
        if header is None or _track_id(boxes.body(header, 24)) != stream.id:
            continue
        table = boxes.find(track, b"mdia", b"minf", b"stbl", b"stsd")
        entry = next(boxes.within(table, skip=8), None) if table else None
        declared = _declared_by_sample_entry(boxes, entry) if entry else Declared()
        # The track's matrix, then the movie's. By hand: numpy's product would have OpenBLAS take its buffers.
        a, b, c, d = _box_matrix(boxes, header, TRACK_MATRIX)
        e, f, g, h = _box_matrix(boxes, movie, MOVIE_MATRIX)
        turned = a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
        return replace(declared, orientation=_nearest(turned))
    return Declared()


def _box_matrix(boxes: Pieces, header: Piece | None, place: int) -> Corner:
    """Read the matrix of a tkhd or mvhd; place: where it begins in version 0, whose times are shorter."""
    body = boxes.body(header, place + 12 + 36) if header else b""
    begin = place + 12 if body[:1] == b"\1" else place
    if len(body) < begin + 36:
        return 1.0, 0.0, 0.0, 1.0
    return _corner(struct.unpack(">9i", body[begin : begin + 36]))


def _track_id(header: bytes) -> int:
    """Read a tkhd; version 1 has times of eight bytes before the ID."""
    place = 20 if header[:1] == b"\1" else 12
    return int.from_bytes(header[place : place + 4], "big")


def _declared_by_sample_entry(boxes: Pieces, entry: Piece) -> Declared:
    fields = boxes.body(entry, SAMPLE_ENTRY_BYTES)
    width, height = int.from_bytes(fields[24:26], "big"), int.from_bytes(fields[26:28], "big")
    crop, dolby_vision = Crop(), None
    for box in boxes.within(entry, skip=SAMPLE_ENTRY_BYTES):
        if box.kind == b"clap":
            crop = _clean_aperture(boxes.body(box, 32), width, height)
        elif box.kind in DOLBY_VISION_BOXES:
            dolby_vision = _dolby_vision(boxes, box)
    return Declared(crop=crop, coded_size=(width, height), dolby_vision=dolby_vision)


def _clean_aperture(body: bytes, width: int, height: int) -> Crop:
    """Read four fractions: width, height, and how far the middle of the aperture lies right of and below the picture's.

    Nonsense is no crop.
    """
    if len(body) < 32:
        return Crop()
    numbers = struct.unpack(">IIIIiIiI", body)
    if 0 in numbers[1::2]:
        return Crop()
    shown_width, shown_height, right, down = (numbers[place] / numbers[place + 1] for place in range(0, 8, 2))
    left, top = round((width - shown_width) / 2 + right), round((height - shown_height) / 2 + down)
    crop = Crop(left, top, width - left - round(shown_width), height - top - round(shown_height))
    return crop if crop.fits(width, height) else Crop()


def _dolby_vision(pieces: Pieces, piece: Piece) -> tuple[int, int] | None:
    """Read a configuration record: version (16 bits), profile (7), level (6), layers (3), compatible with (4)."""
    body = pieces.body(piece, 5)
    return (body[2] >> 1, body[4] >> 4) if len(body) == 5 else None
