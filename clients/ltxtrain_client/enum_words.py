"""Enum values as people write them: "medium" for RESOLUTION_MEDIUM, "16:9" for ASPECT_RATIO_16_9.

Reasons stay in capitals, as in errors: "CLIP_TOO_SHORT".
"""

from google.protobuf.descriptor import EnumDescriptor, EnumValueDescriptor
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio
from ltxtrain.v1.work_pb2 import ReportReason

# Written as they are in the contract.
_CAPITALS = frozenset({ReportReason.DESCRIPTOR.full_name, ErrorReason.DESCRIPTOR.full_name})


def words(enum: EnumDescriptor) -> dict[str, int]:
    """Number of every value by its word; the unspecified value is left out."""
    return {_word(enum, value): value.number for value in enum.values if value.number != 0}


def word(enum: EnumDescriptor, number: int) -> str:
    """Word of a value; its number when this client is too old to know it."""
    value = enum.values_by_number.get(number)
    return str(number) if value is None else _word(enum, value)


def number(enum: EnumDescriptor, value: int | str) -> int:
    """Number of a value that is given as its number, its word or its name. Raises ValueError with the words."""
    if isinstance(value, int):
        return value
    if value in (known := words(enum)):
        return known[value]
    if (named := enum.values_by_name.get(value)) is not None:
        return int(named.number)
    raise ValueError(f"{value!r} is none of {', '.join(known)}")


def _word(enum: EnumDescriptor, value: EnumValueDescriptor) -> str:
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    text = value.name.removeprefix(prefix)
    if enum.full_name in _CAPITALS:
        return text
    text = text.lower()
    # The sheet writes shapes as 16:9, which no identifier can hold.
    return text.replace("_", ":") if enum.full_name == AspectRatio.DESCRIPTOR.full_name else text
