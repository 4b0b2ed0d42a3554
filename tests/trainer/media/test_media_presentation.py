"""How a player shows a clip, where its container alone says so: crop, matrix beside Exif, Dolby Vision, stereo."""

import struct
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from ltxtrain_trainer.errors import PresentationUnsupported, Undecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.pieces import SEGMENT, TRACKS
from ltxtrain_trainer.media.presentation import (
    ADDITION_DATA,
    ADDITION_TYPE,
    BLOCK_ADDITION,
    PIXEL_CROP,
    TRACK_ENTRY,
    VIDEO,
)
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.clips import Picture, Video, card, numbered, write_clip
from tests.trainer.media.forms import add_to_element, add_to_entry, box, element, remux

SETTINGS = FitSettings(
    geometry=Geometry(width=128, height=128, frame_count=9, frame_rate=24),
    auto_scale=False,
    with_audio=False,
    normalize_audio=False,
    preserve_pitch=True,
)


def shown(path: Path, size: tuple[int, int] = (128, 128)) -> Picture:
    """The first frame of the clip as it is fitted."""
    geometry = replace(SETTINGS.geometry, width=size[0], height=size[1], frame_count=1)
    picture: Picture = fit_clip(path, replace(SETTINGS, geometry=geometry)).frames[0]
    return picture


MAGENTA = (200, 0, 200)


def framed(left: int, top: int, right: int, bottom: int, size: tuple[int, int] = (128, 96)) -> list[Picture]:
    """Cards of a size within bars that are to be cropped."""
    pictures = []
    for picture in numbered(12, size=size):
        whole = np.full((size[1] + top + bottom, size[0] + left + right, 3), MAGENTA, np.uint8)
        whole[top : top + size[1], left : left + size[0]] = picture
        pictures.append(whole)
    return pictures


def crop_matroska(path: Path, sides: dict[str, int]) -> Path:
    added = b"".join(element(PIXEL_CROP[name], struct.pack(">H", pixels)) for name, pixels in sides.items())
    return add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY, VIDEO), added)


def clean_aperture(path: Path, sides: dict[str, int], size: tuple[int, int] = (128, 96)) -> Path:
    """Fractions of width, height, and the way from the middle of the picture to that of the aperture."""
    right = Fraction(sides["left"] - sides["right"], 2)
    down = Fraction(sides["top"] - sides["bottom"], 2)
    numbers = [number for part in (*map(Fraction, size), right, down) for number in (part.numerator, part.denominator)]
    return add_to_entry(path, box(b"clap", struct.pack(">8i", *numbers)))


SIDES = [(0, 16, 0, 0), (0, 0, 0, 32), (24, 8, 8, 24), (15, 7, 1, 9), (40, 0, 40, 0)]
CROPS: dict[str, Callable[[Path, dict[str, int]], Path]] = {
    "mkv": crop_matroska,
    "mp4": clean_aperture,
    "mov": clean_aperture,
}


@pytest.mark.parametrize("container", CROPS)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_what_a_container_crops_is_not_shown(tmp_path: Path, container: str, sides: tuple[int, int, int, int]) -> None:
    # Chroma at half the size holds no odd edge.
    odd = any(side % 2 for side in sides)
    video = Video(codec="ffv1", pixel_format="bgr0") if container == "mkv" else Video()
    video = replace(video, pixel_format="yuv444p") if odd and container != "mkv" else video
    path = write_clip(tmp_path / f"clip.{container}", framed(*sides), video)
    CROPS[container](path, dict(zip(("left", "top", "right", "bottom"), sides, strict=True)))
    found = probe(path)
    assert (found.width, found.height) == (128, 96)
    picture = shown(path, (128, 96))
    assert cards.number(picture) == 0
    assert max(cards.colour_errors(picture).values()) < 20
    edges = np.concatenate([picture[2], picture[-3], picture[:, 2], picture[:, -3]]).astype(int)
    assert np.abs(edges - MAGENTA).sum(axis=1).min() > 100


