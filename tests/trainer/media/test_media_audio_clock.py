"""Sound is heard when its frame is seen, whenever tracks begin, end, pause or are slowed down."""

from pathlib import Path

import av
import numpy as np
import pytest

from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.audio import AudioReader
from ltxtrain_trainer.media.container import open_clip
from ltxtrain_trainer.media.fit import FittedClip, fit_scenes
from ltxtrain_trainer.media.frame_schedule import FitSettings, Scene
from ltxtrain_trainer.media.probe import probe
from tests.clips import (
    Sound,
    Video,
    add_burst,
    numbered,
    tones,
    write_clip,
)
from tests.sounds import RATE, burst_seconds, pitch
from tests.trainer.media.hearing import PLAIN, SIZE, fit, sound_of

PITCH_KEPT = 0.012

CODECS = [
    ("mp4", "aac", "fltp", 48_000),
    ("mp4", "aac", "fltp", 44_100),
    ("mp4", "libmp3lame", "fltp", 48_000),
    ("mp4", "libopus", "flt", 48_000),
    ("mp4", "eac3", "fltp", 48_000),
    ("mov", "pcm_s16le", "s16", 48_000),
    ("mov", "pcm_s24le", "s32", 96_000),
    ("mov", "pcm_f32le", "flt", 44_100),
    ("mov", "alac", "s16p", 32_000),
    ("mkv", "pcm_f64le", "dbl", 22_050),
    ("mkv", "flac", "s16", 11_025),
    ("mkv", "libopus", "flt", 24_000),
    ("mkv", "aac", "fltp", 16_000),
    ("avi", "pcm_s16le", "s16", 48_000),
    ("avi", "pcm_u8", "u8", 16_000),
]


@pytest.mark.parametrize(("container", "codec", "sample_format", "rate"), CODECS)
def test_a_click_stays_at_its_frame(tmp_path: Path, container: str, codec: str, sample_format: str, rate: int) -> None:
    waves = add_burst(tones(2.5, rate=rate, level=0.1), 30 / 24, rate=rate)
    sound = Sound(waves=waves, rate=rate, codec=codec, sample_format=sample_format)
    path = write_clip(tmp_path / f"clip.{container}", numbered(60, size=SIZE), sound=sound)
    audio = sound_of(fit(path, 49))
    assert burst_seconds(audio) == pytest.approx(30 / 24, abs=PLAIN)
    assert pitch(audio[0]) == pytest.approx(440, rel=1e-3)
    assert pitch(audio[1]) == pytest.approx(660, rel=1e-3)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize(("video_start", "audio_start"), [(0, 0.5), (0, 0.033), (0.5, 0), (0.25, 1.0)])
def test_tracks_that_start_at_different_times_stay_together(
    tmp_path: Path, container: str, video_start: float, audio_start: float
) -> None:
    # The burst is heard when frame 36 is seen.
    at = video_start + 36 / 24 - audio_start
    sound = Sound(waves=add_burst(tones(4, level=0.1), at), start_seconds=audio_start)
    video = Video(start_seconds=video_start, options={"bf": "2"})
    path = write_clip(tmp_path / f"clip.{container}", numbered(60, size=SIZE), video, sound)
    audio = sound_of(fit(path, 49))
    assert burst_seconds(audio) == pytest.approx(36 / 24, abs=PLAIN)
    silent = max(round((audio_start - video_start - 0.03) * RATE), 0)
    assert not audio[:, :silent].any()
    found = probe(path).audio
    assert found is not None
    assert found.start_offset_seconds == pytest.approx(audio_start - video_start, abs=0.025)


