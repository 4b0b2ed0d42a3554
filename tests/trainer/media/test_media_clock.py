"""One clock for the pictures and the sound of a file, whatever its muxer made of the times."""

import struct
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.pieces import Piece, Pieces, read_box
from ltxtrain_trainer.media.probe import probe
from ltxtrain_trainer.media.rate import measure_rate
from tests import cards
from tests.clips import Sound, Video, add_burst, numbered, tones, write_clip
from tests.sounds import RATE, burst_seconds
from tests.trainer.media.forms import begin_anew, lose_track, remux

SIZE = (128, 96)
NTSC_FILM = Fraction(24_000, 1001)
SETTINGS = FitSettings(
    geometry=Geometry(width=64, height=64, frame_count=9, frame_rate=24),
    auto_scale=False,
    with_audio=True,
    normalize_audio=False,
    preserve_pitch=True,
)


def fit(path: Path, frames: int, *, auto_scale: bool = False, with_audio: bool = True) -> FittedClip:
    geometry = replace(SETTINGS.geometry, frame_count=frames)
    return fit_clip(path, replace(SETTINGS, geometry=geometry, auto_scale=auto_scale, with_audio=with_audio))


def frame_numbers(clip: FittedClip) -> list[int]:
    return [cards.number(picture) for picture in clip.frames]


def heard_near(clip: FittedClip, seconds: float) -> float:
    """When the burst is heard that is expected then."""
    assert clip.audio is not None
    start = round((seconds - 0.2) * RATE)
    return start / RATE + burst_seconds(clip.audio[:, start : start + round(0.4 * RATE)])


def recording(path: Path, *, bursts: tuple[float, ...], seconds: float = 5, **video: Any) -> Path:
    waves = tones(seconds, level=0.1)
    for moment in bursts:
        waves = add_burst(waves, moment)
    pictures = numbered(round(seconds * 24), size=SIZE)
    sound = Sound(waves=waves, codec="pcm_s16le", sample_format="s16")
    return write_clip(path, pictures, Video(options={"g": "24", **video}), sound)


@pytest.mark.parametrize("moments", [(2.0,), (2.0, 3.0), (2.0, 4.0)])
@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_sound_goes_on_with_the_pictures_when_times_begin_anew(
    tmp_path: Path, moments: tuple[float, ...], b_frames: str
) -> None:
    path = begin_anew(recording(tmp_path / "anew.mkv", bursts=(1.0, 2.5, 4.5), bf=b_frames), *moments)
    known = probe(path)
    assert (known.frame_count, known.frame_rate, known.variable_frame_rate) == (120, 24, False)
    assert known.audio is not None and known.audio.duration_seconds == pytest.approx(5, abs=0.05)
    clip = fit(path, 120)
    assert frame_numbers(clip) == list(range(120))
    assert clip.audio_missing_seconds < 0.06
    for moment in (1.0, 2.5, 4.5):
        assert heard_near(clip, moment) == pytest.approx(moment, abs=0.04)


def set_ahead(source: Path, target: Path, moment: float, seconds: float) -> Path:
    """The clock of the recorder is set while it records."""

    def stamps(stream: Any, number: int, pts: int, dts: int) -> tuple[int, int]:
        ahead = round(seconds / stream.time_base) if pts * stream.time_base > moment - 1e-3 else 0
        return pts + ahead, dts + ahead

    fragments: dict[str, Any] = (
        {"movflags": "frag_keyframe+empty_moov+default_base_moof"} if target.suffix == ".mov" else {}
    )
    return remux(source, target, stamps=stamps, **fragments)


@pytest.mark.parametrize("container", ["mkv", "mov"])
def test_a_clock_that_is_set_ahead_leaves_no_gap(tmp_path: Path, container: str) -> None:
    whole = recording(tmp_path / f"whole.{container}", bursts=(1.0, 3.0), bf="0")
    path = set_ahead(whole, tmp_path / f"ahead.{container}", 2.0, 3600)
    known = probe(path)
    assert (known.frame_count, known.frame_rate, known.variable_frame_rate) == (120, 24, False)
    for auto_scale in (False, True):
        clip = fit(path, 120, auto_scale=auto_scale)
        assert frame_numbers(clip) == list(range(120)) and clip.audio_missing_seconds < 0.06
        assert heard_near(clip, 1.0) == pytest.approx(1.0, abs=0.04)
        assert heard_near(clip, 3.0) == pytest.approx(3.0, abs=0.04)