@pytest.mark.parametrize("rotation", [90, 180, 270])
@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_crop_comes_before_turning(tmp_path: Path, container: str, rotation: int) -> None:
    pictures = [np.ascontiguousarray(np.rot90(card(0, 96, 128), -rotation // 90)) for _ in range(9)]
    height, width = pictures[0].shape[:2]
    bars = [np.pad(picture, ((16, 0), (0, 0), (0, 0)), constant_values=255) for picture in pictures]
    path = write_clip(tmp_path / f"clip.{container}", bars, Video(rotation=rotation))
    sides = {"left": 0, "top": 16, "right": 0, "bottom": 0}
    if container == "mkv":
        crop_matroska(path, sides)
    else:
        clean_aperture(path, sides, (width, height))
    found = probe(path)
    assert (found.width, found.height) == (96, 128)
    assert max(cards.colour_errors(shown(path)).values()) < 30


@pytest.mark.parametrize("sides", [{"top": 5000}, {"left": 64, "right": 64}, {"bottom": 96}])
def test_a_crop_that_leaves_nothing_is_told_in_the_words_of_ffmpeg(tmp_path: Path, sides: dict[str, int]) -> None:
    path = crop_matroska(write_clip(tmp_path / "clip.mkv", numbered(9, size=(128, 96))), sides)
    with pytest.raises(Undecodable, match=r"^The file cannot be opened: Invalid data found when processing input"):
        probe(path)


TOO_WIDE, OUTSIDE = struct.pack(">8i", 500, 1, 96, 1, 0, 1, 0, 1), struct.pack(">8i", 1, 1, 1, 1, -900, 1, 0, 1)


@pytest.mark.parametrize("body", [b"", bytes(32), TOO_WIDE, OUTSIDE])
def test_a_clean_aperture_that_does_not_fit_is_nonsense(tmp_path: Path, body: bytes) -> None:
    path = add_to_entry(write_clip(tmp_path / "clip.mp4", numbered(9, size=(128, 96))), box(b"clap", body))
    assert (probe(path).width, probe(path).height) == (128, 96)


def exif(orientation: int | None) -> bytes:
    """An APP1 segment of little-endian TIFF: the maker (0x010F), and how the picture is turned (0x0112) if at all."""
    entries = [struct.pack("<HHI4s", 0x010F, 2, 4, b"Cam\0")]
    if orientation is not None:
        entries.append(struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0))
    tiff = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff


@pytest.mark.parametrize("orientation", [None, 1])
@pytest.mark.parametrize("container", ["mov", "mp4", "mkv"])
@pytest.mark.parametrize(("rotation", "mirrored"), [(0, True), (90, False), (90, True), (180, True), (270, False)])
def test_exif_beside_a_picture_does_not_hide_how_it_is_turned(
    tmp_path: Path, container: str, rotation: int, mirrored: bool, orientation: int | None
) -> None:
    video = Video(codec="mjpeg", pixel_format="yuvj420p", full_range=True, rotation=rotation, mirrored=mirrored)
    whole = write_clip(tmp_path / f"whole.{container}", numbered(9, size=(128, 128)), video)
    segment = exif(orientation)

    def with_exif(stream: Any, number: int, packet: "av.Packet[Any]") -> bytes:
        data = bytes(packet)
        return data[:2] + segment + data[2:]

    path = remux(whole, tmp_path / f"clip.{container}", edit=with_exif)
    assert np.abs(shown(path).astype(int) - shown(whole)).max() < 3
    assert probe(path).rotation == probe(whole).rotation


def dolby_vision(profile: int, compatible: int) -> bytes:
    """A decoder configuration record: version 1.0, level 6, metadata and base layer."""
    return struct.pack(">BBHB", 1, 0, profile << 9 | 6 << 3 | 0b101, compatible << 4) + bytes(19)


def mark(path: Path, profile: int, compatible: int) -> Path:
    record = dolby_vision(profile, compatible)
    kind = b"dvcC" if profile < 8 else b"dvvC"
    if path.suffix == ".mkv":
        addition = element(ADDITION_TYPE, kind) + element(ADDITION_DATA, record)
        return add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY), element(BLOCK_ADDITION, addition))
    return add_to_entry(path, box(kind, record))


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(
    ("profile", "compatible", "refused"),
    [(5, 0, True), (10, 0, True), (20, 0, True), (8, 1, False), (8, 4, False), (10, 1, False), (7, 6, False)],
)
def test_dolby_vision_is_refused_where_nothing_else_shows_it(
    tmp_path: Path, container: str, profile: int, compatible: int, refused: bool
) -> None:
    path = mark(write_clip(tmp_path / f"clip.{container}", numbered(9, size=(128, 96))), profile, compatible)
    if not refused:
        assert probe(path).frame_count == 9
        return
    for read in (probe, shown):
        with pytest.raises(PresentationUnsupported, match=rf"Dolby Vision profile {profile}\b"):
            read(path)


@pytest.mark.parametrize(("matrix", "name"), [(8, "ycgco"), (14, "ictcp"), (15, "ipt-c2")])
def test_a_matrix_that_cannot_be_undone_is_refused_by_name(tmp_path: Path, matrix: int, name: str) -> None:
    options = {"x264-params": f"colormatrix={'YCgCo' if matrix == 8 else 'ICtCp'}"} if matrix != 15 else {}
    pictures = numbered(9, size=(128, 96))
    path = write_clip(tmp_path / "clip.mkv", pictures, Video(tagged=False, options=options))
    if matrix == 15:
        # Colour, MatrixCoefficients.
        colour = element(0x55B0, element(0x55B1, bytes([matrix])))
        add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY, VIDEO), colour)
    with pytest.raises(PresentationUnsupported, match=name):
        probe(path)


@pytest.mark.parametrize(("mode", "text"), [(1, "side by side"), (3, "top and bottom"), (9, "column"), (13, "frame")])
def test_two_pictures_in_one_frame_are_refused(tmp_path: Path, mode: int, text: str) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(9, size=(128, 96)))
    add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY, VIDEO), element(0x53B8, bytes([mode])))
    with pytest.raises(PresentationUnsupported, match=text):
        probe(path)


def test_one_picture_is_no_stereo(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(9, size=(128, 96)))
    add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY, VIDEO), element(0x53B8, b"\0"))
    assert probe(path).frame_count == 9


@pytest.mark.parametrize(("projection", "name"), [(1, "equirectangular"), (2, "cube map")])
def test_pictures_of_a_sphere_are_refused(tmp_path: Path, projection: int, name: str) -> None:
    path = write_clip(tmp_path / "clip.mkv", numbered(9, size=(128, 96)))
    private = element(0x7672, bytes(20 if projection == 1 else 12))
    added = element(0x7670, element(0x7671, bytes([projection])) + private)
    add_to_element(path, (SEGMENT, TRACKS, TRACK_ENTRY, VIDEO), added)
    with pytest.raises(PresentationUnsupported, match=name):
        probe(path)
