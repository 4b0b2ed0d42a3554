"""The right frames in the right order, over codecs, containers, rates and shapes."""

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import pytest

from ltxtrain_trainer.errors import ClipTooShort
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip, fit_prefix
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.clips import Video, numbered, write_clip

NTSC, NTSC_FILM = Fraction(30_000, 1001), Fraction(24_000, 1001)
FRAMES, SIDE = 25, 64


def settings(frame_rate: float, *, auto_scale: bool, frames: int = FRAMES) -> FitSettings:
    return FitSettings(
        geometry=Geometry(width=SIDE, height=SIDE, frame_count=frames, frame_rate=frame_rate),
        auto_scale=auto_scale,
        with_audio=False,
        normalize_audio=True,
        preserve_pitch=True,
    )


def numbers(clip: FittedClip) -> list[int]:
    return [cards.number(picture) for picture in clip.frames]


@dataclass(frozen=True)
class Kind:
    """A kind of file: how its frames are coded, how many there are, and the rate that they are resampled to."""

    container: str
    codec: str = "libx264"
    pixel_format: str = "yuv420p"
    rate: Fraction = Fraction(24)
    count: int = 60
    target: int = 24
    options: dict[str, str] = field(default_factory=dict)
    times: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return f"{self.container}-{self.codec}-{self.pixel_format}-{float(self.rate):.2f}-{self.count}-{self.target}"


REORDERED = {"bf": "3", "g": "12"}
QUIET_X265 = {"x265-params": "log-level=none:bframes=3"}
UNEVEN = tuple(index / 30 if index < 30 else 1 + (index - 30) / 10 for index in range(60))
JITTERED = tuple(max(index / 30 + (0.001 if index % 3 else -0.001), 0) for index in range(60))

KINDS = [
    Kind("mp4"),
    Kind("mp4", options=REORDERED, rate=Fraction(30)),
    Kind("mp4", options={"bf": "8", "b-adapt": "0", "g": "250"}, rate=Fraction(25), target=30),
    Kind("mp4", rate=NTSC, target=30),
    Kind("mp4", rate=NTSC_FILM),
    Kind("mp4", rate=Fraction(60), target=8),
    Kind("mp4", rate=Fraction(12), count=30, target=60),
    Kind("mp4", count=27),
    Kind("mp4", "libx265", options=QUIET_X265, rate=Fraction(50), target=25),
    Kind("mp4", "libsvtav1", options={"preset": "12"}, target=30),
    Kind("mp4", "mpeg4", options={"bf": "2"}, rate=Fraction(15), target=12),
    Kind("mp4", times=UNEVEN),
    Kind("mp4", times=JITTERED, target=30),
    Kind("mov", options=REORDERED, rate=Fraction(48)),
    Kind("mov", "prores_ks", "yuv422p10le", rate=Fraction(25), target=24),
    Kind("mov", "prores_ks", "yuva444p10le", options={"profile": "4444"}),
    Kind("mov", "mjpeg", "yuvj422p", rate=Fraction(10), count=26, target=20),
    Kind("mov", "qtrle", "rgb24", count=30),
    Kind("mov", "png", "rgb24", count=30, target=16),
    Kind("mov", "v210", "yuv422p10le", count=30),
    Kind("mkv", options=REORDERED, rate=NTSC),
    Kind("mkv", "libx265", "yuv420p10le", options=QUIET_X265, rate=NTSC_FILM, target=23),
    Kind("mkv", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"}, rate=Fraction(30)),
    Kind("mkv", "libvpx", options={"deadline": "realtime"}, rate=Fraction(60)),
    Kind("mkv", "ffv1", "bgr0", rate=Fraction(120), count=70, target=60),
    Kind("mkv", "mpeg2video", options={"bf": "2"}, rate=Fraction(25)),
    Kind("mkv", times=UNEVEN, options=REORDERED, target=15),
    Kind("avi", "mpeg4", options={"bf": "2"}, rate=Fraction(25), target=24),
    Kind("avi", options={"bf": "3"}),
    Kind("avi", "mjpeg", "yuvj420p", rate=Fraction(15), target=30),
    Kind("avi", "huffyuv", "yuv422p", rate=NTSC, count=30, target=15),
    Kind("avi", "rawvideo", "bgr24", count=26, rate=Fraction(8), target=8),
]


@pytest.fixture(scope="module", params=KINDS, ids=str)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path]:
    kind: Kind = request.param
    path = tmp_path_factory.mktemp("frames") / f"clip.{kind.container}"
    video = Video(
        codec=kind.codec,
        pixel_format=kind.pixel_format,
        rate=kind.rate,
        options=kind.options,
        times=kind.times,
        full_range=kind.pixel_format.startswith("yuvj"),
    )
    return kind, write_clip(path, numbered(kind.count, size=(128, 96)), video)