def test_a_picture_that_is_held_while_sound_goes_on_is_held(tmp_path: Path) -> None:
    times = [index / 24 + (90 if index >= 24 else 0) for index in range(48)]
    sound = Sound(waves=add_burst(tones(93, level=0.1), 91.5), codec="pcm_s16le", sample_format="s16")
    path = write_clip(tmp_path / "held.mkv", numbered(48, size=SIZE), Video(times=times, options={"bf": "0"}), sound)
    known = probe(path)
    assert known.variable_frame_rate and known.duration_seconds == pytest.approx(92, abs=0.1)
    assert frame_numbers(fit(path, 9, auto_scale=True))[-1] == 8


@pytest.mark.parametrize("rate", [NTSC_FILM, Fraction(24), Fraction(30_000, 1001)], ids=float)
def test_rounded_times_have_the_rate_that_they_are_rounded_from(tmp_path: Path, rate: Fraction) -> None:
    """QuickTime's old time scale is 600 ticks a second."""
    whole = write_clip(tmp_path / "whole.mp4", numbered(49, size=SIZE), Video(rate=rate, options={"bf": "0"}))
    found = probe(remux(whole, tmp_path / "ticks.mov", video_track_timescale="600"))
    assert found.frame_rate == pytest.approx(float(rate), rel=1e-6) and not found.variable_frame_rate


def test_a_part_without_sound_does_not_move_what_follows(tmp_path: Path) -> None:
    whole = lose_track(recording(tmp_path / "anew.mkv", bursts=(1.0, 4.5)), 2, 2.0, 4.0)
    clip = fit(begin_anew(whole, 2.0, 4.0), 120)
    assert frame_numbers(clip) == list(range(120))
    assert heard_near(clip, 1.0) == pytest.approx(1.0, abs=0.04)
    assert heard_near(clip, 4.5) == pytest.approx(4.5, abs=0.04)
    assert clip.audio is not None and not clip.audio[:, round(2.2 * RATE) : round(3.8 * RATE)].any()
    assert clip.audio_missing_seconds == pytest.approx(2, abs=0.1)


def test_sound_that_begins_anew_alone_goes_on_without_a_gap(tmp_path: Path) -> None:
    clip = fit(begin_anew(recording(tmp_path / "anew.mkv", bursts=(1.0, 3.0)), 2.0, only=2), 120)
    assert frame_numbers(clip) == list(range(120))
    assert heard_near(clip, 3.0) == pytest.approx(3.0, abs=0.04)


def test_fragments_whose_times_begin_anew(tmp_path: Path) -> None:
    """A live recording in MP4 counts the times of each fragment from a base of its own (tfdt), which starts again."""
    whole = recording(tmp_path / "whole.mov", bursts=(1.0, 3.0), bf="0")
    path = remux(whole, tmp_path / "anew.mov", movflags="frag_keyframe+empty_moov+default_base_moof")
    boxes = Pieces(path.read_bytes(), read_box)
    data = bytearray(boxes.data)
    for fragment in boxes.within():
        for track in boxes.within(fragment) if fragment.kind == b"moof" else ():
            base = boxes.find(track, b"tfdt") if track.kind == b"traf" else None
            if base is not None:
                # Version 1: a number of eight bytes behind version and flags.
                seconds = Fraction(int.from_bytes(data[base.start + 4 : base.end], "big"), timescale(boxes, track))
                back = 2 * timescale(boxes, track) if seconds >= 2 else 0
                struct.pack_into(">Q", data, base.start + 4, int(seconds * timescale(boxes, track)) - back)
    path.write_bytes(data)
    clip = fit(path, 120)
    assert frame_numbers(clip) == list(range(120))
    assert heard_near(clip, 1.0) == pytest.approx(1.0, abs=0.04)
    assert heard_near(clip, 3.0) == pytest.approx(3.0, abs=0.04)


def timescale(boxes: Pieces, track: Piece) -> int:
    header = boxes.find(track, b"tfhd")
    assert header is not None
    return 12_288 if boxes.body(header, 8)[7] == 1 else 48_000


def without_offsets(stream: Any, number: int, pts: int, dts: int) -> tuple[int, int]:
    """Every picture claims the time at which it is decoded."""
    if stream.type == "audio":
        return pts, dts
    tick = number * round(1 / 24 / stream.time_base)
    return tick, tick


