"""Probes of files that are unusual, damaged, or not what they call themselves."""

import random
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from av.stream import Disposition

from ltxtrain_trainer.errors import ClipError, NoVideoTrack, StillImage, Undecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.probe import Probe, probe
from ltxtrain_trainer.media.scenes import find_scenes
from ltxtrain_trainer.media.truncation import missing_bytes
from tests import cards
from tests.cases_table import FOLDER, cases, media
from tests.clips import Sound, Video, as_seen, card, numbered, tones, write_clip

SIZE = (128, 96)
SETTINGS = FitSettings(
    geometry=Geometry(width=64, height=64, frame_count=9, frame_rate=24),
    auto_scale=False,
    with_audio=False,
    normalize_audio=True,
    preserve_pitch=True,
)


def first_number(path: Path) -> int:
    return cards.number(fit_clip(path, SETTINGS).frames[0])


Track = tuple[list[Any], Disposition, str]


def write_tracks(path: Path, tracks: list[Track], sound: Sound | None = None) -> Path:
    """Several video tracks in one file: pictures, disposition, codec."""
    with av.open(str(path), "w") as file:
        packets: list[Any] = []
        for pictures, disposition, codec in tracks:
            video = Video(codec=codec, pixel_format="yuvj420p" if codec == "mjpeg" else "yuv420p")
            stream: Any = file.add_stream(codec, rate=24)
            stream.height, stream.width = pictures[0].shape[:2]
            stream.pix_fmt, stream.disposition = video.pixel_format, disposition
            for index, picture in enumerate(pictures):
                frame = as_seen(picture, video)
                frame.pts, frame.time_base = index, Fraction(1, 24)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        if sound:
            from tests.clips import _audio_track, _encode_sound

            packets += _encode_sound(_audio_track(file, sound), sound)
        file.start_encoding()
        for packet in sorted(packets, key=lambda packet: float(packet.dts * packet.time_base)):
            file.mux(packet)
    return path


NONE, DEFAULT = Disposition(0), Disposition.default
FIRST, SECOND, STILL = numbered(20, clip=1, size=SIZE), numbered(20, clip=2, size=SIZE), [card(7, *SIZE)]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
@pytest.mark.parametrize(
    ("tracks", "shown"),
    [
        ([(FIRST, NONE, "libx264"), (SECOND, DEFAULT, "libx264")], 2),
        ([(FIRST, DEFAULT, "libx264"), (SECOND, NONE, "libx264")], 1),
        ([(FIRST, NONE, "libx264"), (SECOND, NONE, "libx264")], 1),
        ([(STILL, DEFAULT, "libx264"), (SECOND, NONE, "libx264")], 2),
        ([(STILL, DEFAULT, "mjpeg"), (SECOND, NONE, "libx264")], 2),
    ],
)
def test_the_video_is_the_track_that_a_player_shows(
    tmp_path: Path, container: str, tracks: list[Track], shown: int
) -> None:
    path = write_tracks(tmp_path / f"clip.{container}", tracks)
    assert probe(path).frame_count == 20
    assert first_number(path) == shown * 512


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_sound_with_an_unmarked_cover_is_no_video(tmp_path: Path, container: str) -> None:
    path = write_tracks(tmp_path / f"song.{container}", [(STILL, NONE, "mjpeg")], Sound(waves=tones(1)))
    with pytest.raises(NoVideoTrack):
        probe(path)


@pytest.mark.parametrize("extension", ["mp4", "mov", "avi", "mkv", "txt", "mp4.part"])
@pytest.mark.parametrize("container", ["mp4", "avi", "matroska"])
def test_contents_decide_not_names(tmp_path: Path, container: str, extension: str) -> None:
    video = Video(codec="mpeg4")
    path = write_clip(tmp_path / f"clip.{extension}", numbered(12, size=SIZE), video, container=container)
    assert probe(path).frame_count == 12


@pytest.mark.parametrize("name", ["http:clip.mp4", "concat:a|b.mp4", "%03d.mp4", "clip é 😀 'q' \"d\".mp4", "-i.mp4"])
def test_names_are_only_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(write_clip(tmp_path / "plain.mp4", numbered(12, size=SIZE)).read_bytes())
    assert probe(path).frame_count == 12
    assert first_number(path) == 0


