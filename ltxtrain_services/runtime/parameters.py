"""The parameters of a job, each as the rule that its field has in the contract and a default."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, Resolution
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip
from ltxtrain.v1.train_pb2 import Attention, BasePrecision, Optimizer, Schedule

from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES, excess
from ltxtrain_services.runtime.rules import allowed, field_of, limits


@dataclass(frozen=True, kw_only=True)
class Number:
    """A whole or real number within [minimum, maximum]; `above` excludes the minimum itself."""

    name: str
    default: float
    minimum: float
    maximum: float
    above: bool = False
    snapped: bool = False

    @property
    def rule(self) -> str:
        if self.above:
            return f"finite, above {self.minimum:g}, at most {self.maximum:g}"
        return f"Range: {self.minimum}..{self.maximum}."

    def check(self, value: float) -> tuple["ErrorReason", str] | None:
        low = self.minimum < value if self.above else self.minimum <= value
        if math.isfinite(value) and low and value <= self.maximum:
            return None
        return ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, f"{value} is out of range. {_sentence(self.rule)}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One of a few numbers."""

    name: str
    default: int
    allowed: tuple[int, ...]

    @property
    def rule(self) -> str:
        return "one of " + ", ".join(map(str, self.allowed))

    def check(self, value: int) -> tuple["ErrorReason", str] | None:
        if value in self.allowed:
            return None
        return ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, f"{value} is not allowed: {self.rule}."


@dataclass(frozen=True, kw_only=True)
class Named:
    """A value of an enum; UNSPECIFIED stands for the default."""

    name: str
    default: int
    kind: Any
    rule: str = ""

    def check(self, value: int) -> tuple["ErrorReason", str] | None:
        if value in self.kind.values():
            return None
        names = ", ".join(item.name for item in self.kind.DESCRIPTOR.values[1:])
        return ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, f"{value} is none of {names}."


@dataclass(frozen=True, kw_only=True)
class Flag:
    """True or false."""

    name: str
    default: bool
    rule: str = ""

    def check(self, value: bool) -> None:
        return None


@dataclass(frozen=True, kw_only=True)
class Text:
    """Any text that is not too long."""

    name: str
    default: str
    rule: str = f"At most {MAX_TEXT_BYTES} bytes."

    def check(self, value: str) -> tuple["ErrorReason", str] | None:
        found = excess(value)
        return None if found is None else (ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, found)


Rule = Number | Choice | Named | Flag | Text

ENUMS = {
    kind.DESCRIPTOR.name: kind
    for kind in (Resolution, AspectRatio, OnSkippedClip, BasePrecision, Optimizer, Schedule, Attention)
}


def table(message: type[Message], defaults: Mapping[str, Any], snapped: Iterable[str] = ()) -> tuple[Rule, ...]:
    """One rule for each default, of the kind that the field is."""
    return tuple(_rule(message, name, default, name in snapped) for name, default in defaults.items())


def _rule(message: type[Message], name: str, default: Any, snapped: bool) -> Rule:
    field = field_of(message, name)
    if field.enum_type is not None:
        return Named(name=name, default=default, kind=ENUMS[field.enum_type.name])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return Flag(name=name, default=default)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return Text(name=name, default=default)
    if values := allowed(message, name):
        return Choice(name=name, default=default, allowed=values)
    minimum, maximum, above = limits(message, name)
    return Number(name=name, default=default, minimum=minimum, maximum=maximum, above=above, snapped=snapped)


def _sentence(rule: str) -> str:
    return rule[0].upper() + rule[1:].rstrip(".") + "."
