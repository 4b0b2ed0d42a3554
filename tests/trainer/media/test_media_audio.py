"""The audio track as it is: measured, brought to its level, missing, empty or undecodable."""

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.layout import AudioLayout

from ltxtrain_trainer.errors import AudioTrackMissing, AudioUndecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.audio import JUMP_SECONDS, Block, decode_blocks, normalize_peak, probe_audio
from ltxtrain_trainer.media.container import find_audio, open_clip
from ltxtrain_trainer.media.fit import fit_prefix
from ltxtrain_trainer.media.probe import probe
from tests.clips import (
    Sound,
    Video,
    _audio_track,
    _encode_sound,
    add_burst,
    as_seen,
    numbered,
    tones,
    write_clip,
)
from tests.sounds import RATE, burst_seconds, pitch
from tests.trainer.media.forms import lose_track, move_track
from tests.trainer.media.hearing import PLAIN, SIZE, fit, sound_of
from tests.trainer.media.sweep import Combination, heard, write_sound


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


def blocks_of(path: Path) -> list[Block]:
    with open_clip(path) as container:
        track = find_audio(container)
        assert track is not None
        return list(decode_blocks(container, track))


@pytest.mark.parametrize(
    ("container", "codec", "sample_format", "layout"),
    [
        ("avi", "pcm_f64le", "dbl", "quad"),  # AVI makes packets of one sample where one takes 32 bytes
        ("mkv", "pcm_s16le", "s16", "stereo"),
        ("mkv", "pcm_f32le", "flt", "5.1"),
    ],
)
def test_short_packets_are_the_same_sound_in_few_blocks(
    tmp_path: Path, container: str, codec: str, sample_format: str, layout: str
) -> None:
    waves = np.zeros((AudioLayout(layout).nb_channels, 12_000), np.float32)
    waves[:2, 2880:] = tones(9120 / 48_000, level=0.3)
    whole = Sound(waves=waves, codec=codec, sample_format=sample_format, layout=layout)
    pictures = numbered(6, size=SIZE)
    apart = write_clip(tmp_path / f"apart.{container}", pictures, sound=replace(whole, piece=7))
    together = write_clip(tmp_path / "together.mov", pictures, sound=whole)
    blocks = blocks_of(apart)
    assert len(blocks) <= 12_000 / 480
    assert {block.channels for block in blocks} == {len(waves)}
    sound, expected = (
        np.concatenate([block.samples for block in row], axis=1) for row in (blocks, blocks_of(together))
    )
    assert sound.shape == (2, 12_000)
    # A mixture of many channels is rounded as its length has it.
    assert np.abs(sound[:, 480:] - expected[:, 480:]).max() < (1e-7 if len(waves) > 2 else 1e-9)
    assert probe_audio(apart, 0.0).silence_share == pytest.approx(0.24, abs=0.05)


def test_short_packets_of_integers_that_numpy_is_not_given_are_few_blocks(tmp_path: Path) -> None:
    path = write_sound(tmp_path, Combination("avi", "pcm_s64le", "s64", "quad"))
    assert len(blocks_of(path)) <= 50
    assert heard(fit(path, 9), mono=False) == "kept"


def test_short_packets_keep_their_gaps_and_overlaps(tmp_path: Path) -> None:
    """Packets of a millisecond: those of 0.4 s to 0.6 s are lost, and from 1 s on all are 0.1 s earlier."""
    sound = Sound(waves=tones(2, level=0.1), codec="pcm_s16le", sample_format="s16", piece=48)
    path = write_clip(tmp_path / "clip.mkv", numbered(48, size=SIZE), sound=sound)
    move_track(lose_track(path, 2, 0.4, 0.6), 2, 1.0, -0.1)
    blocks = blocks_of(path)
    gaps = [(before.end_seconds, after.seconds - before.end_seconds) for before, after in pairwise(blocks)]
    assert [at for at, gap in gaps if gap > 1e-9] == pytest.approx([0.4], abs=2e-3)
    assert max(gap for _, gap in gaps) == pytest.approx(0.2, abs=2e-3) and min(gap for _, gap in gaps) > -1e-9
    # The overlap is left out, as far as it is more than rounding.
    assert blocks[-1].end_seconds == pytest.approx(1.9, abs=JUMP_SECONDS)
    assert sum(block.samples.shape[1] for block in blocks) == pytest.approx(1.7 * 48_000, abs=JUMP_SECONDS * 48_000)
    assert len(blocks) <= 190 + 100
