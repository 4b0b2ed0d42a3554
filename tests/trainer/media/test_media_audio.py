"""Sound in place, in tune and at its level, whatever the track is made of."""

import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler

from ltxtrain_trainer.errors import AudioTrackMissing, AudioUndecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.audio import AudioReader, normalize_peak, probe_audio
from ltxtrain_trainer.media.container import open_clip
from ltxtrain_trainer.media.downmix import stereo, weights_of
from ltxtrain_trainer.media.fit import FittedClip, fit_clip, fit_prefix, fit_scenes
from ltxtrain_trainer.media.frame_schedule import FitSettings, Scene
from ltxtrain_trainer.media.probe import probe
from ltxtrain_trainer.media.stretch import find_onsets, stretch
from tests.clips import (
    Sound,
    Video,
    Waves,
    _audio_track,
    _encode_sound,
    add_burst,
    as_seen,
    numbered,
    tones,
    write_clip,
)
from tests.sounds import RATE, burst_seconds, pitch
from tests.trainer.media.forms import with_channel_order

SIZE = (64, 48)
PLAIN, PITCH_KEPT = 0.002, 0.012


def fit(
    path: Path, frames: int, *, rate: float = 24, auto_scale: bool = False, pitch: bool = True, normalize: bool = False
) -> FittedClip:
    geometry = Geometry(width=32, height=32, frame_count=frames, frame_rate=rate)
    settings = FitSettings(
        geometry=geometry, auto_scale=auto_scale, with_audio=True, normalize_audio=normalize, preserve_pitch=pitch
    )
    return fit_clip(path, settings)


def sound_of(clip: FittedClip) -> Waves:
    assert clip.audio is not None
    assert clip.audio.shape == (2, round(len(clip.frames) / clip.frame_rate * RATE))
    assert clip.audio.dtype == np.float32
    return clip.audio


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


@pytest.mark.parametrize("factor", [1.05, 1.3, 1.48, 2.0, 3.1, 4.0])
@pytest.mark.parametrize("hertz", [110, 440, 1500])
def test_pitch_and_level_survive_stretching(factor: float, hertz: float) -> None:
    wave = tones(2, rate=RATE, hertz=(hertz, hertz), level=0.5)
    slow = stretch(wave, round(wave.shape[1] * factor), preserve_pitch=True)
    middle = slow[0, RATE // 4 : -RATE // 4]
    assert slow.shape == (2, round(wave.shape[1] * factor))
    assert pitch(middle) == pytest.approx(hertz, rel=5e-3)
    # Windows that were laid on top of each other out of step would beat.
    levels = np.sqrt(np.mean(np.square(middle[: len(middle) // 800 * 800].reshape(-1, 800)), axis=1))
    assert np.all(np.abs(levels / (0.5 / np.sqrt(2)) - 1) < 0.1)


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.5, 4.0])
def test_every_click_is_heard_once_and_in_place(factor: float) -> None:
    times = [0.2, 0.5, 0.61, 1.0, 1.42, 1.8]
    wave = tones(2, rate=RATE, level=0.05)
    for time in times:
        wave = add_burst(wave, time, rate=RATE)
    slow = stretch(wave, round(wave.shape[1] * factor), preserve_pitch=True)
    power = np.square(np.diff(slow[0], n=2))
    energy = np.convolve(power, np.ones(80), "same")
    loud = energy > energy.max() / 8
    starts = np.flatnonzero(np.diff(loud.astype(int)) == 1) / RATE
    assert len(starts) == len(times)
    assert starts == pytest.approx(np.array(times) * factor, abs=PITCH_KEPT / 2)


def test_onsets_are_sudden_beginnings() -> None:
    wave = add_burst(tones(1, rate=RATE, level=0.05), 0.5, rate=RATE)
    (onset,) = find_onsets(wave)
    assert onset / RATE == pytest.approx(0.5, abs=0.003)
    assert find_onsets(np.zeros((2, RATE), np.float32)) == []
    assert find_onsets(np.zeros((2, 100), np.float32)) == []


@pytest.mark.parametrize("preserve_pitch", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100, 1000])
def test_stretching_copes_with_next_to_nothing(size: int, preserve_pitch: bool) -> None:
    slow = stretch(np.full((2, size), 0.25, np.float32), 3 * size + 7, preserve_pitch=preserve_pitch)
    assert slow.shape == (2, 3 * size + 7)
    assert np.isfinite(slow).all()


def test_noise_keeps_its_level_when_stretched() -> None:
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 2 * RATE)).astype(np.float32)
    slow = stretch(noise, 3 * RATE, preserve_pitch=True)
    assert np.std(slow) == pytest.approx(0.1, rel=0.2)


