"""Rules of the contract's fields: options of buf.validate, which clients in any language can check before they send.

The services read the limits of their own checks from there when they start, so that both say the same; reasons and
sentences stay their own. Tests compare them with the library protovalidate. A service does not run it: it would hold up
the event loop, half a second for a megabyte of a hundred thousand entries, and bring a second protobuf runtime.
"""

import re
from typing import Any, cast

from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message


def field_of(message: type[Message], name: str) -> FieldDescriptor:
    """The descriptor of a field. Raises KeyError for one that the contract does not have."""
    return cast(FieldDescriptor, message.DESCRIPTOR.fields_by_name[name])


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """All rules of a field; empty: it has none."""
    # The generated stub calls every extension a plain FieldDescriptor.
    extension: Any = validate_pb2.field
    return cast(validate_pb2.FieldRules, field.GetOptions().Extensions[extension])


def limits(message: type[Message], name: str) -> tuple[float, float, bool]:
    """Smallest and largest value, and whether the smallest itself is excluded; those of the type without a rule."""
    field = field_of(message, name)
    rules = rules_of(field)
    kind = rules.WhichOneof("type")
    if kind is None:
        wide = field.cpp_type == FieldDescriptor.CPPTYPE_INT64
        return (-(2**63), 2**63 - 1, False) if wide else (-(2**31), 2**31 - 1, False)
    numbers = getattr(rules, kind)
    least, most = numbers.WhichOneof("greater_than"), numbers.WhichOneof("less_than")
    return getattr(numbers, least), getattr(numbers, most), least == "gt"


def allowed(message: type[Message], name: str) -> tuple[int, ...]:
    """The few values that a whole number may have; empty: it has no such rule."""
    return tuple(getattr(rules_of(field_of(message, name)).int32, "in"))


def max_items(message: type[Message], name: str) -> int:
    """The most entries that a list or a map may have."""
    rules = rules_of(field_of(message, name))
    return rules.map.max_pairs if rules.HasField("map") else rules.repeated.max_items


def max_bytes(message: type[Message], name: str) -> int:
    """The most bytes that a text may have in UTF-8."""
    return rules_of(field_of(message, name)).string.max_bytes


class Line:
    """A text by its length in characters and its pattern."""

    def __init__(self, rules: validate_pb2.StringRules) -> None:
        self.max_characters = rules.max_len
        self._pattern = re.compile(rules.pattern)

    def fits(self, text: str) -> bool:
        return not (0 < self.max_characters < len(text)) and self._pattern.fullmatch(text) is not None


def line(message: type[Message], name: str) -> Line:
    return Line(rules_of(field_of(message, name)).string)


def labels(message: type[Message], name: str) -> tuple[Line, Line]:
    """Keys and values of a map of texts."""
    rules = rules_of(field_of(message, name)).map
    return Line(rules.keys.string), Line(getattr(rules, "values").string)  # noqa: B009
