"""Readers of foreign bytes: true words about files that do not open, and any bytes at all within bounds."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltxtrain_trainer.errors import ClipError, NoVideoTrack, Undecodable
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.container import open_clip, why_unreadable
from ltxtrain_trainer.media.decode import VideoReader
from ltxtrain_trainer.media.fit import fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.pieces import (
    CLUSTER,
    EBML,
    MAX_PIECES,
    SEGMENT,
    TRACKS,
    Bytes,
    Piece,
    Pieces,
    Reader,
    read_box,
    read_chunk,
    read_element,
)
from ltxtrain_trainer.media.presentation import TRACK_ENTRY, declared_by
from ltxtrain_trainer.media.probe import probe
from ltxtrain_trainer.media.truncation import missing_bytes
from tests import cards
from tests.clips import Sound, Video, numbered, tones, write_clip
from tests.trainer.media.forms import box, edit_box, element, first_of

SIZE = (128, 96)
UNTRUE = ("cut off", "no index", "never finished")


def clip(path: Path, **options: str) -> Path:
    """Twenty-four frames with sound; the index behind the frames."""
    avi = path.suffix == ".avi"
    sound = Sound(waves=tones(1), codec="pcm_s16le", sample_format="s16") if avi else Sound(waves=tones(1))
    return write_clip(path, numbered(24, size=SIZE), Video(codec="mpeg4", options={"g": "12"}), sound, **options)


def reason(path: Path) -> str:
    with pytest.raises(Undecodable) as raised:
        probe(path)
    return str(raised.value)


def numbers(path: Path) -> list[int]:
    plan = FitSettings(
        geometry=Geometry(width=64, height=64, frame_count=24, frame_rate=24),
        auto_scale=False,
        with_audio=False,
        normalize_audio=False,
        preserve_pitch=False,
    )
    return [cards.number(picture) for picture in fit_clip(path, plan).frames]


def claim_more(path: Path, place: int, more: int, *, big: bool) -> None:
    """Add to a length of four bytes."""
    data = bytearray(path.read_bytes())
    kind = ">I" if big else "<I"
    struct.pack_into(kind, data, place, struct.unpack_from(kind, data, place)[0] + more)
    path.write_bytes(data)


@pytest.mark.parametrize("more", [20, 4096, 1 << 20])
def test_a_riff_length_that_claims_too_much_is_no_damage(tmp_path: Path, more: int) -> None:
    path = clip(tmp_path / "clip.avi")
    claim_more(path, 4, more, big=False)
    found = probe(path)
    assert (found.frame_count, found.damage, found.cut_off) == (24, None, False)
    assert numbers(path) == list(range(24))


def test_a_list_of_frames_that_claims_too_much_is_no_damage(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.avi")
    claim_more(path, 4, 4096, big=False)
    claim_more(path, path.read_bytes().index(b"movi") - 4, 4096, big=False)
    assert missing_bytes(path) == 0
    assert (probe(path).frame_count, probe(path).damage) == (24, None)


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_box_that_claims_too_much_behind_a_whole_index_is_no_damage(tmp_path: Path, container: str) -> None:
    path = clip(tmp_path / f"clip.{container}", movflags="faststart")
    claim_more(path, first_of(path.read_bytes(), read_box, b"mdat").start - 8, 4096, big=True)
    found = probe(path)
    assert (found.frame_count, found.damage, found.cut_off) == (24, None, False)
    assert numbers(path) == list(range(24))


def test_a_segment_that_claims_too_much_behind_a_whole_index_is_no_damage(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mkv")
    data = bytearray(path.read_bytes())
    segment = first_of(bytes(data), read_element, SEGMENT)
    data[segment.start - 8 : segment.start] = (segment.end - segment.start + 4096 | 1 << 56).to_bytes(8, "big")
    path.write_bytes(data)
    found = probe(path)
    assert (found.frame_count, found.damage, found.cut_off) == (24, None, False)


@pytest.mark.parametrize("container", ["mp4", "mov", "avi", "mkv"])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_what_is_really_cut_off_is_called_so(tmp_path: Path, container: str, share: float) -> None:
    options = {"movflags": "faststart"} if container in ("mp4", "mov") else {}
    path = clip(tmp_path / f"clip.{container}", **options)
    data = path.read_bytes()
    path.write_bytes(data[: round(len(data) * share)])
    found = probe(path)
    assert found.cut_off and found.damage is not None
    assert "cut off" in found.damage and f"frame {found.frame_count} (" in found.damage


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_a_file_without_an_index_says_so_and_no_more(tmp_path: Path, container: str) -> None:
    data = clip(tmp_path / f"clip.{container}").read_bytes()
    moov = data.index(b"moov") - 4
    path = tmp_path / f"bare.{container}"
    path.write_bytes(data[:moov])
    assert reason(path) == "The file has no index (moov) of its frames."
    path.write_bytes(data[: moov // 2])
    assert (
        reason(path) == f"The file is cut off, {moov - moov // 2} bytes are missing at its end: it has no index (moov)."
    )


def test_an_index_that_cannot_be_read_is_told_in_the_words_of_ffmpeg(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    stsd = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz")
    path.write_bytes(edit_box(path.read_bytes(), stsd, lambda body: body[:8] + b"\xff" * 8))
    told = reason(path)
    assert told.startswith("The file cannot be opened: ") and not any(word in told for word in UNTRUE)


def test_tracks_that_are_not_there_do_not_hide_the_picture(tmp_path: Path) -> None:
    """Telemetry that was announced and never written: a track without a sample description, wherever it stands."""
    empty = box(b"stsd", bytes(8))
    tables = box(
        b"stbl", empty, *(box(kind, bytes(8)) for kind in (b"stts", b"stsc", b"stco")), box(b"stsz", bytes(12))
    )
    header = box(b"tkhd", bytes(12) + struct.pack(">I", 9) + bytes(68))
    handler = box(b"hdlr", bytes(8) + b"meta" + bytes(13))
    media = box(b"mdia", box(b"mdhd", bytes(12) + struct.pack(">I", 1000) + bytes(8)), handler, box(b"minf", tables))
    track = box(b"trak", header, media)
    for name, change in {
        "last.mp4": lambda body: body + track,
        "first.mp4": lambda body: body[:108] + track + body[108:],
        "twice.mov": lambda body: body[:108] + track + body[108:] + track,
    }.items():
        path = clip(tmp_path / name)
        path.write_bytes(edit_box(path.read_bytes(), (b"moov",), change))
        found = probe(path)
        assert (found.frame_count, found.damage) == (24, None)
        assert found.audio is not None
        assert numbers(path) == list(range(24))


def test_a_picture_without_a_sample_description_is_no_picture(tmp_path: Path) -> None:
    path = clip(tmp_path / "clip.mp4")
    stsd = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    path.write_bytes(edit_box(path.read_bytes(), stsd, lambda body: bytes(8)))
    with pytest.raises(NoVideoTrack):
        probe(path)


class Counted:
    """A reader that counts how often it is asked."""

    def __init__(self, read: Reader) -> None:
        self.read, self.calls = read, 0

    def __call__(self, data: Bytes, place: int, limit: int) -> Piece | None:
        self.calls += 1
        return self.read(data, place, limit)


NOTHING: dict[str, tuple[Reader, bytes, bytes]] = {
    "boxes": (read_box, box(b"ftyp", b"isom", bytes(4)), box(b"free")),
    "chunks": (read_chunk, b"", struct.pack("<4sI", b"JUNK", 0)),
    "elements": (read_element, b"", b"\xec\x80"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_millions_of_empty_pieces_cost_no_more_than_many(name: str) -> None:
    read, head, empty = NOTHING[name]
    counted = Counted(read)
    pieces = Pieces(head + empty * (4 * MAX_PIECES), counted)
    assert sum(1 for _ in pieces.within()) == MAX_PIECES == counted.calls
    assert pieces.exhausted and list(pieces.within()) == []


@pytest.mark.parametrize("container", ["mp4", "avi", "mkv"])
def test_a_clip_behind_empty_pieces_is_read_within_its_budget(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Counted] = []

    def counting(data: Bytes, read: Reader, **options: Any) -> Pieces:
        counted.append(Counted(read))
        return Pieces(data, counted[-1], **options)

    for module in ("truncation", "presentation", "container"):
        monkeypatch.setattr(f"ltxtrain_trainer.media.{module}.Pieces", counting)
    path = clip(tmp_path / f"clip.{container}")
    data = path.read_bytes()
    if container == "mp4":
        path.write_bytes(data[:32] + box(b"free") * 1_000_000 + data[32:])
    else:
        path.write_bytes(data + (b"\xec\x80" if container == "mkv" else struct.pack("<4sI", b"JUNK", 0)) * 500_000)
    assert missing_bytes(path) == 0
    for read in (why, declared):
        read(path)
    assert max(one.calls for one in counted) <= MAX_PIECES + 1


def why(path: Path) -> None:
    assert why_unreadable(path, ValueError("x"))


def declared(path: Path) -> None:
    try:
        with open_clip(path) as container:
            declared_by(path, VideoReader(container).stream)
    except ClipError:
        pass


def pieces_from(head: bytes, names: list[bytes], frame: Callable[[bytes, bytes], bytes]) -> st.SearchStrategy[bytes]:
    """Pieces inside pieces, some of them cut short or with bytes turned."""
    leaf = st.tuples(st.sampled_from(names), st.binary(max_size=40)).map(lambda pair: frame(*pair))
    nested = st.recursive(
        leaf,
        lambda inner: st.tuples(st.sampled_from(names), st.lists(inner, max_size=4).map(b"".join)).map(
            lambda pair: frame(*pair)
        ),
        max_leaves=12,
    )
    whole = st.lists(nested, max_size=5).map(lambda parts: head + b"".join(parts))
    harmed = st.tuples(whole, st.integers(0, 400), st.integers(0, 255)).map(
        lambda given: given[0][: given[1]] + bytes([given[2]]) + given[0][given[1] + 1 :]
    )
    return st.one_of(whole, harmed, st.tuples(whole, st.integers(0, 400)).map(lambda given: given[0][: given[1]]))


BOX_NAMES = [b"ftyp", b"moov", b"mvhd", b"trak", b"tkhd", b"mdia", b"minf", b"stbl", b"stsd", b"mdat", b"moof", b"clap"]
ELEMENTS = [EBML, SEGMENT, TRACKS, TRACK_ENTRY, CLUSTER, 0x83, 0xE0, 0x41E4, 0x41E7, 0x41ED, 0x7670, 0x7675]
FOREIGN = st.one_of(
    st.binary(max_size=400),
    pieces_from(box(b"ftyp", b"isom", bytes(4)), BOX_NAMES, lambda name, body: box(name, body)),
    pieces_from(
        b"RIFF\x60\0\0\0AVI ",
        [b"LIST", b"RIFF", b"idx1", b"JUNK", b"00dc"],
        lambda name, body: name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2),
    ),
    pieces_from(
        element(EBML, b""),
        [kind.to_bytes((kind.bit_length() + 7) // 8, "big") for kind in ELEMENTS],
        lambda name, body: name + (len(body) | 1 << 56).to_bytes(8, "big") + body,
    ),
)


def every_piece(pieces: Pieces, parent: Piece | None = None) -> Iterator[Piece]:
    for piece in pieces.within(parent):
        yield piece
        yield from every_piece(pieces, piece)


@given(data=FOREIGN)
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("read", [read_box, read_chunk, read_element], ids=lambda read: read.__name__)
def test_any_bytes_are_pieces_or_none(read: Reader, data: bytes) -> None:
    pieces = Pieces(data, read, budget=2000)
    seen = 0
    for piece in every_piece(pieces):
        seen += 1
        assert 0 <= piece.start <= piece.end <= piece.next
        assert len(pieces.body(piece, 16)) <= 16
        assert pieces.number(piece) >= 0
    assert seen <= 2000


@given(data=FOREIGN)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_a_clip_or_has_a_reason(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "foreign.mp4"
    path.write_bytes(data)
    assert missing_bytes(path) >= 0
    assert why_unreadable(path, ValueError("words"))
    try:
        probe(path)
    except ClipError as error:
        assert str(error)
