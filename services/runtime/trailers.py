"""Statuses that fit into trailing metadata: peers may refuse what is above 8 KiB, and the whole error would be lost."""

from typing import Any
from urllib.parse import quote

from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

# Peers take 8 KiB for certain; other trailers need some of it.
MAX_BYTES = 7 * 2**10
MAX_MESSAGE = 1_000
# Lengths of descriptions in lists, tried before anything is left out.
DESCRIPTIONS = (120, 60, 30)
# Key of ErrorInfo.metadata: how many items of the lists were left out.
OMITTED = "omitted"


def fitted(status: status_pb2.Status) -> status_pb2.Status:
    """The status with its texts shortened and its lists cut from the end, as far as it must be to fit."""
    if _size(status) <= MAX_BYTES:
        return status
    made = status_pb2.Status(code=status.code, message=_short(status.message, MAX_MESSAGE), details=status.details)
    for length in DESCRIPTIONS:
        for detail in made.details:
            if (listing := _listing(detail)) is not None:
                for item in _items(listing):
                    item.description = _short(item.description, length)
                detail.Pack(listing)
        if _size(made) <= MAX_BYTES:
            return made
    return _cut(made)


def _cut(status: status_pb2.Status) -> status_pb2.Status:
    lists = {index: found for index, detail in enumerate(status.details) if (found := _listing(detail)) is not None}
    omitted = 0
    while _size(status) > MAX_BYTES:
        longest = max(lists.items(), key=lambda item: len(_items(item[1])), default=None)
        if longest is None or not _items(longest[1]):
            return _bare(status)
        index, listing = longest
        del _items(listing)[-1]
        status.details[index].Pack(listing)
        omitted += 1
    info = error_details_pb2.ErrorInfo()
    if omitted and status.details[0].Unpack(info):
        info.metadata[OMITTED] = str(omitted)
        status.details[0].Pack(info)
    return status


def _bare(status: status_pb2.Status) -> status_pb2.Status:
    """Code, message and reason: what no error is too long for."""
    info = error_details_pb2.ErrorInfo()
    del status.details[1:]
    if status.details and status.details[0].Unpack(info):
        info.metadata.clear()
        status.details[0].Pack(info)
    return status


def _size(status: status_pb2.Status) -> int:
    """Bytes in the trailers: the message percent-encoded, and the status, which holds it again, in base 64."""
    packed_bytes: int = status.ByteSize()
    return len(quote(status.message, safe=" ")) + (packed_bytes + 2) // 3 * 4


def _listing(detail: Packed) -> Any:
    for kind in (error_details_pb2.BadRequest, error_details_pb2.PreconditionFailure):
        message = kind()
        if detail.Unpack(message):
            return message
    return None


def _items(listing: Any) -> Any:
    return listing.violations if hasattr(listing, "violations") else listing.field_violations


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