def test_probe_counts_frames_and_their_rate(clip: tuple[Kind, Path]) -> None:
    kind, path = clip
    found = probe(path)
    assert found.frame_count == kind.count
    assert found.variable_frame_rate == (kind.times is UNEVEN)
    expected = 60 / 4 if kind.times is UNEVEN else 30 if kind.times else float(kind.rate)
    assert found.frame_rate == pytest.approx(expected, rel=1e-6 if kind.times is None else 2e-3)
    assert found.duration_seconds == pytest.approx(kind.count / found.frame_rate, rel=1e-6)


def test_without_auto_scale_frames_are_taken_one_by_one(clip: tuple[Kind, Path]) -> None:
    kind, path = clip
    fitted = fit_clip(path, settings(kind.target, auto_scale=False))
    assert numbers(fitted) == list(range(FRAMES))
    assert (fitted.stretch, fitted.start_frame, fitted.end_frame) == (1, 0, FRAMES)
    if kind.times is None:
        assert fitted.frame_rate == pytest.approx(float(kind.rate), rel=1e-6)


def test_with_auto_scale_frames_are_taken_by_their_times(clip: tuple[Kind, Path]) -> None:
    kind, path = clip
    times = kind.times or [index / float(kind.rate) for index in range(kind.count)]
    last = times[-1] + (times[-1] - times[-2])
    available = int(last * kind.target + 0.5)
    stretch = max(FRAMES / available, 1)
    known = probe(path)
    for fitted in (
        fit_clip(path, settings(kind.target, auto_scale=True)),
        fit_clip(path, settings(kind.target, auto_scale=True), probe=known),
    ):
        assert fitted.frame_rate == kind.target
        assert fitted.stretch == pytest.approx(stretch)
        step = 1 / kind.target / stretch
        # A frame is there from its time on; a tenth of a frame is rounding.
        early = 0.1 * step + 1e-3
        for index, number in enumerate(numbers(fitted)):
            due = index * step
            assert times[number] <= due + early
            assert number + 1 == len(times) or times[number + 1] > due - 1e-3
    assert fitted.unused_frames == kind.count - fitted.end_frame


def test_equal_rates_take_every_frame_once(tmp_path: Path) -> None:
    for container, rate in (("mp4", NTSC), ("mkv", NTSC_FILM), ("mkv", Fraction(60)), ("avi", Fraction(25))):
        path = write_clip(tmp_path / f"clip.{container}", numbered(40, size=(128, 96)), Video(rate=rate))
        assert numbers(fit_clip(path, settings(float(rate), auto_scale=True))) == list(range(FRAMES))


@pytest.mark.parametrize(
    ("count", "auto_scale", "text"),
    [
        (24, False, "24 frames, 25 needed"),
        (6, True, "6 frames at 24 fps, 25 needed, and no clip is slowed down more than 4 times"),
    ],
)
def test_too_short_says_by_how_much(tmp_path: Path, count: int, auto_scale: bool, text: str) -> None:
    path = write_clip(tmp_path / "short.mp4", numbered(count, size=(128, 96)))
    for known in (None, probe(path)):
        with pytest.raises(ClipTooShort) as raised:
            fit_clip(path, settings(24, auto_scale=auto_scale), probe=known)
        assert str(raised.value) == text
        assert (raised.value.frame_count, raised.value.needed_frames) == (count, FRAMES)


def test_slowing_down_stops_at_four_times(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "seven.mp4", numbered(7, size=(128, 96)))
    fitted = fit_clip(path, settings(24, auto_scale=True))
    assert fitted.stretch == pytest.approx(25 / 7)
    shown = numbers(fitted)
    assert shown == sorted(shown) and set(shown) == set(range(7))
    # At twice the rate there are 14 frames for 57: slower than four times.
    with pytest.raises(ClipTooShort):
        fit_clip(path, settings(48, auto_scale=True, frames=57))


