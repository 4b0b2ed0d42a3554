"""Whether a file ends where its container says that it ends: a download that broke off does not.

Demuxers read such a file up to its end without an error.
"""

from pathlib import Path

from ltxtrain_trainer.media.pieces import (
    CLUSTER,
    CUES,
    EBML,
    SEGMENT,
    Piece,
    Pieces,
    mapped,
    read_box,
    read_chunk,
    read_element,
)

# Recorders count the head of a RIFF list as part of it, or leave its padding out.
RIFF_SLACK = 16
BOXES = {b"ftyp", b"styp", b"sidx", b"moov", b"moof", b"mdat", b"mfra", b"meta", b"free", b"skip", b"wide", b"uuid"}
# In the flags of an AVI's main header: an index follows the frames.
AVI_HAS_INDEX = 0x10


def missing_bytes(path: Path) -> int:
    """Return how many bytes the file lacks at its end; 0 where it is whole, or does not tell.

    A length that claims too much is no proof: where the frames and the index behind them are there, nothing is missing.
    """
    with mapped(path) as data:
        if data[:4] == b"RIFF":
            end = _riff_end(Pieces(data, read_chunk)) - RIFF_SLACK
        elif data[:4] == EBML.to_bytes(4, "big"):
            end = _matroska_end(Pieces(data, read_element))
        else:
            end = _boxes_end(Pieces(data, read_box))
        return max(end - len(data), 0)


def has_fragments(path: Path) -> bool:
    """Whether an MP4 keeps the places of its frames in fragments (moof) instead of one index."""
    with mapped(path) as data:
        boxes = Pieces(data, read_box)
        return any(box.kind == b"moof" for box in boxes.within()) or boxes.exhausted


def _boxes_end(boxes: Pieces) -> int:
    """Return where the last box of an MP4 or MOV ends."""
    end = 0
    for box in boxes.within():
        if box.kind not in BOXES:
            break
        end = box.end
    return 0 if boxes.exhausted else end


def _riff_end(chunks: Pieces) -> int:
    """Return where the last RIFF list of an AVI ends; large files have several."""
    end = 0
    for riff in chunks.within():
        # A recorder that never finished leaves no length.
        if riff.kind != b"RIFF" or riff.end - riff.start in (0, 0xFFFFFFFF):
            break
        end = riff.next
        if end > len(chunks.data) and _avi_is_whole(chunks, riff):
            return 0
    return end


def _avi_is_whole(chunks: Pieces, riff: Piece) -> bool:
    """Whether the frames, and the index where one is announced, lie in the file although their list claims more."""
    size, frames_end, announced = len(chunks.data), 0, False
    for chunk in chunks.within(riff, skip=4):
        form = bytes(chunks.data[chunk.start : chunk.start + 4]) if chunk.kind == b"LIST" else b""
        if form == b"hdrl":
            header = next(chunks.within(chunk, skip=4), None)
            flags = chunks.body(header, 16)[12:] if header else b""
            announced = bool(int.from_bytes(flags, "little") & AVI_HAS_INDEX)
        elif form == b"movi":
            frames_end = chunk.end
            if chunk.end > size:
                return any(inner.kind == b"idx1" and inner.end <= size for inner in chunks.within(chunk, skip=4))
        elif chunk.kind == b"idx1" and frames_end:
            return chunk.end <= size
    return 0 < frames_end <= size and not announced


def _matroska_end(elements: Pieces) -> int:
    """Return where the segment of a Matroska file ends."""
    size = len(elements.data)
    segment = elements.find(None, SEGMENT)
    if segment is None or segment.end <= size:
        return 0
    end, kinds = 0, set()
    for element in elements.within(segment):
        end = element.end
        kinds.add(element.kind)
    # Finished by its muxer: the index is there, and the last element ends with the file.
    return 0 if end == size and {CLUSTER, CUES} <= kinds else segment.end