def layout_clip(path: Path, layout: str, channels: int, only: int) -> Path:
    waves = np.zeros((channels, 48_000), np.float32)
    waves[only] = tones(1, hertz=(440,), level=0.5)[0]
    sound = Sound(waves=waves, codec="pcm_s16le", sample_format="s16", layout=layout)
    return write_clip(path, numbered(25, size=SIZE), sound=sound)


FIVE, SEVEN, QUAD = 1 / (1 + 2 * np.sqrt(0.5)), 1 / (1 + 3 * np.sqrt(0.5)), 1 / (1 + np.sqrt(0.5))
HALF = np.sqrt(0.5)
LAYOUTS = [
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


@pytest.mark.parametrize(("layout", "channels", "only", "left", "right"), LAYOUTS)
def test_channels_are_mixed_by_their_weights(
    tmp_path: Path, layout: str, channels: int, only: int, left: float, right: float
) -> None:
    path = layout_clip(tmp_path / "clip.mov", layout, channels, only)
    audio = sound_of(fit(path, 17))
    levels = np.sqrt(2 * np.mean(np.square(audio[:, 2000:-2000]), axis=1)) / 0.5
    assert levels == pytest.approx([left, right], abs=5e-3)


# Every layout that FFmpeg names (libavutil/channel_layout.c).
NAMED = (
    *("mono", "stereo", "2.1", "3.0", "3.0(back)", "4.0", "quad", "quad(side)", "3.1", "5.0", "5.0(side)", "4.1"),
    *("5.1", "5.1(side)", "6.0", "6.0(front)", "3.1.2", "hexagonal", "6.1", "6.1(back)", "6.1(front)", "7.0"),
    *("7.0(front)", "7.1", "7.1(wide)", "7.1(wide-side)", "5.1.2", "5.1.2(back)", "octagonal", "cube", "5.1.4"),
    *("7.1.2", "7.1.4", "7.2.3", "9.1.4", "9.1.6", "hexadecagonal", "binaural", "downmix", "22.2"),
)


def block(waves: Waves, layout: str) -> AudioFrame:
    """Waves [C, S] as a frame; packed, since PyAV cannot make one of more than seven planes."""
    return AudioFrame.from_ndarray(np.ascontiguousarray(waves.T).reshape(1, -1), format="flt", layout=layout)


@pytest.mark.parametrize("layout", NAMED)
def test_left_stays_left_and_right_stays_right(layout: str) -> None:
    names = [channel.name for channel in AudioLayout(layout).channels]
    time = np.arange(4800) / 48_000
    alone = np.stack([np.sin(2 * np.pi * 440 * time)] * len(names)).astype(np.float32)
    for index, name in enumerate(names):
        waves = np.zeros_like(alone)
        waves[index] = alone[index]
        left, right = np.abs(stereo(block(waves, layout))).max(axis=1)
        # By what the letters of FFmpeg's names say, not by the table that is tested.
        side = name.removesuffix("C") if name in ("FLC", "FRC") else name
        if side.startswith("LFE"):
            assert left == right == 0, name
        elif side.endswith("L"):
            assert left > 0.05 and right == 0, name
        elif side.endswith("R"):
            assert right > 0.05 and left == 0, name
        else:
            assert left == pytest.approx(right) and left > 0.05, name
    everything = stereo(block(alone, layout))
    assert np.abs(everything).max() <= 1 + 1e-6


@pytest.mark.parametrize(("codec", "layout"), [("aac", "7.1"), ("wavpack", "9.1.6"), ("alac", "7.1(wide)")])
def test_many_planes_are_read(tmp_path: Path, codec: str, layout: str) -> None:
    """Decoders give each channel a plane of its own; with eight or more, PyAV reads beyond the last."""
    names = [channel.name for channel in AudioLayout(layout).channels]
    waves = np.zeros((len(names), 48_000), np.float32)
    waves[names.index("FL")], waves[names.index("FR")] = tones(1, level=0.5)
    path = tmp_path / ("clip.mov" if codec == "alac" else "clip.mkv")
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("mpeg4", rate=24, width=SIZE[0], height=SIZE[1], pix_fmt="yuv420p")
        track: Any = file.add_stream(codec, rate=48_000, layout=layout)
        sample_format = track.codec_context.codec.audio_formats[0].name
        given = block(waves, layout)
        given.sample_rate, given.pts = 48_000, 0
        resampler = AudioResampler(format=sample_format, layout=layout, rate=48_000, frame_size=1024)
        packets: list[Any] = []
        for frame in (*resampler.resample(given), *resampler.resample(None)):
            packets += track.encode(frame)
        packets += track.encode(None)
        for index, picture in enumerate(numbered(25, size=SIZE)):
            seen = as_seen(picture, Video())
            seen.pts, seen.time_base = index, Fraction(1, 24)
            packets += video.encode(seen)
        packets += video.encode(None)
        file.start_encoding()
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            file.mux(packet)
    audio = sound_of(fit(path, 17))
    assert pitch(audio[0]) == pytest.approx(440, rel=1e-2)
    assert pitch(audio[1]) == pytest.approx(660, rel=1e-2)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6, 7, 8, 11])