DISGUISES = {
    "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nreal.mp4\n#EXT-X-ENDLIST\n",
    "concat.mkv": b"ffconcat version 1.0\nfile 'real.mp4'\n",
    "session.avi": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    "manifest.mp4": b"<?xml version='1.0'?><MPD><Period><BaseURL>real.mp4</BaseURL></Period></MPD>",
    "page.mov": b"<!DOCTYPE html><html><body>Sign in</body></html>",
    "text.mp4": b"This is not a video.",
    "tiny.mp4": b"\0",
    "nothing.mkv": b"",
}


@pytest.mark.parametrize("name", DISGUISES)
def test_nothing_but_the_four_containers_is_opened(tmp_path: Path, name: str) -> None:
    write_clip(tmp_path / "real.mp4", numbered(12, size=SIZE))
    path = tmp_path / name
    path.write_bytes(DISGUISES[name])
    for read in (probe, find_scenes, first_number):
        with pytest.raises(Undecodable):
            read(path)


@pytest.mark.parametrize("container", ["mpegts", "flv", "ogg", "nut", "asf", "mpeg"])
def test_other_containers_are_refused(tmp_path: Path, container: str) -> None:
    codec = "flv" if container == "flv" else "mpeg2video" if container.startswith("mpeg") else "mpeg4"
    if container == "ogg":
        codec = "libvpx"
    video = Video(codec=codec, rate=Fraction(25))
    path = write_clip(tmp_path / "clip.mp4", numbered(12, size=SIZE), video, container=container)
    with pytest.raises(Undecodable, match="not a readable MP4, MOV, AVI or MKV"):
        probe(path)


