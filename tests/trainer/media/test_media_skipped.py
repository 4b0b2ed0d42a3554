"""Frames that a demuxer leaves out after bad bytes are damage; clips whose times are uneven by themselves are whole."""

import re
from collections.abc import Callable
from pathlib import Path

import av
import pytest

from ltxtrain_trainer.errors import ClipDamaged
from ltxtrain_trainer.media.pieces import CLUSTER, SEGMENT, Pieces, read_box, read_chunk, read_element
from ltxtrain_trainer.media.probe import probe
from tests import cards
from tests.clips import Sound, Video, numbered, tones, write_clip
from tests.trainer.media.forms import SIMPLE_BLOCK, box
from tests.trainer.media.test_media_damage import fit

COUNT = 48
GROUPS = {"g": "8", "bf": "0"}
# Clusters and fragments of a third of a second.
FRAGMENTS = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
OPTIONS = {"mkv": {"cluster_time_limit": "300"}, "mp4": FRAGMENTS, "avi": {}}
# Changes the bytes of a file, and returns the first that it changed.
Harm = Callable[[bytearray], int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("skipped")
    sound = Sound(waves=tones(2), codec="pcm_s16le", sample_format="s16")
    for container, options in OPTIONS.items():
        heard = None if container == "mp4" else sound
        video = Video(codec="mpeg4", options=GROUPS)
        write_clip(folder / f"clip.{container}", numbered(COUNT), video, heard, **options)
    reordered = Video(codec="libx264", options={"g": "8", "bf": "2", "sc_threshold": "0"})
    write_clip(folder / "reordered.mkv", numbered(COUNT), reordered, sound, **OPTIONS["mkv"])
    return folder


def cluster(data: bytes, number: int) -> tuple[int, int, list[int]]:
    """Where the head of a cluster, its contents, and its blocks' heads begin."""
    pieces = Pieces(data, read_element)
    segment = pieces.find(None, SEGMENT)
    assert segment is not None
    found = [piece for piece in pieces.within(segment) if piece.kind == CLUSTER][number]
    blocks, place = [], found.start
    for piece in pieces.within(found):
        blocks += [place] if piece.kind == SIMPLE_BLOCK else []
        place = piece.next
    return data.rindex(CLUSTER.to_bytes(4, "big"), 0, found.start), found.start, blocks


def break_cluster(data: bytearray) -> int:
    head, start, _ = cluster(bytes(data), 3)
    data[head:start] = b"\xff" * (start - head)
    return head


def break_block(data: bytearray) -> int:
    _, _, blocks = cluster(bytes(data), 3)
    data[blocks[0] : blocks[0] + 4] = bytes(4)
    return blocks[0]


def cut_clusters_apart(data: bytearray) -> int:
    """From the middle of one cluster to the middle of the next but one, as a disk loses sectors."""
    first, last = cluster(bytes(data), 2)[2], cluster(bytes(data), 4)[2]
    del data[first[-1] : last[1] + 5]
    return first[-1]


def fragment(data: bytes, number: int) -> tuple[int, int]:
    """Where the contents of a fragment's moof begin and end."""
    found = [piece for piece in Pieces(data, read_box).within() if piece.kind == b"moof"][number]
    return found.start, found.end


def break_name(data: bytearray) -> int:
    start, _ = fragment(bytes(data), 3)
    data[start - 4 : start] = bytes(4)
    return start


def break_head(data: bytearray) -> int:
    start, _ = fragment(bytes(data), 3)
    data[start - 8 : start] = bytes(8)
    return start


def break_fragment(data: bytearray) -> int:
    start, end = fragment(bytes(data), 3)
    data[start:end] = bytes(end - start)
    return start


def break_chunks(data: bytearray) -> int:
    """Zeros over some frames, not over the index that lists them."""
    pieces = Pieces(bytes(data), read_chunk)
    riff = pieces.find(None, b"RIFF")
    movi = next(piece for piece in pieces.within(riff, skip=4) if pieces.body(piece, 4) == b"movi")
    frames = [piece for piece in pieces.within(movi, skip=4) if piece.kind == b"00dc"]
    begin, end = frames[24].start - 8, frames[27].start + 20
    data[begin:end] = bytes(end - begin)
    return begin


def frames_before(path: Path, byte: int) -> int:
    """How many frames are shown one after another that lie in front of a byte."""
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
    order = sorted(packets, key=lambda packet: packet.pts if packet.pts is not None else packet.pos or 0)
    return next(index for index, packet in enumerate(order) if (packet.pos or 0) >= byte)


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("clip.mkv", break_cluster),
        ("clip.mkv", break_block),
        ("clip.mkv", cut_clusters_apart),
        ("reordered.mkv", break_cluster),
        ("reordered.mkv", cut_clusters_apart),
        ("clip.mp4", break_name),
        ("clip.mp4", break_head),
        ("clip.mp4", break_fragment),
        ("clip.avi", break_chunks),
    ],
)
def test_frames_that_were_left_out_are_damage(folder: Path, tmp_path: Path, name: str, harm: Harm) -> None:
    data = bytearray((folder / name).read_bytes())
    whole = frames_before(folder / name, harm(data))
    path = tmp_path / name
    path.write_bytes(data)
    found = probe(path)
    assert found.damage is not None and not found.cut_off
    told = re.search(r"damaged \(.+\): frame (\d+) \(([\d.]+) s\) and what follows", found.damage)
    kept = found.frame_count
    # A decoder that lacks frames gives those out too late that it held back.
    assert 9 < whole - (2 if name.startswith("reordered") else 0) <= kept <= whole < COUNT - 9
    assert told is not None and int(told[1]) == kept
    assert float(told[2]) == pytest.approx(kept / 24, abs=2e-3)
    assert [cards.number(picture) for picture in fit(path, kept, found).frames] == list(range(kept))
    for known in (None, found):
        with pytest.raises(ClipDamaged, match=rf"frame {kept} .*{kept} frames, {COUNT} needed"):
            fit(path, COUNT, known)


