"""Left stays left and right stays right, in every layout and order of channels."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout

from ltxtrain_trainer.media.downmix import stereo, weights_of
from tests.clips import (
    Sound,
    Waves,
    numbered,
    tones,
    write_clip,
)
from tests.trainer.media.forms import with_channel_order
from tests.trainer.media.hearing import SIZE, fit, sound_of
from tests.trainer.media.sweep import LAYOUTS, Combination, heard, side_of, write_sound


def layout_clip(path: Path, layout: str, channels: int, only: int) -> Path:
    waves = np.zeros((channels, 48_000), np.float32)
    waves[only] = tones(1, hertz=(440,), level=0.5)[0]
    sound = Sound(waves=waves, codec="pcm_s16le", sample_format="s16", layout=layout)
    return write_clip(path, numbered(25, size=SIZE), sound=sound)


FIVE, SEVEN, QUAD = 1 / (1 + 2 * np.sqrt(0.5)), 1 / (1 + 3 * np.sqrt(0.5)), 1 / (1 + np.sqrt(0.5))


HALF = np.sqrt(0.5)


WEIGHTS = [
    ("mono", 1, 0, 1, 1),
    ("stereo", 2, 0, 1, 0),
    ("stereo", 2, 1, 0, 1),
    ("5.1", 6, 0, FIVE, 0),
    ("5.1", 6, 2, FIVE * HALF, FIVE * HALF),
    ("5.1", 6, 3, 0, 0),
    ("5.1", 6, 5, 0, FIVE * HALF),
    ("5.1(side)", 6, 4, FIVE * HALF, 0),
    ("7.1", 8, 1, 0, SEVEN),
    ("7.1", 8, 6, SEVEN * HALF, 0),
    ("quad", 4, 2, QUAD * HALF, 0),
    ("2.1", 3, 1, 0, 1),
    ("2.1", 3, 2, 0, 0),
]


@pytest.mark.parametrize(("layout", "channels", "only", "left", "right"), WEIGHTS)
def test_channels_are_mixed_by_their_weights(
    tmp_path: Path, layout: str, channels: int, only: int, left: float, right: float
) -> None:
    path = layout_clip(tmp_path / "clip.mov", layout, channels, only)
    audio = sound_of(fit(path, 17))
    levels = np.sqrt(2 * np.mean(np.square(audio[:, 2000:-2000]), axis=1)) / 0.5
    assert levels == pytest.approx([left, right], abs=5e-3)


def block(waves: Waves, layout: str) -> AudioFrame:
    """Waves [C, S] as a frame; packed, since PyAV cannot make one of more than seven planes."""
    return AudioFrame.from_ndarray(np.ascontiguousarray(waves.T).reshape(1, -1), format="flt", layout=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_left_stays_left_and_right_stays_right(layout: str) -> None:
    names = [channel.name for channel in AudioLayout(layout).channels]
    time = np.arange(4800) / 48_000
    alone = np.stack([np.sin(2 * np.pi * 440 * time)] * len(names)).astype(np.float32)
    for index, name in enumerate(names):
        waves = np.zeros_like(alone)
        waves[index] = alone[index]
        left, right = np.abs(stereo(block(waves, layout))).max(axis=1)
        # By what the letters of FFmpeg's names say, not by the table that is tested.
        side = side_of(name)
        if name.startswith("LFE"):
            assert left == right == 0, name
        elif side == "L":
            assert left > 0.05 and right == 0, name
        elif side == "R":
            assert right > 0.05 and left == 0, name
        else:
            assert left == pytest.approx(right) and left > 0.05, name
    everything = stereo(block(alone, layout))
    assert np.abs(everything).max() <= 1 + 1e-6


MANY = [("mkv", "aac", "fltp", "7.1"), ("mkv", "wavpack", "fltp", "9.1.6"), ("mov", "alac", "s16p", "7.1(wide)")]


@pytest.mark.parametrize(("container", "codec", "sample_format", "layout"), MANY)
def test_many_planes_are_read(tmp_path: Path, container: str, codec: str, sample_format: str, layout: str) -> None:
    """Decoders give each channel a plane of its own; with eight or more, PyAV reads beyond the last."""
    path = write_sound(tmp_path, Combination(container, codec, sample_format, layout))
    assert heard(fit(path, 9), mono=False) == "kept"


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 11])
def test_channels_without_names_have_a_place_by_their_count(channels: int) -> None:
    weights = weights_of(("NONE",) * channels)
    assert weights.shape == (2, channels)
    if 1 < channels <= 8:
        assert weights[0, 0] > weights[1, 0] == 0 and weights[1, 1] > weights[0, 1] == 0


@pytest.mark.parametrize("label", [1, 2], ids=["left", "right"])
def test_one_channel_of_one_side_is_heard_on_both(tmp_path: Path, label: int) -> None:
    """Cameras write each microphone as a track of its own."""
    sound = Sound(waves=tones(1, hertz=[440], level=0.5), codec="pcm_s16le", sample_format="s16", layout="mono")
    path = write_clip(tmp_path / "clip.mov", numbered(25, size=SIZE), sound=sound)
    audio = sound_of(fit(with_channel_order(path, [label]), 17))
    assert np.allclose(audio[0], audio[1]) and np.abs(audio).max() == pytest.approx(0.5, abs=0.05)


def test_sides_that_nothing_is_named_for_are_not_silent() -> None:
    for names in (("FL",), ("FR",), ("SL",), ("FL", "LFE"), ("LFE",)):
        assert weights_of(names).any(axis=1).all() and np.array_equal(*weights_of(names)), names


SWAPPED = (2, 1)  # front right, front left


def test_channels_in_an_order_of_their_own_end_no_process(tmp_path: Path) -> None:
    """PyAV frees such an order twice; in a process of its own, since that would end the tests."""
    waves = tones(1, level=0.5)
    sound = Sound(waves=waves, codec="pcm_s16le", sample_format="s16")
    path = with_channel_order(write_clip(tmp_path / "clip.mov", numbered(25, size=SIZE), sound=sound), SWAPPED)
    code = (
        "import sys; from pathlib import Path; from ltxtrain_trainer.media.audio import load_audio\n"
        "from ltxtrain_trainer.media.probe import probe; from tests.sounds import pitch\n"
        "path = Path(sys.argv[1]); assert probe(path).audio.channels == 2\n"
        "for _ in range(3): sound = load_audio(path, 0, 1)\n"
        "print(*(round(pitch(channel)) for channel in sound))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.split()) == (0, ["660", "440"]), done.stderr[-500:]


def test_ambisonics_are_heard_from_left_and_right() -> None:
    names = tuple(channel.name for channel in AudioLayout("ambisonic 1").channels)
    assert np.allclose(weights_of(names), [[0.5, 0.5, 0, 0], [0.5, -0.5, 0, 0]])


def test_channels_without_names_are_in_the_order_of_wav_files(tmp_path: Path) -> None:
    path = layout_clip(tmp_path / "clip.avi", "5.1", 6, 2)
    audio = sound_of(fit(path, 17))
    levels = np.sqrt(2 * np.mean(np.square(audio[:, 2000:-2000]), axis=1)) / 0.5
    assert levels == pytest.approx([FIVE * HALF, FIVE * HALF], abs=5e-3)