H264_DEEP = {"bf": "3", "b-adapt": "0", "g": "250", "x264-params": "b-pyramid=normal"}


@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mov", "libx264", {"bf": "1", "g": "12"}),
        ("mp4", "libx264", H264_DEEP),
        ("mp4", "libx265", {"x265-params": "log-level=none:bframes=3:keyint=24"}),
        ("mp4", "mpeg4", {"bf": "2", "g": "12"}),
    ],
    ids=["h264-1", "h264-3", "hevc", "mpeg4"],
)
def test_without_composition_offsets_the_even_order_of_decoding_counts(
    tmp_path: Path, container: str, codec: str, options: dict[str, str]
) -> None:
    waves = add_burst(tones(97 / 24, level=0.1), 2.0)
    sound = Sound(waves=waves, codec="aac")
    whole = write_clip(tmp_path / "whole.mp4", numbered(97, size=SIZE), Video(codec=codec, options=options), sound)
    path = remux(whole, tmp_path / f"clip.{container}", stamps=without_offsets)
    known = probe(path)
    assert (known.frame_count, known.variable_frame_rate) == (97, False)
    assert known.frame_rate == pytest.approx(24, rel=1e-6)
    for auto_scale in (False, True):
        clip = fit(path, 97, auto_scale=auto_scale)
        assert frame_numbers(clip) == list(range(97))
        # Times of decoding lead those of showing by the depth of reordering, which nothing in such a file tells.
        assert heard_near(clip, 2.0) == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize("count", [2, 9, 17, 24, 45])
@pytest.mark.parametrize("rate", [Fraction(24), NTSC_FILM, Fraction(25), Fraction(30), Fraction(60)], ids=float)
def test_a_short_matroska_has_its_declared_rate(tmp_path: Path, count: int, rate: Fraction) -> None:
    path = write_clip(tmp_path / "short.mkv", numbered(count, size=SIZE), Video(rate=rate))
    found = probe(path)
    assert (found.frame_count, found.variable_frame_rate) == (count, False)
    assert found.frame_rate == pytest.approx(float(rate), rel=1e-6)


def test_a_declared_duration_counts_only_where_the_times_agree(tmp_path: Path) -> None:
    # Declared as 24 a second, each frame held for two.
    whole = write_clip(tmp_path / "whole.mkv", numbered(40, size=SIZE), Video(options={"bf": "0"}))
    path = remux(whole, tmp_path / "slow.mkv", stamps=lambda stream, number, pts, dts: (2 * pts, 2 * dts))
    assert probe(path).frame_rate == pytest.approx(12, rel=1e-3)


def test_a_rate_is_the_declared_one_within_the_tick() -> None:
    times = [round(index / 24, 3) for index in range(17)]
    assert measure_rate(times, 17 / 24, None, declared=24, tick_seconds=1e-3).frames_per_second == 24
    assert measure_rate(times, 17 / 24, None, declared=24.5, tick_seconds=1e-3).frames_per_second != 24.5
    odd = [index / 23.98 for index in range(49)]
    assert measure_rate(odd, 49 / 23.98, 23.98, tick_seconds=1 / 23.98).frames_per_second == 23.98
    exact = [index / 24 for index in range(17)]
    assert measure_rate(exact, 17 / 24, None, declared=23.976, tick_seconds=1e-5).frames_per_second == 24


@pytest.mark.parametrize(
    ("starts", "seconds", "missing"),
    [(0.0, 97 / 24, 0.0), (0.0, 2.5, 89 / 24 - 2.5), (1.0, 4.0, 1.0), (3.9, 1.0, 89 / 24)],
)
def test_missing_sound_is_measured(tmp_path: Path, starts: float, seconds: float, missing: float) -> None:
    sound = Sound(waves=tones(seconds), codec="pcm_s16le", sample_format="s16", start_seconds=starts)
    clip = fit(write_clip(tmp_path / "clip.mkv", numbered(97, size=SIZE), sound=sound), 89)
    assert clip.audio_missing_seconds == pytest.approx(missing, abs=0.03)
    assert clip.audio is not None
    silent = np.abs(clip.audio).max(axis=0) < 1e-3
    assert silent.mean() * 89 / 24 == pytest.approx(missing, abs=0.05)
