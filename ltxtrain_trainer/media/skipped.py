"""Frames that a demuxer leaves out without an error: where bytes are bad it goes on at the next piece that it knows."""

from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from ltxtrain_trainer.media.container import path_of
from ltxtrain_trainer.media.pieces import (
    CLUSTER,
    CUES,
    EBML,
    MAX_PIECES,
    SEGMENT,
    TRACKS,
    Bytes,
    Reader,
    mapped,
    read_box,
    read_element,
)
from ltxtrain_trainer.media.truncation import has_fragments

SEEK_HEAD, INFO, TAGS, ATTACHMENTS, CHAPTERS = 0x114D9B74, 0x1549A966, 0x1254C367, 0x1941A469, 0x1043A770
TIMESTAMP, SILENT_TRACKS, POSITION, PREVIOUS_SIZE, ENCRYPTED_BLOCK = 0xE7, 0x5854, 0xA7, 0xAB, 0xAF
SIMPLE_BLOCK, BLOCK_GROUP, CRC, VOID = 0xA3, 0xA0, 0xBF, 0xEC
ELEMENTS = {
    EBML,
    SEGMENT,
    CLUSTER,
    CUES,
    TRACKS,
    SEEK_HEAD,
    INFO,
    TAGS,
    ATTACHMENTS,
    CHAPTERS,
    TIMESTAMP,
    SILENT_TRACKS,
}
ELEMENTS |= {POSITION, PREVIOUS_SIZE, ENCRYPTED_BLOCK, SIMPLE_BLOCK, BLOCK_GROUP, CRC, VOID}
# The head of a chunk: its name and its length.
CHUNK_HEAD_BYTES = 8
# Chunks of a stream that are no frames: another palette, a part of the index.
BESIDE_FRAMES = (b"pc", b"ix")
# Frames that a decoder holds back at most, by their order and by threads.
HELD_BACK = 256


@dataclass(frozen=True, kw_only=True)
class Form:
    """A container whose demuxer reads piece by piece, and looks for a mark where it finds none."""

    read: Reader
    is_name: Callable[[Any], bool]
    # Kinds whose contents follow their head, and kinds that hold frames.
    opened: frozenset[Any]
    frames: frozenset[Any]
    # The bytes that tell of a piece with frames, and how many bytes after its beginning they lie.
    mark: bytes
    mark_place: int
    # Whether the demuxer gives up at bytes that are no piece.
    gives_up: bool


MATROSKA = Form(
    read=read_element,
    is_name=ELEMENTS.__contains__,
    opened=frozenset({SEGMENT, CLUSTER}),
    frames=frozenset({SIMPLE_BLOCK, BLOCK_GROUP}),
    mark=CLUSTER.to_bytes(4, "big"),
    mark_place=0,
    gives_up=False,
)
FRAGMENTS = Form(
    read=read_box,
    is_name=bytes.isalnum,
    opened=frozenset({b"moof", b"traf"}),
    frames=frozenset({b"mdat"}),
    mark=b"moof",
    mark_place=4,
    gives_up=True,
)


class Chain:
    """The pieces of a file, one after another."""

    def __init__(self, form: Form) -> None:
        self.form = form
        # Where a piece begins, no later than the frame that was asked for last.
        self._place = 0
        self._left = MAX_PIECES

    def is_broken(self, data: Bytes, first: int, last: int | None) -> bool:
        """Whether pieces do not lead from the frame at byte `first` to that at byte `last`; asked in ascending order.

        last None: to the end of the file, where bytes that are no piece count only with frames behind them.
        """
        form, place, end = self.form, self._place, len(data) - 1 if last is None else last
        while place <= end and self._left > 0:
            self._left -= 1
            piece = form.read(data, place, len(data))
            if piece is None or not form.is_name(piece.kind):
                found = data.find(form.mark, place + 1 + form.mark_place)
                if found < 0:
                    return last is not None
                place = found - form.mark_place
                if place > first:
                    return True
            elif piece.kind in form.opened and piece.end > first:
                place = piece.start
            elif last is not None and piece.start <= last < piece.end:
                return piece.kind not in form.frames
            else:
                place = piece.next
            self._place = place if place <= first else self._place
        return False


def _chain_of(container: InputContainer, path: Path) -> Chain | None:
    """Return the chain of a file that is read piece by piece; others are read by their index."""
    if container.format.name.startswith("matroska"):
        return Chain(MATROSKA)
    is_mp4 = container.format.name.startswith("mov")
    return Chain(FRAGMENTS) if is_mp4 and has_fragments(path) else None


class Skipped:
    """Where frames of a video lie in their file, and whether some between them were left out."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._path = path_of(container)
        self._chain = _chain_of(container, self._path)
        # Time stamps and bytes of packets.
        self._places: deque[tuple[int, int]] = deque(maxlen=HELD_BACK)
        # Bytes at which an AVI's frames begin, as its index has them.
        self._index: list[int] = []
        self._last: int | None = None
        if container.format.name == "avi":
            self._index = sorted(entry.pos + CHUNK_HEAD_BYTES for entry in stream.index_entries if entry.size)

    def note(self, packet: "Packet[VideoStream]") -> int:
        """Remember a packet. Returns how many frames the index has between it and the one before."""
        if packet.pos is None:
            return 0
        if packet.pts is not None:
            self._places.append((packet.pts, packet.pos))
        before, self._last = self._last, packet.pos
        return self._left_out(before, packet.pos) if self._index and before is not None else 0

    def between(self, pts: int, next_pts: int) -> bool:
        """Whether bytes were passed over between the frames of these times, which follow each other."""
        before = [place for stamp, place in self._places if stamp <= pts]
        after = [place for stamp, place in self._places if stamp == next_pts]
        return bool(before and after) and self._is_broken(max(before), after[0])

    def at_end(self) -> bool:
        """Whether there are frames behind the last one that was read."""
        gives_up = self._chain is not None and self._chain.form.gives_up
        return gives_up and self._last is not None and self._is_broken(self._last, None)

    def _is_broken(self, first: int, last: int | None) -> bool:
        if self._chain is None:
            return False
        with mapped(self._path) as data:
            return self._chain.is_broken(data, first, last)

    def _left_out(self, before: int, place: int) -> int:
        first, last = bisect_right(self._index, before), bisect_right(self._index, place)
        # An index that has not both of them is of another file, or counts its bytes from elsewhere.
        if last - first < 2 or self._index[first - 1] != before or self._index[last - 1] != place:
            return 0
        with mapped(self._path) as data:
            heads = [bytes(data[entry - CHUNK_HEAD_BYTES : entry]) for entry in self._index[first : last - 1]]
        return sum(head[2:4] not in BESIDE_FRAMES and head[:2] not in BESIDE_FRAMES for head in heads)