IMAGES = {
    "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
    "jpeg": b"\xff\xd8\xff\xe0" + bytes(40),
    "gif": b"GIF89a" + bytes(40),
    "bmp": b"BM" + bytes(60),
    "webp": b"RIFF\x20\0\0\0WEBPVP8 " + bytes(40),
    "tiff": b"II*\0" + bytes(40),
    "svg": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>",
    "heic": b"\0\0\0\x18ftypheic" + bytes(40),
    "avif": b"\0\0\0\x18ftypavif" + bytes(40),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_pictures_are_told_from_videos(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "photo.mp4"
    path.write_bytes(IMAGES[kind])
    with pytest.raises(StillImage):
        probe(path)


def whole_clip(path: Path) -> Path:
    """Ninety frames with reordering, a key frame every half second, sound, and the index in front."""
    avi = path.suffix == ".avi"
    sound = Sound(waves=tones(90 / 24), codec="pcm_s16le", sample_format="s16") if avi else Sound(waves=tones(90 / 24))
    video = Video(codec="mpeg4" if avi else "libx264", options={"g": "12", "bf": "2"})
    return write_clip(path, numbered(90, size=SIZE), video, sound, **({"movflags": "faststart"} if not avi else {}))


@pytest.mark.parametrize("container", ["mp4", "mov", "avi"])
@pytest.mark.parametrize("share", [0.95, 0.7, 0.5])
def test_a_clip_that_is_cut_off_ends_before_the_cut(tmp_path: Path, container: str, share: float) -> None:
    data = whole_clip(tmp_path / f"whole.{container}").read_bytes()
    path = tmp_path / f"cut.{container}"
    path.write_bytes(data[: int(len(data) * share)])
    found = probe(path)
    assert found.damage is not None and "cut off" in found.damage
    assert 90 * share * 0.5 < found.frame_count < 90
    assert (found.frame_rate, found.variable_frame_rate) == (pytest.approx(24), False)
    settings = replace(SETTINGS, geometry=replace(SETTINGS.geometry, frame_count=found.frame_count))
    for threads in (1, 2):
        shown = fit_clip(path, settings, probe=found, threads=threads)
        assert [cards.number(picture) for picture in shown.frames] == list(range(found.frame_count))


def test_a_matroska_that_is_cut_off_says_so(tmp_path: Path) -> None:
    data = write_clip(tmp_path / "whole.mkv", numbered(90, size=SIZE)).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: len(data) // 2])
    found = probe(path)
    assert found.damage is not None and "cut off" in found.damage
    assert 20 < found.frame_count < 90 and not found.variable_frame_rate


@pytest.mark.parametrize("container", ["mp4", "mov", "avi", "mkv"])
def test_whole_files_lack_nothing(tmp_path: Path, container: str) -> None:
    path = tmp_path / f"clip.{container}"
    data = write_clip(path, numbered(12, size=SIZE), Video(codec="mpeg4")).read_bytes()
    assert missing_bytes(path) == 0 and probe(path).damage is None
    path.write_bytes(data[:-100])
    assert missing_bytes(path) == (84 if container == "avi" else 100)


def test_every_case_is_a_whole_file_but_those_that_are_not() -> None:
    lacking = {case["id"] for case in cases("media", "validation") if missing_bytes(media(case))}
    assert lacking == {"no_moov"}


def test_damage_in_the_middle_ends_the_clip(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", numbered(60, size=SIZE), Video(codec="png", pixel_format="rgb24"))
    data = bytearray(path.read_bytes())
    starts = [place for place in range(len(data)) if data[place : place + 4] == b"IDAT"]
    assert len(starts) == 60
    data[starts[30] + 4 : starts[30] + 60] = bytes(56)
    path.write_bytes(data)
    found = probe(path)
    assert (found.frame_count, found.damage is None) == (30, False)


def test_a_header_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", numbered(12, size=SIZE), Video(codec="mjpeg", pixel_format="yuvj420p"))
    size = struct.pack(">HH", SIZE[1], SIZE[0])
    huge = struct.pack(">HH", 60_000, 60_000)
    path.write_bytes(path.read_bytes().replace(b"\x08" + size, b"\x08" + huge))
    with pytest.raises(Undecodable):
        probe(path)


@pytest.mark.parametrize("movflags", ["frag_keyframe+empty_moov", "frag_keyframe+empty_moov+default_base_moof"])
def test_fragments_are_counted(tmp_path: Path, movflags: str) -> None:
    video = Video(options={"g": "6", "bf": "2"})
    path = write_clip(tmp_path / "clip.mp4", numbered(40, size=SIZE), video, movflags=movflags)
    found = probe(path)
    assert (found.frame_count, found.frame_rate) == (40, pytest.approx(24))


def test_numbers_of_one_file_are_all_there(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", numbered(48, size=SIZE), sound=Sound(waves=tones(2)))
    found = probe(path)
    assert found.audio is not None
    expected = Probe(
        container="mov,mp4,m4a,3gp,3g2,mj2",
        width=128,
        height=96,
        frame_count=48,
        frame_rate=24.0,
        variable_frame_rate=False,
        duration_seconds=2.0,
        codec="h264",
        pixel_format="yuv420p",
        rotation=0,
        sample_aspect_ratio=1.0,
        interlaced=False,
        color_matrix="bt709",
        color_range="tv",
        color_primaries="bt709",
        color_transfer="bt709",
        hdr=False,
        audio=found.audio,
        audio_error=None,
        damage=None,
    )
    assert found == expected


def flip(data: bytearray, chance: random.Random) -> bytearray:
    for _ in range(chance.choice([1, 3, 20, 200])):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return data


def truncate(data: bytearray, chance: random.Random) -> bytearray:
    return data[: chance.randrange(len(data))]


def copy_within(data: bytearray, chance: random.Random) -> bytearray:
    source, target, length = chance.randrange(len(data)), chance.randrange(len(data)), chance.randrange(2000)
    data[target : target + length] = data[source : source + length]
    return data


def splice(data: bytearray, chance: random.Random) -> bytearray:
    other = media(chance.choice(cases("media"))).read_bytes()
    return data[: chance.randrange(len(data))] + other[chance.randrange(len(other) + 1) :]


HARMS: list[Callable[[bytearray, random.Random], bytearray]] = [flip, truncate, copy_within, splice]


def harm(seeds: range) -> None:
    """Every harmed file is either read or refused with a reason."""
    sources = [path for path in sorted((FOLDER / "media").iterdir()) if 0 < path.stat().st_size < 150_000]
    path = Path(sys.argv[1]) / "harmed"
    for seed in seeds:
        chance = random.Random(seed)
        path.write_bytes(chance.choice(HARMS)(bytearray(chance.choice(sources).read_bytes()), chance))
        try:
            found = probe(path)
            fit_clip(path, replace(SETTINGS, auto_scale=seed % 2 == 0, with_audio=found.audio is not None))
        except ClipError as error:
            assert str(error)


def run_harm(folder: Path, first: int, count: int) -> None:
    # In a process of its own: what would kill it must not kill the tests.
    code = f"from tests.trainer.media.test_media_probe import harm; harm(range({first}, {first + count}))"
    command = [sys.executable, "-c", code, str(folder)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30 + count, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]


def test_harmed_files_are_read_or_refused(tmp_path: Path) -> None:
    run_harm(tmp_path, 0, 60)


@pytest.mark.soak
def test_many_harmed_files_are_read_or_refused(tmp_path: Path) -> None:
    run_harm(tmp_path, 1000, 2000)
