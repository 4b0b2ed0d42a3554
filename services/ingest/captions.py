"""Captions: which clip a caption file belongs to, and what it says."""

import codecs
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.ingest.directory import Entry
from services.ingest.names import Kind

_BREAKS = re.compile(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+\s*")
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f\ufeff]")
_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class NotText(Exception):
    """The bytes are in no known text encoding."""


@dataclass(frozen=True)
class Pairing:
    """Which caption file a clip has: by path, never by position."""

    # Path of a clip to its caption file.
    captions: Mapping[str, Entry]
    # Paths of caption files that were paired although not named as documented, with how.
    repaired: Mapping[str, str]


def pair(entries: Sequence[Entry]) -> Pairing:
    """Pair each clip with the caption of its stem in its folder, exactly spelled or else in another letter case;
    without one, with the caption named after the whole file name (name.mp4.txt)."""
    files = [entry for entry in entries if entry.kind is Kind.CAPTION]
    exact = {_stem(entry.path): entry for entry in files}
    folded: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in files:
        folded[_stem(entry.path).casefold()].append(entry)
    clips = [entry.path for entry in entries if entry.kind is Kind.VIDEO]
    captions = {path: exact[_stem(path)] for path in clips if _stem(path) in exact}
    taken = {entry.path for entry in captions.values()}
    repaired: dict[str, str] = {}
    for wanted, how in ((str, "named after the whole file name"), (_stem, "spelled in another letter case")):
        found: dict[str, Entry] = {}
        for path in clips:
            candidates = [entry for entry in folded[wanted(path).casefold()] if entry.path not in taken]
            if path not in captions and len(candidates) == 1:
                found[path] = candidates[0]
                repaired[candidates[0].path] = how
        captions |= found
        taken |= {entry.path for entry in found.values()}
    return Pairing(captions, repaired)


def decode_caption(data: bytes) -> tuple[str, str]:
    """The caption in one line, and how the encoding was repaired (empty when it was as documented). Raises NotText.

    UTF-8 with or without byte order mark, UTF-16 with one; failing that, what Windows editors write.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _one_line(_decode(data[len(mark) :], encoding)), ""
    if b"\0" in data:
        encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
        return _one_line(_decode(data, encoding)), "read as UTF-16 without a byte order mark"
    try:
        return _one_line(data.decode("utf-8")), ""
    except UnicodeDecodeError:
        return _one_line(_decode(data, "cp1252")), "read as Windows-1252, for it is not UTF-8"


def _decode(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        raise NotText(f"its bytes are not {encoding} text") from None


def _one_line(text: str) -> str:
    return _CONTROLS.sub("", _BREAKS.sub(" ", text)).strip()


def _stem(path: str) -> str:
    """The path without its extension."""
    return path[: path.rindex(".")]