def test_channels_without_names_have_a_place_by_their_count(channels: int) -> None:
    weights = weights_of(("NONE",) * channels)
    assert weights.shape == (2, channels)
    if 1 < channels <= 8:
        assert weights[0, 0] > weights[1, 0] == 0 and weights[1, 1] > weights[0, 1] == 0


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


def empty_track(path: Path, *tracks: Sound | None) -> Path:
    """Audio tracks beside pictures; None is one without a packet."""
    with av.open(str(path), "w") as file:
        video: Any = file.add_stream("mpeg4", rate=24, width=SIZE[0], height=SIZE[1], pix_fmt="yuv420p")
        streams = [_audio_track(file, sound or Sound(waves=tones(1))) for sound in tracks]
        packets: list[Any] = []
        for index, picture in enumerate(numbered(25, size=SIZE)):
            frame = as_seen(picture, Video())
            frame.pts, frame.time_base = index, Fraction(1, 24)
            packets += video.encode(frame)
        packets += video.encode(None)
        for stream, sound in zip(streams, tracks, strict=True):
            packets += _encode_sound(stream, sound) if sound else []
        file.start_encoding()
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            file.mux(packet)
    return path


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "avi"])
def test_a_track_without_a_packet_is_a_missing_track(tmp_path: Path, container: str) -> None:
    path = empty_track(tmp_path / f"clip.{container}", None)
    found = probe(path)
    assert (found.audio, found.audio_error) == (None, None)
    with pytest.raises(AudioTrackMissing):
        fit(path, 17)


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv"])
def test_sound_is_taken_from_the_track_that_has_some(tmp_path: Path, container: str) -> None:
    path = empty_track(tmp_path / f"clip.{container}", None, Sound(waves=tones(1, level=0.5)))
    found = probe(path).audio
    assert found is not None and found.silence_share < 0.1
    assert pitch(sound_of(fit(path, 17))[0]) == pytest.approx(440, rel=1e-2)


