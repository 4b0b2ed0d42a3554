"""Logs: one JSON object a line, with the resource and the trace of the unit of work that wrote it.

A unit of work is one call of a caller, or one start of a resource's work. It is bound once, at its outside.
"""

import json
import logging
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from services.runtime import tracing

FIELDS = ("resource", "stage", "trace_id", "method", "code", "seconds")
# What may be secret wherever a library puts it into its text: queries of URLs, user parts, bearer tokens.
SECRETS = (
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.\-]*://[^\s?#\"'<>]*)[?#][^\s\"'<>)\]]*"), r"\1?…"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.\-]*://)[^\s/@\"'<>]+@"), r"\1…@"),
    (re.compile(r"(?i)\b(x-amz-[a-z\-]+|signature|awsaccesskeyid)=[^\s&\"'<>)\]]+"), r"\1=…"),
    (re.compile(r"(?i)\b(bearer)\s+[^\s\"',)\]]+"), r"\1 …"),
)

NOTHING: Mapping[str, str] = MappingProxyType({})

_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default=NOTHING)


@contextmanager
def bound(**fields: str) -> Iterator[None]:
    """Put fields into every log line of the block and of the tasks it starts; a trace id when there is none yet.

    An empty field takes what an outer unit of work has set out again.
    """
    token = _bound.set({"trace_id": secrets.token_hex(16), **_with(fields)})
    try:
        yield
    finally:
        _bound.reset(token)


def bind(**fields: str) -> None:
    """As `bound`, for the rest of a context that ends with the unit of work: that of one call."""
    _bound.set({"trace_id": secrets.token_hex(16), **_with(fields)})


def _with(fields: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in {**_bound.get(), **fields}.items() if value}


def trace_id() -> str:
    """32 hexadecimal digits of the present unit of work: those of its OpenTelemetry trace, where there is one."""
    return tracing.trace_id() or _bound.get().get("trace_id") or secrets.token_hex(16)


def without_secrets(text: str) -> str:
    for pattern, replacement in SECRETS:
        text = pattern.sub(replacement, text)
    return text


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        fields: dict[str, object] = dict(_bound.get())
        if traced := tracing.trace_id():
            fields["trace_id"] = traced
        fields |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        line |= fields
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """False of the stack trace that gRPC writes for each peer that leaves in the midst of a message."""
    return not (record.name.startswith("grpc._cython") and "ExecuteBatchError" in record.getMessage())


def log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(is_worth_a_line)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def current_trace() -> dict[str, str]:
    """What a Ray task or actor needs to go on with the present unit of work: pass it as a plain argument."""
    return {**_bound.get(), "trace_id": trace_id(), **tracing.carried()}


@contextmanager
def resumed_trace(carrier: Mapping[str, str], name: str, *, flush: bool = False) -> Iterator[None]:
    """A part of a unit of work in another process: its log lines and spans belong to the same trace.

    flush: for the last part in its process, spans are sent before the block ends.
    """
    fields = {key: value for key, value in carrier.items() if key in FIELDS}
    with bound(**fields), tracing.resumed(carrier, name, flush=flush):
        yield
