"""Statuses that fit into trailing metadata: peers may refuse what is above 8 KiB, and the whole error would be lost."""

from typing import Any
from urllib.parse import quote

from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2

# Peers take 8 KiB for certain; other trailers need some of it.
MAX_BYTES = 7 * 2**10
MAX_MESSAGE = 1_000
MAX_DESCRIPTION = 120
# Key of ErrorInfo.metadata: how many items of the lists were left out.
OMITTED = "omitted"


def fitted(status: status_pb2.Status) -> status_pb2.Status:
    """The status with its texts shortened and its lists cut from the end, as far as it must be to fit."""
    if _size(status) <= MAX_BYTES:
        return status
    made = status_pb2.Status(code=status.code, message=_short(status.message, MAX_MESSAGE), details=status.details)
    lists = {index: found for index, detail in enumerate(made.details) if (found := _listing(detail)) is not None}
    for listing in lists.values():
        for item in _items(listing):
            item.description = _short(item.description, MAX_DESCRIPTION)
    omitted = 0
    while True:
        for index, listing in lists.items():
            made.details[index].Pack(listing)
        if _size(made) <= MAX_BYTES:
            break
        longest = max((_items(listing) for listing in lists.values()), key=len, default=None)
        if not longest:
            del made.details[1:]
            break
        del longest[-1]
        omitted += 1
    if omitted:
        _tell_omitted(made, omitted)
    return made


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


def _tell_omitted(status: status_pb2.Status, count: int) -> None:
    info = error_details_pb2.ErrorInfo()
    if status.details[0].Unpack(info):
        info.metadata[OMITTED] = str(count)
        status.details[0].Pack(info)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