def test_channels_without_names_are_in_the_order_of_wav_files(tmp_path: Path) -> None:
    path = layout_clip(tmp_path / "clip.avi", "5.1", 6, 2)
    audio = sound_of(fit(path, 17))
    levels = np.sqrt(2 * np.mean(np.square(audio[:, 2000:-2000]), axis=1)) / 0.5
    assert levels == pytest.approx([FIVE * HALF, FIVE * HALF], abs=5e-3)


def test_numbers_that_are_none_become_silence(tmp_path: Path) -> None:
    waves = add_burst(tones(2, level=0.1), 1.0)
    waves[0, 1000:2000] = np.nan
    waves[1, 3000:3100] = np.inf
    path = write_clip(
        tmp_path / "clip.mov",
        numbered(40, size=SIZE),
        sound=Sound(waves=waves, codec="pcm_f32le", sample_format="flt"),
    )
    for normalize in (False, True):
        audio = sound_of(fit(path, 33, normalize=normalize))
        assert np.isfinite(audio).all()
        assert burst_seconds(audio) == pytest.approx(1.0, abs=PLAIN)


def test_peaks_are_normalised_together_and_silence_is_left() -> None:
    wave = tones(1, rate=RATE, level=0.02)
    wave[1] *= 0.5
    loud = normalize_peak(wave)
    assert np.abs(loud).max() == pytest.approx(0.95, abs=1e-4)
    assert np.allclose(loud[1] / np.abs(loud).max(), wave[1] / np.abs(wave).max(), atol=1e-5)
    silence = np.zeros((2, 100), np.float32)
    assert np.array_equal(normalize_peak(silence), silence)
    assert np.array_equal(normalize_peak(silence[:, :0]), silence[:, :0])


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
    import av

    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            time = packet.pts * packet.time_base if packet.pts is not None else None
            if time is not None and not (packet.stream.type == "audio" and start <= time < end):
                packet.stream = streams[packet.stream_index]
                new.mux(packet)


def test_clips_without_sound_say_so(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "mute.mp4", numbered(40, size=SIZE))
    assert probe(path).audio is None and probe(path).audio_error is None
    with pytest.raises(AudioTrackMissing):
        fit(path, 25)
    with pytest.raises(AudioTrackMissing):
        fit_prefix(path, Geometry(width=32, height=32, frame_count=25, frame_rate=24), 9, with_audio=True)


def test_sound_that_cannot_be_decoded_is_told_apart(tmp_path: Path) -> None:
    path = write_clip(
        tmp_path / "clip.mkv",
        numbered(40, size=SIZE),
        sound=Sound(waves=tones(40 / 24), codec="flac", sample_format="s16"),
    )
    data = path.read_bytes()
    assert data.count(b"A_FLAC") == 1
    path.write_bytes(data.replace(b"A_FLAC", b"A_XXXX"))
    found = probe(path)
    assert found.frame_count == 40
    assert found.audio is None and found.audio_error is not None
    with pytest.raises(AudioUndecodable):
        fit(path, 25)


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


def test_the_track_is_measured_as_it_is(tmp_path: Path) -> None:
    waves = tones(2, level=0.3)
    waves[:, : waves.shape[1] // 4] = 0
    path = write_clip(
        tmp_path / "clip.mov",
        numbered(48, size=SIZE),
        Video(rate=Fraction(24)),
        Sound(waves=waves, codec="pcm_s16le", sample_format="s16"),
    )
    numbers = probe_audio(path, 0.0)
    assert (numbers.sample_rate, numbers.channels) == (48_000, 2)
    assert numbers.duration_seconds == pytest.approx(2.0, abs=1e-3)
    assert numbers.silence_share == pytest.approx(0.25, abs=0.01)
