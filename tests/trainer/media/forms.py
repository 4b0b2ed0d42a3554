"""Files as other muxers, faulty sources and broken transfers leave them, made of whole ones by packets and by boxes."""

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import av
from av.packet import Packet

from ltxtrain_trainer.media.pieces import CLUSTER, SEGMENT, Bytes, Piece, Pieces, read_box, read_element

CLUSTER_TIME, SIMPLE_BLOCK, VOID = 0xE7, 0xA3, 0xEC

# Stream, number among the packets of its stream, packet; returns the bytes to write, None to leave the packet out.
Edit = Callable[[Any, int, "Packet[Any]"], bytes | None]
# Stream, number, presentation and decoding time in ticks.
Stamps = Callable[[Any, int, int, int], tuple[int, int]]


def remux(
    source: Path, target: Path, *, edit: Edit | None = None, stamps: Stamps | None = None, **options: str
) -> Path:
    """Copy the packets of a file in their order."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        streams = {stream.index: made.add_stream_from_template(stream) for stream in given.streams}
        counts = dict.fromkeys(streams, 0)
        for packet in given.demux():
            if not packet.size or packet.dts is None:
                continue
            stream, number = packet.stream, counts[packet.stream_index]
            counts[packet.stream_index] += 1
            data = bytes(packet) if edit is None else edit(stream, number, packet)
            if data is None:
                continue
            copy: Packet[Any] = Packet(data)
            copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
            if stamps is not None:
                copy.pts, copy.dts = stamps(stream, number, packet.pts or 0, packet.dts)
            copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
            copy.stream = streams[packet.stream_index]
            made.mux(copy)
    return target


def of_video(change: Callable[[int, bytes], bytes | None]) -> Edit:
    """An edit of the packets of the picture alone."""

    def edit(stream: Any, number: int, packet: "Packet[Any]") -> bytes | None:
        return change(number, bytes(packet)) if stream.type == "video" else bytes(packet)

    return edit


def zeros_in(target: int) -> Edit:
    """Two thirds of one frame are zeros, as after a transfer that lost a part."""
    return of_video(lambda number, data: data[: len(data) // 3].ljust(len(data), b"\0") if number == target else data)


def half_of(target: int) -> Edit:
    """One frame ends in its middle."""
    return of_video(lambda number, data: data[: len(data) // 2] if number == target else data)


def from_packet(first: int) -> Edit:
    """A cut without re-encoding: pictures from one packet on, sound from the beginning."""
    return of_video(lambda number, data: data if number >= first else None)


def box(kind: bytes, *bodies: bytes) -> bytes:
    body = b"".join(bodies)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def edit_box(data: bytes, path: Iterable[bytes], change: Callable[[bytes], bytes], *, skip: int = 0) -> bytes:
    """Rewrite the body of the first box at the end of a path; skip: of its parent's body, before the first child.

    The index of the file lies behind its frames, so that these stay where they are.
    """
    kind, *rest = path
    place, result, done = skip, data[:skip], False
    while place < len(data):
        piece = read_box(data, place, len(data))
        assert piece is not None
        body = data[piece.start : piece.end]
        if piece.kind == kind and not done:
            done = True
            inner = {b"stsd": 8}.get(kind, 78 if rest and kind not in CONTAINERS else 0)
            body = edit_box(body, rest, change, skip=inner) if rest else change(body)
        result += box(bytes(data[place + 4 : place + 8]), body) if piece.start - place == 8 else data[place : piece.end]
        place = piece.next
    assert done, kind
    return result


CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"stsd"}
VIDEO_ENTRY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")


def add_to_entry(path: Path, added: bytes) -> Path:
    """Put boxes into the sample entry of an MP4's or MOV's first track, which is the picture."""

    def change(body: bytes) -> bytes:
        entry = read_box(body, 8, len(body))
        assert entry is not None
        return body[:8] + box(bytes(body[12:16]), body[entry.start : entry.end], added) + body[entry.end :]

    path.write_bytes(edit_box(path.read_bytes(), VIDEO_ENTRY, change))
    return path


def with_channel_order(path: Path, labels: Iterable[int]) -> Path:
    """Describe the channels of a MOV's sound one by one (Core Audio's labels) instead of by the name of a layout."""
    rows = b"".join(struct.pack(">II3f", label, 0, 0, 0, 0) for label in labels)
    described = box(b"chan", bytes(12), struct.pack(">I", len(rows) // 20), rows)

    def change(body: bytes) -> bytes:
        place = body.index(b"chan") - 4
        length = int.from_bytes(body[place : place + 4], "big")
        grown = int.from_bytes(body[8:12], "big") + len(described) - length
        return body[:8] + struct.pack(">I", grown) + body[12:place] + described + body[place + length :]

    def second_track(movie: bytes) -> bytes:
        first = movie.index(b"trak")
        place = movie.index(b"trak", first + 4) - 4
        path = (b"trak", b"mdia", b"minf", b"stbl", b"stsd")
        return movie[:place] + edit_box(movie[place:], path, change)

    path.write_bytes(edit_box(path.read_bytes(), (b"moov",), second_track))
    return path


def element(kind: int, body: bytes) -> bytes:
    """An EBML element with a length of eight bytes."""
    return kind.to_bytes((kind.bit_length() + 7) // 8, "big") + (len(body) | 1 << 56).to_bytes(8, "big") + body


def add_to_element(path: Path, parents: Iterable[int], added: bytes) -> Path:
    """Put elements at the end of a Matroska's first element at the end of a path of parents."""

    def rewritten(data: bytes, wanted: list[int]) -> bytes:
        result, place, done = b"", 0, False
        while place < len(data):
            piece = read_element(data, place, len(data))
            assert piece is not None
            body = data[piece.start : piece.end]
            if wanted and piece.kind == wanted[0] and not done:
                done = True
                body = rewritten(body, wanted[1:]) if wanted[1:] else body + added
            assert isinstance(piece.kind, int)
            result += element(piece.kind, body)
            place = piece.next
        assert done or not wanted
        return result

    path.write_bytes(rewritten(path.read_bytes(), list(parents)))
    return path