@pytest.mark.parametrize("preserve_pitch", [True, False])
@pytest.mark.parametrize(("count", "frames"), [(60, 65), (60, 89), (48, 97), (30, 113)])
def test_a_slowed_click_stays_at_its_frame(tmp_path: Path, count: int, frames: int, preserve_pitch: bool) -> None:
    frame = count * 2 // 3
    waves = add_burst(tones(count / 24, level=0.1), frame / 24)
    path = write_clip(
        tmp_path / "clip.mov",
        numbered(count, size=SIZE),
        sound=Sound(waves=waves, codec="pcm_s16le", sample_format="s16"),
    )
    clip = fit(path, frames, auto_scale=True, pitch=preserve_pitch)
    audio = sound_of(clip)
    assert clip.stretch == pytest.approx(frames / count)
    heard = burst_seconds(audio, slowed=1 if preserve_pitch else clip.stretch)
    assert heard == pytest.approx(frame / 24 * clip.stretch, abs=PITCH_KEPT if preserve_pitch else PLAIN)
    factor = 1 if preserve_pitch else 1 / clip.stretch
    middle = audio[:, RATE // 4 : RATE // 4 + RATE // 2]
    assert pitch(middle[0]) == pytest.approx(440 * factor, rel=5e-3)
    assert pitch(middle[1]) == pytest.approx(660 * factor, rel=5e-3)


def test_missing_sound_in_the_middle_is_a_gap_of_its_length(tmp_path: Path) -> None:
    whole = write_clip(
        tmp_path / "whole.mkv",
        numbered(60, size=SIZE),
        sound=Sound(waves=add_burst(tones(2.5, level=0.1), 2.0), codec="pcm_s16le", sample_format="s16"),
    )
    cut = tmp_path / "cut.mkv"
    drop_packets(whole, cut, 0.9, 1.1)
    audio = sound_of(fit(cut, 57))
    assert burst_seconds(audio) == pytest.approx(2.0, abs=PLAIN)
    assert not audio[:, round(0.95 * RATE) : round(1.05 * RATE)].any()


def drop_packets(source: Path, target: Path, start: float, end: float) -> None:
    """A copy without the audio packets between two times."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            time = packet.pts * packet.time_base if packet.pts is not None else None
            if time is not None and not (packet.stream.type == "audio" and start <= time < end):
                packet.stream = streams[packet.stream_index]
                new.mux(packet)


def test_scenes_hear_their_own_sound(tmp_path: Path) -> None:
    waves = tones(5, level=0.1)
    for at in (0.5, 2.25, 4.0):
        waves = add_burst(waves, at)
    path = write_clip(tmp_path / "clip.mp4", numbered(120, size=SIZE), sound=Sound(waves=waves))
    bounds = [(0, 40), (41, 80), (80, 120)]
    scenes = [
        Scene(start_frame=a, end_frame=b, start_seconds=a / 24, end_seconds=b / 24, score=20.0) for a, b in bounds
    ]
    settings = FitSettings(
        geometry=Geometry(width=32, height=32, frame_count=33, frame_rate=24),
        auto_scale=False,
        with_audio=True,
        normalize_audio=False,
        preserve_pitch=True,
    )
    clips = list(fit_scenes(path, scenes, settings))
    heard = [burst_seconds(sound_of(clip)) for clip in clips if isinstance(clip, FittedClip)]
    assert heard == pytest.approx([0.5, 2.25 - 41 / 24, 4.0 - 80 / 24], abs=PLAIN)


def test_windows_of_one_track_agree_with_each_other(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mov",
        numbered(72, size=SIZE),
        sound=Sound(waves=tones(3), codec="pcm_s16le", sample_format="s16"),
    )
    with open_clip(path) as container:
        whole = AudioReader(container).read(0.0, 3.0)
    with open_clip(path) as container:
        reader = AudioReader(container)
        parts = np.concatenate([reader.read(start, 0.5) for start in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)], axis=1)
    assert np.abs(whole - parts).max() < 2e-3
    assert np.abs(whole[:, 800:-800] - tones(3, rate=RATE)[:, 800:-800]).max() < 2e-3


def test_uneven_frames_hear_the_sound_of_their_seconds(tmp_path: Path) -> None:
    # Thirty frames in the first second, then ten a second: frame 40 is seen at 2.0 s.
    times = [index / 30 if index < 30 else 1 + (index - 30) / 10 for index in range(50)]
    sound = Sound(waves=add_burst(tones(3, level=0.1), 2.0), codec="pcm_s16le", sample_format="s16")
    path = write_clip(tmp_path / "clip.mov", numbered(50, size=SIZE), Video(times=times), sound)
    clip = fit(path, 57, auto_scale=True)
    assert clip.stretch == 1
    assert burst_seconds(sound_of(clip)) == pytest.approx(2.0, abs=PLAIN)
    # As they are, the frames keep the sound of the seconds that they last.
    plain = fit(path, 41)
    assert len(plain.frames) / plain.frame_rate == pytest.approx(2.1, abs=1e-3)
