"""Damage that decoders fill in: no smeared, grey or green frame is used, and the report says where it begins."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np
import pytest

from ltxtrain_trainer.errors import ClipDamaged
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip, fit_prefix
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import Probe, probe
from tests import cards
from tests.clips import Picture, Sound, Video, add_burst, numbered, tones, write_clip
from tests.sounds import burst_seconds
from tests.trainer.media.forms import Edit, from_packet, half_of, remux, zeros_in

SIZE = (256, 144)
COUNT = 48
SETTINGS = FitSettings(
    geometry=Geometry(width=128, height=128, frame_count=9, frame_rate=24),
    auto_scale=False,
    with_audio=False,
    normalize_audio=False,
    preserve_pitch=True,
)


def fit(path: Path, frames: int, known: Probe | None = None, *, with_audio: bool = False) -> FittedClip:
    geometry = replace(SETTINGS.geometry, frame_count=frames)
    return fit_clip(path, replace(SETTINGS, geometry=geometry, with_audio=with_audio), probe=known)


def noisy(count: int) -> list[Picture]:
    """Cards with noise beside them, so that every part of a frame is coded with many bytes."""
    noise = np.random.default_rng(0)
    pictures = numbered(count, size=SIZE)
    for picture in pictures:
        picture[:, :48] = noise.integers(0, 255, (SIZE[1], 48, 3), dtype=np.uint8)
        picture[:, -48:] = noise.integers(0, 255, (SIZE[1], 48, 3), dtype=np.uint8)
    return pictures


@dataclass(frozen=True)
class Kind:
    """A codec that can tell, in a container. before: frames that are lost with the damaged one, at most."""

    container: str
    codec: str
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    before: int = 0

    def __str__(self) -> str:
        return f"{self.container}-{self.codec}{'-reordered' if self.before else ''}"


GROUPS = {"g": "12", "bf": "0"}
KINDS = [
    Kind("mp4", "libx264", options=GROUPS),
    Kind("mp4", "libx264", options={"g": "12", "bf": "2"}, before=3),
    Kind("avi", "libx264", options=GROUPS),
    Kind("mp4", "libx265", options={"x265-params": "log-level=none:keyint=12:bframes=0"}),
    Kind("mp4", "libx265", options={"x265-params": "log-level=none:keyint=12"}, before=6),
    Kind("mp4", "mpeg4", options=GROUPS),
    Kind("avi", "mpeg4", options=GROUPS),
    Kind("mkv", "mpeg2video", options=GROUPS),
    Kind("mkv", "mpeg1video", options=GROUPS),
    Kind("avi", "msmpeg4", options=GROUPS),
    Kind("avi", "wmv1", options=GROUPS),
    Kind("avi", "flv", options=GROUPS),
    Kind("mov", "prores_ks", "yuv422p10le"),
    Kind("mov", "mjpeg", "yuvj420p"),
    Kind("avi", "mjpeg", "yuvj420p"),
    Kind("mkv", "mjpeg", "yuvj422p"),
    Kind("mov", "png", "rgb24"),
    Kind("avi", "ffv1", "yuv422p10le", options={"level": "3", "slicecrc": "1", "slices": "4", "g": "12"}),
]
HARMS: dict[str, Callable[[int], Edit]] = {"zeros": zeros_in, "half": half_of}


@pytest.fixture(scope="module", params=KINDS, ids=str)
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path]:
    kind: Kind = request.param
    video = Video(
        codec=kind.codec,
        pixel_format=kind.pixel_format,
        options=kind.options,
        full_range=kind.pixel_format.startswith("yuvj"),
    )
    path = tmp_path_factory.mktemp("damage") / f"whole.{kind.container}"
    return kind, write_clip(path, noisy(COUNT), video)


@pytest.mark.parametrize("harm", HARMS)
def test_what_lies_before_the_damage_is_kept_and_nothing_else(
    clip: tuple[Kind, Path], harm: str, tmp_path: Path
) -> None:
    kind, whole = clip
    path = remux(whole, tmp_path / f"bad.{kind.container}", edit=HARMS[harm](24))
    found = probe(path)
    kept = found.frame_count
    assert 24 - kind.before <= kept <= 24
    assert found.damage is not None and not found.cut_off
    told = re.search(r"frame (\d+) \(([\d.]+) s\)", found.damage)
    assert told is not None and int(told[1]) == kept and float(told[2]) == pytest.approx(kept / 24, abs=2e-3)
    fitted = fit(path, kept, found)
    assert [cards.number(picture) for picture in fitted.frames] == list(range(kept))
    worst = max(max(cards.colour_errors(picture).values()) for picture in fitted.frames)
    assert worst <= max(max(cards.colour_errors(picture).values()) for picture in fit(whole, kept).frames) + 1
    for known in (None, found):
        with pytest.raises(ClipDamaged, match=rf"damaged .*frame {kept} .*{kept} frames, {COUNT} needed") as raised:
            fit(path, COUNT, known)
        assert (raised.value.frame_count, raised.value.needed_frames) == (kept, COUNT)


def test_whole_clips_are_not_called_damaged(clip: tuple[Kind, Path]) -> None:
    _, whole = clip
    found = probe(whole)
    assert (found.frame_count, found.damage, found.leading_frames) == (COUNT, None, 0)


def test_a_damaged_opening_says_so_instead_of_too_short(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", noisy(COUNT), Video(options=GROUPS))
    path = remux(whole, tmp_path / "bad.mp4", edit=zeros_in(12))
    geometry = Geometry(width=64, height=64, frame_count=41, frame_rate=24)
    assert len(fit_prefix(path, geometry, 9, with_audio=False).frames) == 9
    with pytest.raises(ClipDamaged, match=r"frame 12 \(0\.500 s\).*12 frames at 24 fps, 17 needed for the prefix"):
        fit_prefix(path, geometry, 17, with_audio=False)


def test_zeros_in_the_headers_of_a_jpeg_are_no_damage(tmp_path: Path) -> None:
    """Cameras reserve room for Exif, and pad what follows the picture."""

    def padded(stream: object, number: int, packet: "av.Packet[av.VideoStream]") -> bytes:
        data = bytes(packet)
        reserved = b"\xff\xe1" + (2 + 6 + 500).to_bytes(2, "big") + b"Exif\0\0" + bytes(500)
        return data[:2] + reserved + data[2:] + bytes(300)

    video = Video(codec="mjpeg", pixel_format="yuvj420p", full_range=True)
    whole = write_clip(tmp_path / "whole.avi", noisy(12), video)
    found = probe(remux(whole, tmp_path / "padded.avi", edit=padded))
    assert (found.frame_count, found.damage) == (12, None)


CUT = [
    Kind("mkv", "libx264", options={"g": "24", "bf": "0", "sc_threshold": "0"}),
    Kind("mkv", "libx265", options={"x265-params": "log-level=none:keyint=24:min-keyint=24:bframes=0:scenecut=0"}),
    Kind("mkv", "mpeg4", options={"g": "24"}),
    Kind("avi", "mpeg4", options={"g": "24"}),
    Kind("mkv", "mpeg2video", options={"g": "24"}),
    Kind("avi", "msmpeg4", options={"g": "24"}),
    Kind("mkv", "libvpx", options={"g": "24", "deadline": "realtime", "auto-alt-ref": "0"}),
    Kind("mkv", "libvpx-vp9", options={"g": "24", "deadline": "realtime", "cpu-used": "8", "lag-in-frames": "0"}),
]


BURST_SECONDS = 36 / 24


@pytest.fixture(scope="module", params=CUT, ids=str)
def grouped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Path]:
    """Three groups of pictures."""
    kind: Kind = request.param
    sound = Sound(waves=add_burst(tones(3, level=0.1), BURST_SECONDS), codec="pcm_s16le", sample_format="s16")
    video = Video(codec=kind.codec, options=kind.options)
    path = tmp_path_factory.mktemp("grouped") / f"whole.{kind.container}"
    return kind, write_clip(path, noisy(72), video, sound)


@pytest.mark.parametrize("first", [1, 7, 23])
def test_a_clip_begins_with_its_first_key_frame(grouped: tuple[Kind, Path], first: int, tmp_path: Path) -> None:
    kind, whole = grouped
    path = remux(whole, tmp_path / f"cut.{kind.container}", edit=from_packet(first))
    found = probe(path)
    assert (found.frame_count, found.damage, found.leading_frames) == (48, None, 24 - first)
    fitted = fit(path, 48, found, with_audio=True)
    assert [cards.number(picture) for picture in fitted.frames] == list(range(24, 72))
    assert max(max(cards.colour_errors(picture).values()) for picture in fitted.frames) < 60
    if kind.container == "mkv":
        # AVI has no times: there sound and picture both count from the first packet that is left.
        assert fitted.audio is not None
        assert burst_seconds(fitted.audio) == pytest.approx(BURST_SECONDS - 1, abs=0.01)


def test_frames_before_the_first_key_frame_are_counted(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", noisy(60), Video(codec="mpeg4", options={"g": "24"}))
    assert probe(remux(whole, tmp_path / "cut.mkv", edit=from_packet(7))).leading_frames == 17
    assert probe(whole).leading_frames == 0


@pytest.mark.parametrize("first", [3, 30])
def test_frames_before_a_picture_is_whole_again_are_counted(tmp_path: Path, first: int) -> None:
    """Live coders refresh a picture column by column; a key frame is there at the beginning alone."""
    options = {"g": "24", "bf": "0", "x264-params": "intra-refresh=1:scenecut=0:log-level=-1"}
    whole = write_clip(tmp_path / "whole.mkv", noisy(96), Video(options=options))
    assert probe(whole).leading_frames == 0
    found = probe(remux(whole, tmp_path / "cut.mkv", edit=from_packet(first)))
    assert found.leading_frames > 0 and found.leading_frames + found.frame_count == 96 - first


@pytest.mark.parametrize("kind", [kind for kind in CUT if kind.codec.startswith("libvpx")], ids=str)
@pytest.mark.parametrize("harmed", [20, 24])
def test_zeros_in_frames_whose_decoder_takes_any_bytes(tmp_path: Path, kind: Kind, harmed: int) -> None:
    whole = write_clip(tmp_path / "whole.mkv", noisy(COUNT), Video(codec=kind.codec, options=kind.options))
    path = remux(whole, tmp_path / "bad.mkv", edit=zeros_in(harmed))
    found = probe(path)
    assert found.frame_count == harmed and found.damage is not None and f"frame {harmed} (" in found.damage
    assert [cards.number(picture) for picture in fit(path, harmed, found).frames] == list(range(harmed))


def test_a_clip_without_any_key_frame_is_taken_as_it_is(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mkv", noisy(30), Video(codec="mpeg4", options={"g": "250"}))
    found = probe(remux(whole, tmp_path / "cut.mkv", edit=from_packet(1)))
    assert (found.frame_count, found.leading_frames) == (29, 0)
