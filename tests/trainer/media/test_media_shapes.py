"""Pictures as a player shows them: turned, stretched, cropped, deinterlaced, in the right colours."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media import hdr
from ltxtrain_trainer.media.fit import FittedClip, fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.picture import cover
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.clips import Picture, Video, numbered, write_clip

FRAMES = 9
CODED = 3


def fit(path: Path, width: int = 128, height: int = 128) -> FittedClip:
    settings = FitSettings(
        geometry=Geometry(width=width, height=height, frame_count=FRAMES, frame_rate=24),
        auto_scale=False,
        with_audio=False,
        normalize_audio=True,
        preserve_pitch=True,
    )
    return fit_clip(path, settings)


def check(path: Path, *, tolerance: float = 6, skip: str | None = None) -> FittedClip:
    """Every frame is its card, the right way up and in its colours."""
    fitted = fit(path)
    assert [cards.number(picture) for picture in fitted.frames] == list(range(FRAMES))
    for picture in (fitted.frames[0], fitted.frames[-1]):
        errors = cards.colour_errors(picture)
        errors.pop(skip or "", None)
        assert max(errors.values()) <= tolerance, errors
    return fitted


def resized(picture: Picture, width: int, height: int) -> Picture:
    frame = VideoFrame.from_ndarray(picture, format="rgb24")
    result: Picture = frame.reformat(width=width, height=height, interpolation="AREA").to_ndarray()  # type: ignore[assignment] # uint8, as rgb24 is
    return result


# Matroska has no mirrored pictures.
@pytest.mark.parametrize(
    ("container", "mirrored"), [("mp4", False), ("mp4", True), ("mov", False), ("mov", True), ("mkv", False)]
)
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_pictures_are_turned_and_mirrored(tmp_path: Path, container: str, rotation: int, mirrored: bool) -> None:
    shown = numbered(FRAMES + CODED, size=(256, 144))
    # Shown is: turned counter-clockwise, then mirrored. Coded is the way back.
    coded = [np.rot90(picture[:, ::-1] if mirrored else picture, -rotation // 90) for picture in shown]
    video = Video(rotation=rotation, mirrored=mirrored)
    path = write_clip(tmp_path / f"clip.{container}", [np.ascontiguousarray(picture) for picture in coded], video)
    check(path)
    found = probe(path)
    assert (found.width, found.height) == (256, 144)
    if not mirrored:
        assert found.rotation == -rotation % 360


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "avi"])
@pytest.mark.parametrize(
    ("aspect", "coded"),
    [("4/3", (192, 144)), ("16/15", (180, 144)), ("8/9", (180, 120)), ("1/2", (512, 144)), ("2", (128, 144))],
)
def test_pixels_are_made_square(tmp_path: Path, container: str, aspect: str, coded: tuple[int, int]) -> None:
    shown = (round(coded[0] * Fraction(aspect)), coded[1])
    pictures = [resized(picture, *coded) for picture in numbered(FRAMES + CODED, size=shown)]
    video = Video(codec="mpeg4" if container == "avi" else "libx264", aspect=Fraction(aspect), matrix=6)
    path = write_clip(tmp_path / f"clip.{container}", pictures, video)
    check(path, tolerance=10)
    found = probe(path)
    assert (found.width, found.height) == shown
    assert found.sample_aspect_ratio == pytest.approx(float(Fraction(aspect)))


def test_turning_and_pixel_shape_go_together(tmp_path: Path) -> None:
    shown = numbered(FRAMES + CODED, size=(144, 256))
    # Turned back, the picture lies on its side; its pixels are twice as wide as high there.
    coded = [resized(np.ascontiguousarray(np.rot90(picture, 1)), 128, 144) for picture in shown]
    path = write_clip(tmp_path / "clip.mp4", coded, Video(rotation=270, aspect=Fraction(2)))
    check(path, tolerance=10)
    assert (probe(path).width, probe(path).height) == (144, 256)


@pytest.mark.parametrize("size", [(127, 95), (129, 200), (255, 143), (131, 131), (640, 64), (64, 641)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv411p", "yuv444p", "bgr0"])
def test_odd_sizes_keep_their_edges(tmp_path: Path, size: tuple[int, int], pixel_format: str) -> None:
    path = write_clip(
        tmp_path / "clip.mkv", numbered(FRAMES + 1, size=size), Video(codec="ffv1", pixel_format=pixel_format)
    )
    check(path, tolerance=12)
    assert (probe(path).width, probe(path).height) == size


@pytest.mark.parametrize(("width", "height"), [(512, 288), (288, 512), (96, 96)])
@pytest.mark.parametrize("size", [(320, 180), (180, 320), (321, 179), (256, 144)])
def test_the_bucket_is_filled_and_the_middle_kept(
    tmp_path: Path, size: tuple[int, int], width: int, height: int
) -> None:
    """A picture whose every pixel tells its place: after fitting, each is where a fill and a centre crop puts it."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    place = np.stack([x * 200 / size[0], y * 200 / size[1], np.full_like(x, 100)], axis=-1)
    path = write_clip(
        tmp_path / "clip.mkv", [np.rint(place).astype(np.uint8)] * FRAMES, Video(codec="ffv1", pixel_format="bgr0")
    )
    fitted = fit(path, width, height)
    scale = max(width / size[0], height / size[1])
    shown = np.arange(width) + 0.5
    expected_x = ((shown - width / 2) / scale + size[0] / 2 - 0.5) * 200 / size[0]
    expected_y = ((np.arange(height) + 0.5 - height / 2) / scale + size[1] / 2 - 0.5) * 200 / size[1]
    inner = slice(8, -8)
    assert np.abs(fitted.frames[0, height // 2, inner, 0] - expected_x[inner]).max() <= 1.5
    assert np.abs(fitted.frames[0, inner, width // 2, 1] - expected_y[inner]).max() <= 1.5
    lost = 100 * (1 - width * height / scale**2 / (size[0] * size[1]))
    assert fitted.crop_loss_percent == pytest.approx(lost, abs=1e-6)


def test_cropping_comes_before_scaling() -> None:
    plan = cover((1920, 1080), (768, 768), 1.0, (2, 2))
    assert (plan.x.start, plan.x.length, plan.x.scaled, plan.x.offset) == (420, 1080, 768, 0)
    assert (plan.y.start, plan.y.length, plan.y.scaled, plan.y.offset) == (0, 1080, 768, 0)
    # 255 x 143: the square begins at 56, which chroma allows.
    plan = cover((255, 143), (286, 286), 1.0, (2, 2))
    assert (plan.x.start, plan.x.length, plan.x.scaled, plan.x.offset) == (56, 144, 288, 0)


COLOURS = [
    (1, False, "yuv420p"),
    (1, True, "yuv420p"),
    (1, True, "yuv444p"),
    (1, False, "yuv422p10le"),
    (1, True, "yuv420p10le"),
    (5, False, "yuv420p"),
    (6, False, "yuv420p"),
    (6, True, "yuv444p"),
    (6, False, "yuv420p10le"),
    (7, False, "yuv420p"),
]


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("matrix", "full_range", "pixel_format"), COLOURS)
def test_matrix_and_range_are_undone(
    tmp_path: Path, container: str, matrix: int, full_range: bool, pixel_format: str
) -> None:
    video = Video(
        matrix=matrix, full_range=full_range, pixel_format=pixel_format, primaries=matrix, transfer=min(matrix, 6)
    )
    path = write_clip(tmp_path / f"clip.{container}", numbered(FRAMES + CODED), video)
    check(path, tolerance=3)
    found = probe(path)
    names = {1: "bt709", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m"}
    assert found.color_matrix == names[matrix]
    assert found.color_range == ("pc" if full_range else "tv")


@pytest.mark.parametrize(("size", "matrix"), [((256, 144), 6), ((720, 576), 6), ((1280, 720), 1)])
def test_untagged_colours_are_guessed_by_size(tmp_path: Path, size: tuple[int, int], matrix: int) -> None:
    pictures = numbered(FRAMES + CODED, size=size)
    path = write_clip(tmp_path / "clip.avi", pictures, Video(codec="mpeg4", matrix=matrix, tagged=False))
    check(path, tolerance=4)
    assert probe(path).color_matrix == ""


def test_motion_jpeg_is_bt601_in_full_range(tmp_path: Path) -> None:
    video = Video(codec="mjpeg", pixel_format="yuvj420p", matrix=6, full_range=True, tagged=False)
    check(write_clip(tmp_path / "clip.avi", numbered(FRAMES, size=(1280, 720)), video), tolerance=4)


@pytest.mark.parametrize(
    ("container", "codec", "pixel_format"),
    [("mkv", "ffv1", "bgra"), ("mov", "prores_ks", "yuva444p10le"), ("mov", "png", "rgba"), ("mov", "qtrle", "argb")],
)
def test_transparent_parts_are_black(tmp_path: Path, container: str, codec: str, pixel_format: str) -> None:
    video = Video(codec=codec, pixel_format=pixel_format, options={"profile": "4444"} if codec == "prores_ks" else {})
    path = tmp_path / f"clip.{container}"
    write_transparent(path, numbered(FRAMES), video)
    fitted = check(path, skip="top_grey")
    assert cards.cell(fitted.frames[0], *cards.PATCHES["top_grey"][0]).max() < 3


def write_transparent(path: Path, pictures: list[Picture], video: Video) -> None:
    """The grey patch at the top is there, and cannot be seen."""
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(video.codec, rate=24, options=dict(video.options))
        stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], video.pixel_format
        for index, picture in enumerate(pictures):
            rgba = np.dstack([picture, np.full(picture.shape[:2], 255, np.uint8)])
            rgba[:36, 92:164, 3] = 0
            frame = VideoFrame.from_ndarray(rgba, format="rgba").reformat(
                format=video.pixel_format, dst_colorspace="ITU709", dst_color_range="MPEG"
            )
            frame.colorspace, frame.pts, frame.time_base = 1, index, Fraction(1, 24)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize("top_first", [True, False])
def test_interlaced_frames_show_one_moment(tmp_path: Path, container: str, top_first: bool) -> None:
    fields = numbered(2 * (FRAMES + CODED))
    woven = []
    for first, second in zip(fields[::2], fields[1::2], strict=True):
        picture = first.copy()
        later = 1 if top_first else 0
        picture[later::2] = second[later::2]
        woven.append(picture)
    order = "tff=1" if top_first else "bff=1"
    # Every field has all its chroma, so that what is woven can be taken apart.
    video = Video(options={"x264-params": f"interlaced=1:{order}"}, pixel_format="yuv422p")
    path = write_clip(tmp_path / f"clip.{container}", woven, video)
    assert probe(path).interlaced
    for index, picture in enumerate(fit(path).frames):
        # number() asserts that no cell is a comb of black and white.
        assert cards.number(picture) in (2 * index, 2 * index + 1)


def test_a_clip_may_change_its_size_and_colours_midway(tmp_path: Path) -> None:
    import av

    jpeg = Video(codec="mjpeg", pixel_format="yuvj420p", matrix=6, full_range=True)
    parts = [
        write_clip(tmp_path / "a.mkv", numbered(4, size=(256, 144)), jpeg),
        write_clip(tmp_path / "b.mkv", numbered(6, first=4, size=(160, 128)), jpeg),
    ]
    path = tmp_path / "both.mkv"
    with av.open(str(path), "w") as new:
        with av.open(str(parts[0])) as first:
            stream = new.add_stream_from_template(first.streams.video[0])
        start = 0
        for part in parts:
            with av.open(str(part)) as old:
                for packet in old.demux():
                    if packet.size and packet.pts is not None:
                        packet.pts = packet.dts = packet.pts + start
                        packet.stream = stream
                        new.mux(packet)
            start += round(4 / 24 * 1000)
    check(path, tolerance=6)


TO_2020 = np.linalg.inv(hdr.conversion(9))


def nits(picture: Picture) -> NDArray[np.float64]:
    """Light of a card on an SDR display, in BT.2020."""
    light: NDArray[np.float64] = (picture / 255.0) ** hdr.SDR_GAMMA @ TO_2020.T * hdr.SDR_WHITE
    return light


def coded_pq(light: NDArray[np.float64]) -> NDArray[np.float64]:
    return hdr.pq_code(light)


def coded_hlg(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of what an HLG display of 1000 nits does (BT.2100)."""
    display = light / 1000
    luminance = np.maximum(display @ np.array([0.2627, 0.6780, 0.0593]), 1e-9)[..., None]
    scene = display * luminance ** (1 / 1.2 - 1)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    coded: NDArray[np.float64] = np.where(
        scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c
    )
    return coded


def coded_sdr(light: NDArray[np.float64]) -> NDArray[np.float64]:
    coded: NDArray[np.float64] = (np.maximum(light, 0) / hdr.SDR_WHITE) ** (1 / hdr.SDR_GAMMA)
    return coded


def write_wide(path: Path, lights: list[NDArray[np.float64]], code: Callable[..., Any], transfer: int) -> Path:
    pictures = [np.rint(np.clip(code(light), 0, 1) * 65535).astype(np.uint16) for light in lights]
    video = Video(codec="ffv1", pixel_format="yuv420p10le", matrix=9, primaries=9, transfer=transfer)
    return write_clip(path, pictures, video)


@pytest.mark.parametrize(
    ("code", "transfer", "white"), [(coded_pq, 16, 222), (coded_hlg, 18, 222), (coded_sdr, 14, 235)]
)
def test_wide_colours_come_out_as_sdr_would_show_them(
    tmp_path: Path, code: Callable[..., Any], transfer: int, white: int
) -> None:
    lights = [nits(picture) for picture in numbered(FRAMES)]
    path = write_wide(tmp_path / "clip.mkv", lights, code, transfer)
    assert probe(path).hdr == (transfer != 14)
    assert (probe(path).color_primaries, probe(path).color_matrix) == ("bt2020", "bt2020nc")
    # The darkest channel of a colour at the edge of BT.709 is where a table is least exact.
    fitted = check(path, tolerance=12, skip="left_white")
    assert cards.cell(fitted.frames[0], *cards.PATCHES["left_white"][0]) == pytest.approx([white] * 3, abs=3)


@pytest.mark.parametrize(("code", "transfer"), [(coded_pq, 16), (coded_hlg, 18)])
def test_bright_light_is_rolled_off(tmp_path: Path, code: Callable[..., Any], transfer: int) -> None:
    levels = np.array([0, 1, 5, 20, 50, 100, 150, 203, 300, 500])
    light = np.repeat(np.repeat(levels, 16)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.float64)
    shown = fit(write_wide(tmp_path / "clip.mkv", [light] * FRAMES, code, transfer), 160, 64).frames[0]
    steps = np.array([shown[32, 16 * index + 8].mean() for index in range(len(levels))])
    assert np.all(np.diff(steps) > 0)
    assert steps[levels <= 100] == pytest.approx(255 * (levels[levels <= 100] / 203) ** (1 / 2.4), abs=2.5)
    assert 225 <= steps[levels == 203][0] <= 240
    assert np.ptp(shown[32, 8::16], axis=-1).max() <= 2


def test_the_table_is_as_good_as_its_formula() -> None:
    """Between its steps the table is interpolated; grey and colours stay within two levels of the formula."""
    from ltxtrain_trainer.media.color import Colors

    colors = Colors(matrix=9, range=1, primaries=9, transfer=16, rgb=False, height=144)
    lines = hdr.cube_file(colors, 1000).splitlines()
    assert lines[0] == f"LUT_3D_SIZE {hdr.STEPS}"
    table = np.array([line.split() for line in lines[1:]], np.float64).reshape(*[hdr.STEPS] * 3, 3)
    # Red is the innermost axis of the file.
    coded = np.linspace(0, 1, hdr.STEPS)
    red, green, blue = 20, 7, 3
    expected = hdr.map_colors(np.array([coded[red], coded[green], coded[blue]]), 16, 9, 1000)
    assert table[blue, green, red] == pytest.approx(expected, abs=1e-5)
    greys = np.linspace(0.02, 0.75, 500)
    diagonal = np.array([np.interp(greys, coded, table[range(hdr.STEPS), range(hdr.STEPS), range(hdr.STEPS), 0])])
    formula = hdr.map_colors(np.repeat(greys[:, None], 3, axis=1), 16, 9, 1000)[:, 0]
    assert np.abs(diagonal - formula).max() * 255 < 2


def test_colours_out_of_reach_keep_their_lightness_and_hue() -> None:
    green = np.array([[0.0, 0.5, 0.0]]) @ hdr.conversion(9).T
    assert green.min() < 0
    inside = hdr.into_gamut(green)
    weights = hdr.luminance_weights(1)
    assert inside.min() >= -1e-9
    assert inside @ weights == pytest.approx(green @ weights)
    assert inside.argmax() == green.argmax()
    grey = np.full((1, 3), 0.4)
    assert hdr.into_gamut(grey) == pytest.approx(grey)
    assert np.array([1.0, 1, 1]) @ hdr.conversion(9).T == pytest.approx([1, 1, 1])
    assert hdr.luminance_weights(9) == pytest.approx([0.2627, 0.6780, 0.0593], abs=1e-3)