def first_of(data: Bytes, read: Callable[[Bytes, int, int], Piece | None], kind: bytes | int) -> Piece:
    """The first outermost piece of a kind."""
    place = 0
    while place < len(data):
        piece = read(data, place, len(data))
        assert piece is not None
        if piece.kind == kind:
            return piece
        place = piece.next
    raise AssertionError(kind)


def begin_anew(path: Path, *moments: float, only: int | None = None) -> Path:
    """Let the times of a Matroska, in milliseconds, begin at zero again at each moment.

    only: the number of the one track whose times do so.
    """

    def change(data: bytearray, place: int, start: int, time: int) -> None:
        back = max((round(moment * 1000) for moment in moments if time >= round(moment * 1000) - 5), default=0)
        if only is None or data[start] & 0x7F == only:
            struct.pack_into(">h", data, start + 1, struct.unpack_from(">h", data, start + 1)[0] - back)

    return _edit_blocks(path, change)


def lose_track(path: Path, number: int, begin: float, end: float) -> Path:
    """Turn the blocks of a Matroska's track within these seconds into padding."""

    def change(data: bytearray, place: int, start: int, time: int) -> None:
        if data[start] & 0x7F == number and begin <= time / 1000 < end:
            data[place] = VOID

    return _edit_blocks(path, change)


def move_track(path: Path, number: int, begin: float, seconds: float) -> Path:
    """Move the blocks of a Matroska's track from a moment on in time, not in the file."""

    def change(data: bytearray, place: int, start: int, time: int) -> None:
        if data[start] & 0x7F == number and time / 1000 >= begin:
            struct.pack_into(
                ">h", data, start + 1, struct.unpack_from(">h", data, start + 1)[0] + round(seconds * 1000)
            )

    return _edit_blocks(path, change)


def _edit_blocks(path: Path, change: Callable[[bytearray, int, int, int], None]) -> Path:
    """change: the file, where a simple block begins, where its contents begin (the track's number), and its time."""
    data = bytearray(path.read_bytes())
    pieces = Pieces(bytes(data), read_element)
    segment = pieces.find(None, SEGMENT)
    assert segment is not None
    for cluster in pieces.within(segment):
        stamp = pieces.find(cluster, CLUSTER_TIME) if cluster.kind == CLUSTER else None
        if stamp is None:
            continue
        place = cluster.start
        for block in pieces.within(cluster):
            if block.kind == SIMPLE_BLOCK:
                time = pieces.number(stamp) + struct.unpack_from(">h", data, block.start + 1)[0]
                change(data, place, block.start, time)
            place = block.next
    path.write_bytes(data)
    return path
