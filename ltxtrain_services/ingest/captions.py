"""Captions: which clip a caption file belongs to, and the text in it."""

import codecs
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.legacy_text import decode_legacy
from ltxtrain_services.ingest.names import Kind
from ltxtrain_services.ingest.sniff import HEAD_BYTES, is_web_page

_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff]")
# Tags that a caption in HTML begins with.
_TAG = re.compile(
    r"\s*<(p|div|span|font|br|hr|b|i|u|em|strong|pre|table|ul|ol|li|h[1-6]|a|meta|title|style|center)\b[^<>]{0,300}>",
    re.IGNORECASE,
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Bytes of a character that is cut off, at most.
_CUT_BYTES = 3
CUT = "its last character was cut off"


class NotText(Exception):
    """The bytes are no plain text, or in no encoding that can be told; the text says which."""


@dataclass(frozen=True)
class Pairing:
    """The caption file of each clip: by path, never by position."""

    # Path of a clip to its caption file.
    captions: Mapping[str, Entry]
    # Paths of caption files that were paired although not named as documented, with how.
    repaired: Mapping[str, str]


def pair(entries: Sequence[Entry]) -> Pairing:
    """Pair each clip with the caption of its stem in its folder, exactly spelled or else in another letter case;
    without one, with the caption named after the whole file name (name.mp4.txt)."""
    # In this order .txt comes after .TXT, and counts.
    files = sorted((entry for entry in entries if entry.kind is Kind.CAPTION), key=lambda entry: entry.path)
    exact = {_stem(entry.path): entry for entry in files}
    folded: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in files:
        folded[_stem(entry.path).casefold()].append(entry)
    clips = [entry.path for entry in entries if entry.kind is Kind.VIDEO]
    captions = {path: exact[_stem(path)] for path in clips if _stem(path) in exact}
    taken = {entry.path for entry in captions.values()}
    repaired: dict[str, str] = {}
    for stem_of, how in ((str, "named after the whole file name"), (_stem, "spelled in another letter case")):
        found = _alone(clips, captions, folded, taken, stem_of)
        repaired |= dict.fromkeys((entry.path for entry in found.values()), how)
        captions |= found
        taken |= {entry.path for entry in found.values()}
    return Pairing(captions, repaired)


def _alone(
    clips: Sequence[str],
    captions: Mapping[str, Entry],
    folded: Mapping[str, Sequence[Entry]],
    taken: set[str],
    stem_of: Callable[[str], str],
) -> dict[str, Entry]:
    """Clips without a caption, each with the one caption that is left for it in any letter case."""
    # Each group is looked through once: a thousand clips may share one.
    left: dict[str, Entry | None] = {}
    found: dict[str, Entry] = {}
    for path in clips:
        if path in captions:
            continue
        stem = stem_of(path).casefold()
        if stem not in left:
            candidates = [entry for entry in folded.get(stem, ()) if entry.path not in taken]
            left[stem] = candidates[0] if len(candidates) == 1 else None
        if (caption := left[stem]) is not None:
            found[path] = caption
    return found


def decode_caption(data: bytes) -> tuple[str, str]:
    """The caption in one line, and how its encoding was repaired (empty when it was as documented). Raises NotText.

    UTF-8 with or without byte order mark, UTF-16 with one; failing that, whatever editors of another time wrote, as
    far as the bytes leave no doubt. Takes time in proportion to the bytes: some milliseconds for the longest caption.
    """
    text, repair = _decode(data)
    if text.lstrip().startswith("{\\rtf"):
        raise NotText("rich text (RTF), which is not read; save it as plain text")
    if is_web_page(text.lstrip()[:HEAD_BYTES].encode("utf-8", "replace")) or _TAG.match(text):
        raise NotText("HTML, which is not read; save it as plain text")
    return _one_line(text), repair


def _decode(data: bytes) -> tuple[str, str]:
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _unicode(data[len(mark) :], encoding)
    # Zeros at the end fill up a block and say nothing; many in between are the other halves of UTF-16.
    text = data.rstrip(b"\0")
    zeros = text.count(0)
    if 4 * zeros < max(len(text), 1) and (found := _utf8(text)) is not None:
        return found
    if b"\0" in data and (found := _utf16(data)) is not None:
        return found
    if not zeros and (legacy := decode_legacy(text)) is not None:
        return legacy[0], f"read as {legacy[1]}, for it is not UTF-8"
    raise NotText("not plain text" if zeros else "its encoding cannot be told for sure; save it as UTF-8")


def _utf16(data: bytes) -> tuple[str, str] | None:
    """The text of bytes that may be UTF-16 without a byte order mark; None when they are not."""
    encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    try:
        text, cut = _unicode(data, encoding)
    except NotText:
        return None
    if not all(character.isprintable() or character.isspace() for character in text.rstrip("\0")):
        return None
    return text, "; ".join(filter(None, ("read as UTF-16 without a byte order mark", cut)))


def _utf8(data: bytes) -> tuple[str, str] | None:
    """The text of bytes that are UTF-8, also where the end or a few places are damaged; None for another encoding."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        sound = data[: error.start]
    if not sound.isascii() and len(sound) + _CUT_BYTES >= len(data.rstrip()):
        return sound.decode("utf-8"), CUT
    # Text of other encodings holds a sequence of UTF-8 now and then, not many of them and hardly an error.
    text = data.decode("utf-8", "replace")
    errors = text.count("\ufffd")
    if sum(not character.isascii() for character in text) - errors >= 4 * errors:
        return text.replace("\ufffd", ""), f"without {errors} bytes that are not UTF-8"
    return None


def _unicode(data: bytes, encoding: str) -> tuple[str, str]:
    """Text whose mark names its encoding, without a character that is cut off at the end. Raises NotText."""
    try:
        return data.decode(encoding), ""
    except UnicodeDecodeError as error:
        if error.start + _CUT_BYTES < len(data):
            raise NotText(f"its byte order mark says {encoding.upper()}, its bytes are something else") from None
        return data[: error.start].decode(encoding), CUT


def _one_line(text: str) -> str:
    lines = (_CONTROLS.sub("", line).strip() for line in text.splitlines())
    return " ".join(line for line in lines if line)


def _stem(path: str) -> str:
    """The path without its extension."""
    return path[: path.rindex(".")]
