"""Written files are read back to the bit, or as a browser would show them."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from ltxtrain_trainer.errors import Undecodable
from ltxtrain_trainer.media.probe import probe
from ltxtrain_trainer.media.video_file import read_lossless, write_h264, write_lossless
from tests import cards
from tests.clips import numbered, tones

RATES = [24.0, 24_000 / 1001, 30_000 / 1001, 8.0, 60.0, 18.163265306122447, 23.5]


def noise(count: int, height: int = 32, width: int = 64) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("frame_rate", RATES)
def test_lossless_files_give_back_every_bit(tmp_path: Path, frame_rate: float) -> None:
    frames = noise(17)
    audio = np.random.default_rng(1).normal(0, 0.3, (2, round(17 / frame_rate * 16_000))).astype(np.float32)
    write_lossless(tmp_path / "clip.mkv", frames, frame_rate, audio)
    clip = read_lossless(tmp_path / "clip.mkv")
    assert np.array_equal(clip.frames, frames)
    assert clip.audio is not None and np.array_equal(clip.audio, audio)
    assert clip.frame_rate == frame_rate
    found = probe(tmp_path / "clip.mkv")
    assert (found.frame_count, found.codec) == (17, "ffv1")
    assert found.frame_rate == pytest.approx(frame_rate, rel=2e-3)


@pytest.mark.parametrize(("height", "width"), [(288, 512), (48, 31), (18, 32)])
def test_lossless_files_hold_any_size_without_sound(tmp_path: Path, height: int, width: int) -> None:
    frames = noise(3, height, width)
    write_lossless(tmp_path / "clip.mkv", iter(frames), 24.0)
    clip = read_lossless(tmp_path / "clip.mkv")
    assert np.array_equal(clip.frames, frames) and clip.audio is None


def test_equal_clips_are_equal_files(tmp_path: Path) -> None:
    frames, audio = noise(9), tones(9 / 24, rate=16_000)
    for name in ("a", "b"):
        write_lossless(tmp_path / f"{name}.mkv", frames, 24.0, audio)
        write_h264(tmp_path / f"{name}.mp4", frames, 24.0, audio, 16_000)
    assert (tmp_path / "a.mkv").read_bytes() == (tmp_path / "b.mkv").read_bytes()
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_other_files_are_no_lossless_clips(tmp_path: Path) -> None:
    write_h264(tmp_path / "clip.mp4", noise(3), 24.0)
    for name in ("clip.mp4", "absent.mkv"):
        with pytest.raises(Undecodable, match=name):
            read_lossless(tmp_path / name)


@pytest.mark.parametrize("audio_rate", [16_000, 48_000])
@pytest.mark.parametrize("frame_rate", RATES)
def test_previews_play_as_they_were_given(tmp_path: Path, frame_rate: float, audio_rate: int) -> None:
    path = tmp_path / "clip.mp4"
    frames = numbered(24, size=(128, 96))
    audio = tones(24 / frame_rate, rate=audio_rate)
    write_h264(path, iter(frames), frame_rate, audio, audio_rate)
    found = probe(path)
    assert (found.codec, found.pixel_format, found.frame_count) == ("h264", "yuv420p", 24)
    assert found.frame_rate == pytest.approx(frame_rate, rel=1e-5)
    assert (found.color_matrix, found.color_range, found.color_primaries) == ("bt709", "tv", "bt709")
    assert found.audio is not None and found.audio.sample_rate == audio_rate
    assert found.audio.duration_seconds == pytest.approx(24 / frame_rate, abs=0.1)
    assert found.audio.start_offset_seconds == pytest.approx(0, abs=1e-3)
    with av.open(str(path)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [cards.number(picture) for picture in shown] == list(range(24))
    assert max(cards.colour_errors(shown[3]).values()) <= 5


def test_previews_begin_to_play_before_they_are_there(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_h264(path, noise(9), 24.0, tones(9 / 24))
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_rates_are_exact_where_they_have_a_name(tmp_path: Path) -> None:
    write_h264(tmp_path / "clip.mp4", noise(9), 24_000 / 1001)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        assert container.streams.video[0].average_rate == Fraction(24_000, 1001)
        assert not container.streams.audio
