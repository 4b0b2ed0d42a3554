"""Requests of which one field has the worst value that its type can hold, made from the contract's descriptors."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tests.suite.random_requests import RandomRequests, Rpc, every_rpc

# Below the megabyte that a message may have.
LARGE = 900_000
MANY = 20_000
# A name in every script that has one, and what no name should be.
SCRIPTS = [*(Path(__file__).parents[1] / "data/names_in_scripts.txt").read_text().split("\n"), "\u0301" * 50]
TEXTS = (
    *("x" * LARGE, "\0" * 1_000, "\0", " " * 70_000, "\n" * 70_000, "a." * 40_000, "<!-- -->" * 10_000),
    *("\u0300\u0315" * 100_000, "{" * 200_000, "[" * 200_000, "../" * 10_000, "%s%n{0}${x}", "\U0010ffff" * 1_000),
    *("'; DROP TABLE resource; --", "\u202e\u2066\ufeff\ufffe", "\x1b[2J\x07", "-1", "1e999", "²", "١٢٣", "nan"),
    *("http://[::1", "upload:" + "/" * 5_000, "s3://" + "a" * 5_000 + "/b", "jobs/" + "é" * 5_000),
    "{" * 300_000 + "6f1c0000000040008000000000000000",
    *SCRIPTS,
)
REALS = (math.nan, math.inf, -math.inf, 1.7e308, -1.7e308, 5e-324, -0.0)
WHOLE = {
    FieldDescriptor.CPPTYPE_INT32: (2**31 - 1, -(2**31), -1, 0),
    FieldDescriptor.CPPTYPE_INT64: (2**63 - 1, -(2**63), -1, 0),
    FieldDescriptor.CPPTYPE_UINT32: (2**32 - 1, 0),
    FieldDescriptor.CPPTYPE_UINT64: (2**64 - 1, 0),
    FieldDescriptor.CPPTYPE_ENUM: (2**31 - 1, -(2**31), 99, 0),
    FieldDescriptor.CPPTYPE_BOOL: (True, False),
    FieldDescriptor.CPPTYPE_DOUBLE: REALS,
    FieldDescriptor.CPPTYPE_FLOAT: (math.nan, math.inf, -math.inf, 3.4e38, -0.0),
    FieldDescriptor.CPPTYPE_STRING: TEXTS,
}


@dataclass(frozen=True)
class Case:
    """A call, the path of one field in its request, and the value that the field gets."""

    rpc: Rpc
    path: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return f"{self.rpc.method.name} {'.'.join(self.path)} = {repr(self.value)[:40]}"

    def put_into(self, request: Message) -> None:
        part: Any = request
        for name in self.path[:-1]:
            part = getattr(part, name)
            if hasattr(part, "add"):
                part = part.add()
        field = part.DESCRIPTOR.fields_by_name[self.path[-1]]
        if not field.is_repeated:
            if field.message_type is not None:
                getattr(part, field.name).SetInParent()
            else:
                setattr(part, field.name, self.value)
            return
        items = getattr(part, field.name)
        if _is_map(field):
            items.update({str(number): "x" for number in range(MANY)} | dict.fromkeys(TEXTS, "x"))
        elif field.message_type is not None:
            for _ in range(MANY):
                items.add()
        else:
            size = len(self.value.encode()) + 4 if isinstance(self.value, str) else 10
            items.extend([self.value] * max(1, min(MANY, LARGE // size)))


def cases() -> list[Case]:
    """Every field of every request with every worst value of its type, alone and as a long list where it is one."""
    return [
        Case(rpc, path, value)
        for rpc in every_rpc()
        for path, field in _fields(rpc.request.DESCRIPTOR, ())
        for value in ((None,) if field.message_type is not None else WHOLE[field.cpp_type])
    ]


def _fields(message: Any, above: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for field in message.fields:
        yield (*above, field.name), field
        if field.message_type is not None and not _is_map(field) and len(above) < 4:
            yield from _fields(field.message_type, (*above, field.name))


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


class WorstValues(RandomRequests):
    """All cases in random order, again and again; what is not a case's own field is sane."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._cases = cases()
        self._case: Case | None = None

    def rounds(self) -> Iterator[Rpc]:
        dice = random.Random(self._random.random())
        while True:
            dice.shuffle(self._cases)
            for case in self._cases:
                self._case = case
                yield case.rpc

    def request(self, rpc: Rpc) -> Message:
        made = rpc.request()
        self._fill(made, wildness=0.0)
        assert self._case is not None and self._case.rpc == rpc
        self._case.put_into(made)
        return made
