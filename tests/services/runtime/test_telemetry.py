"""The log as a stranger may try to fill it: lines and their number have bounds, and time is linear in what comes."""

import importlib
import json
import logging
import pkgutil
import re
import time
from collections.abc import Iterator
from typing import Any

import ltxtrain_client
import pytest

import ltxtrain_services.runtime
from ltxtrain_services.runtime.telemetry import (
    LINES,
    MAX_CALL_LINE,
    MAX_MESSAGE,
    MAX_TRACE,
    PEER_LINES,
    Bounded,
    JsonLines,
    bound,
    shortened,
    without_secrets,
)

CHARS = 200_000
# CPU time; a linear pattern needs a thirtieth of it, one that is quadratic a thousand times as much.
SECONDS = 3.0
# What is repeated to make a text that a pattern likes until its end.
PUMPS = (
    "a", " ", "a.", "a.a-", "0", "://", "a://", "://a@", "://?", "x-amz-", "x-amz-a", "signature", "bearer ", "bearer",
    "ipv4:", "ipv4:a", ": ", " (1", "[0]", "a[", "/", "jobs/", "upload:", "<!--", "<!-- -->", "\n", "é", "\u0300",
)  # fmt: skip


def patterns() -> Iterator[tuple[str, re.Pattern[str]]]:
    """Every compiled pattern of the runtime and of the client."""
    for package in (ltxtrain_services.runtime, ltxtrain_client):
        for found in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if not found.ispkg and not found.name.endswith("__main__"):
                for name, value in vars(importlib.import_module(found.name)).items():
                    if isinstance(value, re.Pattern):
                        yield f"{found.name}.{name}", value


@pytest.mark.parametrize(
    ("name", "pattern"), list(patterns()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_pattern_is_linear(name: str, pattern: re.Pattern[str]) -> None:
    began = time.process_time()
    for pump in PUMPS:
        for text in (pump * (CHARS // len(pump)), pump * (CHARS // len(pump)) + "\0"):
            pattern.sub("", text)
            pattern.fullmatch(text)
            assert time.process_time() - began < SECONDS * len(PUMPS), f"{name} on {pump!r}"


@pytest.mark.parametrize("pump", PUMPS)
def test_the_filter_of_secrets_is_linear(pump: str) -> None:
    began = time.process_time()
    without_secrets(pump * (CHARS // len(pump)))
    assert time.process_time() - began < SECONDS


def test_patterns_are_compiled_where_the_tests_find_them() -> None:
    names = [name for name, _ in patterns()]
    assert len(names) >= 5 and any("telemetry" in name for name in names)


def line_of(message: str, *args: object, **extra: Any) -> str:
    record = logging.getLogger("test").makeRecord("test", logging.INFO, __file__, 1, message, args, None, extra=extra)
    return JsonLines().format(record)


@pytest.mark.parametrize("letter", ["x", "é", "\x00", "\u202e", '"'])
def test_a_line_is_short_whatever_it_is_told(letter: str) -> None:
    long = letter * 50_000_000 if letter == "x" else letter * 1_000_000
    with bound(resource=long, method=long):
        assert len(json.loads(line_of("asked for %s", long))["message"]) <= MAX_MESSAGE
        assert len(line_of(long, code=long).encode()) < 6 * (MAX_MESSAGE + 500)
        assert len(line_of("%s", long.encode()[:1_000_000]).encode()) < 6 * (MAX_MESSAGE + 500)


WORST = ("x", "é", "\x00", "\u202e", '"', "\\", "\U0001f4a9", "\udcff", "\n")


@pytest.mark.parametrize("letter", WORST)
@pytest.mark.parametrize("length", [1, 20, 40, 64, 100_000])
def test_the_whole_line_of_a_call_is_bounded_whatever_it_names(letter: str, length: int) -> None:
    long = letter * length
    fields = {"resource": long, "method": long, "stage": long, "peer": "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff/64"}
    with bound(**fields):
        for line in (line_of("refused: %s", long), line_of("refused: %s", long, left_out=2**63, code=long)):
            assert len(f"{line}\n".encode(errors="backslashreplace")) <= MAX_CALL_LINE
            told = json.loads(line)
            assert len(told["trace_id"]) == 32 and told["level"] == "INFO" and told["peer"]


def test_a_refused_call_of_a_plain_name_is_told_whole() -> None:
    name, method = f"trainingSets/{'0123456789abcdef' * 2}", "/ltxtrain.v1.PreprocessService/GetTrainingSet"
    with bound(resource=name, method=method, peer="192.0.2.255"):
        line = line_of("refused: RESOURCE_NOT_FOUND")
    told = json.loads(line)
    assert (told["resource"], told["method"], told["message"]) == (name, method, "refused: RESOURCE_NOT_FOUND")
    assert len(line) < MAX_CALL_LINE


def test_a_trace_is_short_and_ends_with_what_was_raised() -> None:
    try:
        try:
            raise ValueError("y" * 1_000_000)
        except ValueError as error:
            raise RuntimeError("the last line https://host/path?secret=1") from error
    except RuntimeError as error:
        record = logging.getLogger("test").makeRecord(
            "test", logging.ERROR, __file__, 1, "failed", (), (type(error), error, error.__traceback__)
        )
    told = json.loads(JsonLines().format(record))["exception"]
    assert len(told) <= MAX_TRACE + 2 and "secret" not in told
    assert told.endswith("RuntimeError: the last line https://host/path?…")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see https://ann:password@host/path", "see https://…"),
        ("see https://host/path and so on and on", "see https://host/path a…"),
        ("as short as that", "as short as that"),
    ],
)
def test_a_cut_leaves_no_half_of_a_password(text: str, kept: str) -> None:
    assert shortened(text, 24) == kept
    assert "passw" not in without_secrets(shortened(text, 24))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://ann:p@ss@host/a", "https://…@host/a"),
        ("https://proxy/https://ann:word@host/a?b=c#d", "https://proxy/https://…@host/a?…"),
        ("https://host/a#fragment", "https://host/a#…"),
        ("https://host/a@b", "https://host/a@b"),
        ("://@host", "://@host"),
        ("x-amz-credential=abc&signature=def", "x-amz-credential=…&signature=…"),
    ],
)
def test_secrets_of_odd_urls(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_lines_of_one_place_are_bounded_and_the_rest_is_counted() -> None:
    now = [0.0]
    bounded = Bounded(lambda: now[0])

    def write(count: int, peer: str, line: int = 1) -> list[logging.LogRecord]:
        records = [
            logging.getLogger("test").makeRecord("test", logging.INFO, __file__, line, "told", (), None)
            for _ in range(count)
        ]
        with bound(peer=peer):
            return [record for record in records if bounded.filter(record)]

    assert len(write(100, "192.0.2.1")) == PEER_LINES
    assert len(write(100, "192.0.2.2")) == PEER_LINES
    assert len(write(1, "192.0.2.1", line=2)) == 1
    others = [record for host in range(3, 200) for record in write(1, f"192.0.2.{host}")]
    assert len(others) == LINES - 2 * PEER_LINES
    assert [vars(record).get("left_out") for record in others[:2]] == [100 - PEER_LINES, None]
    now[0] = 1.0
    (first, second) = write(2, "192.0.2.1")
    assert vars(first)["left_out"] == 197 - len(others) and "left_out" not in vars(second)
    assert len(write(100, "", line=3)) == LINES
