"""Caption texts: their encoding, the field of a JSON file that holds one, and markup that none is."""

import codecs
import json
import re

from ltxtrain_services.ingest.legacy_text import decode_legacy
from ltxtrain_services.ingest.sniff import HEAD_BYTES, is_web_page
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES

# Halves of surrogate pairs come from escapes in JSON.
_CONTROLS = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ufeff\ud800-\udfff]")
# Tags that a caption in HTML begins with.
_TAG = re.compile(
    r"\s*<(p|div|span|font|br|hr|b|i|u|em|strong|pre|table|ul|ol|li|h[1-6]|a|meta|title|style|center)\b[^<>]{0,300}>",
    re.IGNORECASE,
)
BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# Letters of ASCII, which escapes make Japanese: mail and older programs write it.
ESCAPED = "iso2022_jp_2"
# Bytes of a character that is cut off, at most.
_CUT_BYTES = 3
CUT = "its last character was cut off"
# A caption in JSON may be twice as long as it is, for the characters that it escapes.
MAX_JSON_BYTES = 2 * MAX_TEXT_BYTES
# The first that a JSON file or a row has is its caption.
JSON_FIELDS = ("caption", "text")


class NotText(Exception):
    """The bytes are no plain text, or in no encoding that can be told; the text says which."""


class NoCaption(Exception):
    """A JSON file has no caption; it may be about something else."""


def decode_caption(data: bytes) -> tuple[str, str]:
    """The caption in one line, and how its encoding was repaired (empty when it was as documented). Raises NotText.

    UTF-8 with or without byte order mark, UTF-16 with one; failing that, whatever editors of another time wrote, as
    far as the bytes leave no doubt. Takes time in proportion to the bytes: some milliseconds for the longest caption.
    """
    _, text, repair = _decode(data)
    return plain_caption(text), repair


def decode_json_caption(data: bytes) -> tuple[str, str]:
    """Like decode_caption, of a JSON object with the caption in a field. Raises NotText and NoCaption."""
    _, text, repair = _decode(data)
    value = parse_json(text)
    if not isinstance(value, dict):
        raise NotText(f"{json_kind(value)}, not an object with a caption")
    for field in JSON_FIELDS:
        if (found := value.get(field)) is not None:
            if not isinstance(found, str):
                raise NotText(f"its {field} is {json_kind(found)}, not text")
            return plain_caption(found), repair
    raise NoCaption("JSON without a caption")


def plain_caption(text: str) -> str:
    """A caption in one line. Raises NotText for markup."""
    if text.lstrip().startswith("{\\rtf"):
        raise NotText("rich text (RTF), which is not read; save it as plain text")
    if is_web_page(text.lstrip()[:HEAD_BYTES].encode("utf-8", "replace")) or _TAG.match(text):
        raise NotText("HTML, which is not read; save it as plain text")
    return _one_line(text)


def encoding_of(data: bytes) -> tuple[str, str]:
    """The encoding of text without a byte order mark, and how it differs from the documented one. Raises NotText."""
    encoding, _, repair = _decode(data)
    return encoding, repair


def parse_json(text: str) -> object:
    """The value of a JSON text. Raises NotText, also for one that is nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise NotText("not JSON") from None


def json_kind(value: object) -> str:
    """A JSON value's type, for people."""
    if isinstance(value, bool):
        return "a boolean"
    kinds = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def _decode(data: bytes) -> tuple[str, str, str]:
    """Encoding, text and repair."""
    for mark, encoding in BOMS:
        if data.startswith(mark):
            return encoding, *_unicode(data[len(mark) :], encoding)
    if b"\x1b$" in data:
        try:
            return ESCAPED, data.decode(ESCAPED), "read as ISO-2022-JP, for it is not UTF-8"
        except UnicodeDecodeError:
            raise NotText("its escapes say ISO-2022-JP, its bytes are something else") from None
    # Zeros at the end fill up a block and say nothing; many in between are the other halves of UTF-16.
    text = data.rstrip(b"\0")
    zeros = text.count(0)
    if 4 * zeros < max(len(text), 1) and (found := _utf8(text)) is not None:
        return "utf-8", *found
    if b"\0" in data and (wide := _utf16(data)) is not None:
        return wide
    if not zeros and (legacy := decode_legacy(text)) is not None:
        return legacy[2], legacy[0], f"read as {legacy[1]}, for it is not UTF-8"
    raise NotText("not plain text" if zeros else "its encoding cannot be told for sure; save it as UTF-8")


def _utf16(data: bytes) -> tuple[str, str, str] | None:
    """Encoding, text and repair of bytes that may be UTF-16 without a byte order mark; None when they are not."""
    encoding = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    try:
        text, cut = _unicode(data, encoding)
    except NotText:
        return None
    if not all(character.isprintable() or character.isspace() for character in text.rstrip("\0")):
        return None
    return encoding, text, "; ".join(filter(None, ("read as UTF-16 without a byte order mark", cut)))


def _utf8(data: bytes) -> tuple[str, str] | None:
    """The text of bytes that are UTF-8, also where the end or a few places are damaged; None for another encoding."""
    try:
        return data.decode("utf-8"), ""
    except UnicodeDecodeError as error:
        sound = data[: error.start]
    if not sound.isascii() and _is_cut(data[len(sound) :].rstrip()):
        return sound.decode("utf-8"), CUT
    # Text of other encodings holds a sequence of UTF-8 now and then, not many of them and hardly an error.
    text = data.decode("utf-8", "replace")
    errors = text.count("\ufffd")
    if sum(not character.isascii() for character in text) - errors >= 4 * errors:
        return text.replace("\ufffd", ""), f"without {errors} bytes that are not UTF-8"
    return None


def _is_cut(rest: bytes) -> bool:
    """Whether bytes are the beginning of a character of UTF-8, and not all of it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return not decoder.decode(rest) and len(rest) <= _CUT_BYTES
    except UnicodeDecodeError:
        return False


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