@pytest.mark.parametrize("name", ["clip.mkv", "reordered.mkv", "clip.mp4", "clip.avi"])
def test_whole_clips_lack_nothing(folder: Path, name: str) -> None:
    found = probe(folder / name)
    assert (found.frame_count, found.damage) == (COUNT, None)


def add_bytes(data: bytearray) -> int:
    """Between two clusters; no frame is lost."""
    head, _, _ = cluster(bytes(data), 3)
    data[head:head] = bytes(300)
    return head


def add_private_boxes(data: bytearray) -> int:
    for number in (4, 2):
        start, _ = fragment(bytes(data), number)
        data[start - 8 : start - 8] = box(b"prvt", bytes(100))
    return start - 8


@pytest.mark.parametrize(("container", "change"), [("mkv", add_bytes), ("mp4", add_private_boxes)])
def test_bytes_between_frames_that_are_all_there_are_no_damage(
    folder: Path, tmp_path: Path, container: str, change: Harm
) -> None:
    data = bytearray((folder / f"clip.{container}").read_bytes())
    change(data)
    path = tmp_path / f"clip.{container}"
    path.write_bytes(data)
    found = probe(path)
    assert (found.frame_count, found.damage) == (COUNT, None)


@pytest.mark.parametrize("reordered", [False, True])
@pytest.mark.parametrize("container", ["mkv", "mp4"])
def test_uneven_times_are_no_damage(tmp_path: Path, container: str, reordered: bool) -> None:
    """Recordings of a screen, with pauses of up to two seconds, within and between clusters and fragments."""
    times = [index / 24 + (index // 5) * 0.4 + (index // 20) * 1.7 for index in range(COUNT)]
    options = {"g": "8", "bf": "2"} if reordered else GROUPS
    video = Video(options=options, times=times)
    sound = Sound(waves=tones(2), codec="pcm_s16le", sample_format="s16") if container == "mkv" else None
    path = write_clip(tmp_path / f"clip.{container}", numbered(COUNT), video, sound, **OPTIONS[container])
    if container == "mp4":
        data = bytearray(path.read_bytes())
        add_private_boxes(data)
        path.write_bytes(data)
    found = probe(path)
    assert (found.frame_count, found.variable_frame_rate, found.damage) == (COUNT, True, None)
    assert [cards.number(picture) for picture in fit(path, COUNT, found).frames] == list(range(COUNT))


def test_bad_bytes_before_a_pause_are_not_taken_for_it(tmp_path: Path) -> None:
    """Nothing is lost where they are, and the pause comes later."""
    times = [index / 24 + (2 if index >= 40 else 0) for index in range(COUNT)]
    video = Video(options=GROUPS, times=times)
    path = write_clip(tmp_path / "clip.mkv", numbered(COUNT), video, None, **OPTIONS["mkv"])
    data = bytearray(path.read_bytes())
    add_bytes(data)
    path.write_bytes(data)
    found = probe(path)
    assert (found.frame_count, found.variable_frame_rate, found.damage) == (COUNT, True, None)


def test_an_index_may_list_what_is_no_frame(folder: Path, tmp_path: Path) -> None:
    """Changes of the palette stand between frames, and in the index."""
    data = (folder / "clip.avi").read_bytes()
    pieces = Pieces(data, read_chunk)
    riff = pieces.find(None, b"RIFF")
    index = next(piece for piece in pieces.within(riff, skip=4) if piece.kind == b"idx1")
    rows = [data[place : place + 16] for place in range(index.start, index.end, 16)]
    # A frame becomes a change of the palette, in both places.
    number = [place for place, row in enumerate(rows) if row[:4] == b"00dc"][13]
    offset = int.from_bytes(rows[number][8:12], "little")
    changed = bytearray(data)
    movi = data.index(b"movi")
    changed[movi + offset : movi + offset + 4] = b"00pc"
    changed[index.start + number * 16 : index.start + number * 16 + 4] = b"00pc"
    path = tmp_path / "clip.avi"
    path.write_bytes(changed)
    assert probe(path).damage is None