@pytest.mark.parametrize("rate", [Fraction(8), Fraction(24), Fraction(25), NTSC, Fraction(30), Fraction(60)])
def test_a_prefix_is_the_first_frames_at_its_rate(tmp_path: Path, rate: Fraction) -> None:
    geometry = Geometry(width=SIDE, height=SIDE, frame_count=89, frame_rate=24)
    path = write_clip(tmp_path / "prefix.mp4", numbered(45, size=(128, 96)), Video(rate=rate))
    fitted = fit_prefix(path, geometry, 17, with_audio=False)
    assert (fitted.frames.shape, fitted.stretch, fitted.frame_rate) == ((17, SIDE, SIDE, 3), 1, 24)
    assert numbers(fitted) == [int(index * rate / 24 + Fraction(1, 10)) for index in range(17)]


def test_a_short_prefix_says_how_many_frames_it_has(tmp_path: Path) -> None:
    geometry = Geometry(width=SIDE, height=SIDE, frame_count=89, frame_rate=24)
    path = write_clip(tmp_path / "prefix.mp4", numbered(40, size=(128, 96)), Video(rate=Fraction(60)))
    assert len(fit_prefix(path, geometry, 9, with_audio=False).frames) == 9
    with pytest.raises(ClipTooShort, match=r"^16 frames at 24 fps, 17 needed for the prefix$") as raised:
        fit_prefix(path, geometry, 17, with_audio=False)
    assert (raised.value.frame_count, raised.value.needed_frames) == (16, 17)


def test_frames_that_avi_left_out_are_held(tmp_path: Path) -> None:
    places = [0, 1, 2, 3, 6, 7, 8, 10, *range(12, 40)]
    video = Video(codec="mpeg4", times=[place / 24 for place in places], options={"bf": "2"})
    path = write_clip(tmp_path / "clip.avi", numbered(len(places), size=(128, 96)), video)
    found = probe(path)
    assert (found.frame_count, found.variable_frame_rate) == (len(places), True)
    assert found.duration_seconds == pytest.approx(40 / 24, abs=1e-3)


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_plan_holds_where_times_are_rounded(tmp_path: Path, container: str) -> None:
    # 25 frames at 16 a second are 37.5 at 24: as long as is needed, or a hair shorter, by how times are kept.
    path = write_clip(tmp_path / f"clip.{container}", numbered(25, size=(128, 96)), Video(rate=Fraction(16)))
    for frames in (33, 41):
        known = fit_clip(path, settings(24, auto_scale=True, frames=frames), probe=probe(path))
        assert len(known.frames) == len(fit_clip(path, settings(24, auto_scale=True, frames=frames)).frames) == frames


def with_edits(data: bytes, edits: list[tuple[int, int]]) -> bytes:
    """An MP4 whose index lies at its end, with another edit list: milliseconds and first tick of each part."""
    result, place = b"", 0
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + length]
        if kind in (b"moov", b"trak"):
            body = with_edits(body, edits)
        elif kind == b"edts":
            rows = b"".join(struct.pack(">Iihh", duration, start, 1, 0) for duration, start in edits)
            body = struct.pack(">I4sII", len(rows) + 16, b"elst", 0, len(edits)) + rows
        result += struct.pack(">I4s", len(body) + 8, kind) + body
        place += length
    return result


FRAME_TICKS = 512


@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([(2000, 7)], list(range(7, 32))),
        ([(1000, 0), (1000, 48)], [*range(24), 48]),
        ([(500, 0), (500, 30), (1000, 60)], [*range(12), *range(30, 42), 60]),
        ([(500, None), (2000, 0)], list(range(25))),
    ],
)
def test_edit_lists_are_what_is_shown(
    tmp_path: Path, b_frames: int, parts: list[tuple[int, int | None]], expected: list[int]
) -> None:
    video = Video(options={"bf": str(b_frames), "g": "24"})
    path = write_clip(tmp_path / "clip.mp4", numbered(96, size=(128, 96)), video)
    # With reordering, the first frame lies two frames into the track.
    first = 2 * FRAME_TICKS if b_frames else 0
    edits = [(ms, -1 if frame is None else first + frame * FRAME_TICKS) for ms, frame in parts]
    path.write_bytes(with_edits(path.read_bytes(), edits))
    assert numbers(fit_clip(path, settings(24, auto_scale=False))) == expected
    assert probe(path).frame_count == 48
