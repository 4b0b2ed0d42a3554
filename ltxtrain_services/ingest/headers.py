"""Response headers of hosts that nobody vouches for: one parser each, total and linear.

Whatever a host sends is a value or nothing; only a Content-Encoding that was not asked for is an error.
"""

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

CHUNK_BYTES = 1 << 20
# Characters of a header value that are looked at.
MAX_VALUE_CHARS = 256
_SECONDS = re.compile(r"[0-9]{1,9}")
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_STRONG_TAG = re.compile(r'"[\x21\x23-\x7e]{1,200}"')
_GZIP = b"\x1f\x8b"


class Unsupported(Exception):
    """A Content-Encoding that was not asked for."""


class Damaged(Exception):
    """Bytes that are not what their Content-Encoding says."""


@dataclass(frozen=True)
class ContentRange:
    """The bytes of a file that a response with status 206 holds: `first` to `last`, of `total` if known."""

    first: int
    last: int
    total: int | None


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float:
    """Seconds that the host asks to wait, given as seconds or as a date; 0 for none or what cannot be read."""
    text = _value(headers, "Retry-After")
    if _SECONDS.fullmatch(text):
        return float(text)
    when = _date(text)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds()) if when is not None else 0.0


def content_range(headers: Mapping[str, str]) -> ContentRange | None:
    """The range of a partial response; None for one that makes no sense."""
    found = _CONTENT_RANGE.fullmatch(_value(headers, "Content-Range"))
    if found is None:
        return None
    first, last, total = int(found[1]), int(found[2]), None if found[3] == "*" else int(found[3])
    return ContentRange(first, last, total) if first <= last and (total is None or last < total) else None


def validator(headers: Mapping[str, str]) -> str:
    """A value for If-Range: a strong ETag, or else the date of the last change; empty for neither."""
    tag, modified = _value(headers, "ETag"), _value(headers, "Last-Modified")
    if _STRONG_TAG.fullmatch(tag):
        return tag
    return modified if modified.isascii() and modified.isprintable() and _date(modified) is not None else ""


class Decoder:
    """Undoes a Content-Encoding in bounded pieces; `name` is empty for none. Raises Unsupported.

    Gzip may have several members one after another; whatever else follows the encoded data is not read.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.name = _value(headers, "Content-Encoding").lower()
        if self.name == "identity":
            self.name = ""
        if self.name not in ("", "gzip", "x-gzip", "deflate"):
            raise Unsupported(f"it is sent with the content encoding {self.name[:40]!r}, which was not asked for.")
        self._inflater = _inflater()
        self._begun = False
        # Bytes behind a member, until they are enough to tell whether another one begins.
        self._behind = b""

    @property
    def finished(self) -> bool:
        """Whether the encoded data have ended and something else follows them."""
        return bool(self._behind) and not _GZIP.startswith(self._behind[: len(_GZIP)])

    @property
    def whole(self) -> bool:
        """Whether the data are whole if no more bytes come."""
        return not self.name or self._inflater.eof

    def decode(self, chunk: bytes) -> Iterator[bytes]:
        """The decoded bytes of one chunk. Raises Damaged."""
        if not self._begun and self.name and chunk.startswith(b"PK"):
            self.name = ""  # labelled as encoded although it is not
        self._begun = True
        if not self.name:
            yield chunk
            return
        while chunk:
            if self._inflater.eof:
                self._behind += chunk
                if not self._behind.startswith(_GZIP):
                    return
                chunk, self._behind = self._behind, b""
                self._inflater = _inflater()
            try:
                data = self._inflater.decompress(chunk, CHUNK_BYTES)
            except zlib.error:
                raise Damaged(f"the {self.name} data are damaged") from None
            chunk = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail
            if data:
                yield data


def _inflater() -> "zlib._Decompress":
    return zlib.decompressobj(wbits=47)  # the data's own header tells gzip from zlib


def _value(headers: Mapping[str, str], name: str) -> str:
    return headers.get(name, "")[:MAX_VALUE_CHARS].strip()


def _date(text: str) -> datetime | None:
    """An HTTP date; None for what is none."""
    try:
        when = parsedate_to_datetime(text)
        return when if when.tzinfo is not None else when.replace(tzinfo=UTC)
    except (TypeError, ValueError, IndexError, OverflowError):
        return None
