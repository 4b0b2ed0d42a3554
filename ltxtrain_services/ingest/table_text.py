"""Lines of a long text in bounded memory: its encoding is found in a first reading, its lines come in a second."""

import codecs
from collections.abc import Callable, Iterator
from itertools import chain

from ltxtrain_services.ingest.caption_text import BOMS, MAX_JSON_BYTES, NotText, encoding_of
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES

MAX_LINE_BYTES = MAX_JSON_BYTES
# First bytes by which UTF-16 without a byte order mark is told.
HEAD_BYTES = 4096

Pieces = Callable[[], Iterator[bytes]]


class LineUnreadable(Exception):
    """One line is too long, or not in the encoding of the others; the text says which."""


def text_lines(pieces: Pieces) -> tuple[Iterator[str | LineUnreadable], str]:
    """The lines, each with its end, and how the encoding was repaired (empty when it was as documented).

    Lines end as in Unix, Windows or old Macintosh files. `pieces` starts a new reading at each call. Raises NotText.
    """
    mark, encoding, repair = _encoding(pieces)
    if encoding.startswith(("utf-16", "utf-32")):
        return _decoded(_split(_recoded(pieces(), len(mark), encoding)), "utf-8", "strict"), repair
    errors = "ignore" if encoding == "utf-8" and repair else "strict"
    return _decoded(_split(_without(pieces(), len(mark))), encoding, errors), repair


def _encoding(pieces: Pieces) -> tuple[bytes, str, str]:
    """Byte order mark, encoding and its repair, by the rules of a single caption. Raises NotText."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    head, is_utf8 = b"", True
    for piece in chain(filter(None, pieces()), (b"",)):
        head += piece[: HEAD_BYTES - len(head)]
        if is_utf8:
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError:
                is_utf8 = False
    for mark, encoding in BOMS:
        if head.startswith(mark):
            return mark, encoding, ""
    if b"\0" in head:
        return b"", *encoding_of(head[: len(head) & ~1])
    return (b"", "utf-8", "") if is_utf8 else (b"", *encoding_of(_sample(pieces())))


def _sample(pieces: Iterator[bytes]) -> bytes:
    """Lines that tell the encoding, as many as a caption is long."""
    sample = bytearray()
    for line in _split(pieces):
        if isinstance(line, bytes) and not line.isascii():
            sample += line
            if len(sample) > MAX_TEXT_BYTES:
                break
    return bytes(sample)


def _without(pieces: Iterator[bytes], skipped: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[skipped:]
        skipped = max(skipped - len(piece), 0)


def _recoded(pieces: Iterator[bytes], skipped: int, encoding: str) -> Iterator[bytes]:
    """UTF-16 or UTF-32 as UTF-8. Raises NotText."""
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for piece in _without(pieces, skipped):
            yield decoder.decode(piece).encode()
    except UnicodeDecodeError:
        raise NotText(f"it begins as {encoding.upper()} and goes on as something else") from None


def _split(pieces: Iterator[bytes]) -> Iterator[bytes | LineUnreadable]:
    """Lines with their ends; of one that is too long its first bytes are kept, and no others."""
    kept, kept_bytes, held = list[bytes](), 0, False
    for piece in filter(None, pieces):
        if held and not piece.startswith(b"\n"):
            yield _joined(kept, kept_bytes)
            kept, kept_bytes = [], 0
        parts = piece.splitlines(keepends=True)
        # A carriage return at the end of a piece may be half of a line's end.
        held = parts[-1].endswith(b"\r")
        for index, part in enumerate(parts):
            kept_bytes += len(part)
            if kept_bytes <= MAX_LINE_BYTES:
                kept.append(part)
            if part.endswith((b"\n", b"\r")) and not (held and index == len(parts) - 1):
                yield _joined(kept, kept_bytes)
                kept, kept_bytes = [], 0
    if kept_bytes:
        yield _joined(kept, kept_bytes)


def _joined(parts: list[bytes], size: int) -> bytes | LineUnreadable:
    if size > MAX_LINE_BYTES:
        return LineUnreadable(f"it has {size} bytes; a row has {MAX_LINE_BYTES} at most")
    return b"".join(parts)


def _decoded(lines: Iterator[bytes | LineUnreadable], encoding: str, errors: str) -> Iterator[str | LineUnreadable]:
    for line in lines:
        if isinstance(line, LineUnreadable):
            yield line
            continue
        try:
            yield line.decode(encoding, errors)
        except UnicodeDecodeError:
            yield LineUnreadable("it is in another encoding than the rest")
