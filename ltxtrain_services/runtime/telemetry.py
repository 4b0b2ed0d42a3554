"""Logs: one JSON object a line, with the resource and the trace of the unit of work that wrote it.

A unit of work is one call of a caller, or one start of a resource's work. It is bound once, at its outside.
"""

import json
import logging
import re
import secrets
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType

from ltxtrain_services.runtime import tracing

FIELDS = ("resource", "stage", "trace_id", "method", "peer", "code", "seconds", "left_out")
# Characters of a line's parts: all of them may hold what a stranger sent.
MAX_MESSAGE, MAX_FIELD, MAX_TRACE = 2_000, 64, 6_000
KEPT_WHOLE = ("time", "level", "trace_id")
# Bytes of a whole line that a call writes, newline included: callers decide how many there are.
MAX_CALL_LINE = 300
# Lines of one place in the code that are written in a second: about one caller, and in all.
PEER_LINES, LINES = 2, 50

# Stack traces that gRPC writes for each peer that leaves in the midst of a message, or whose headers are not UTF-8.
GRPC_NOISE = ("ExecuteBatchError raised", "Invalid encoding on")

# What may be secret wherever a library puts it into its text: queries of URLs, user parts, signatures, bearer tokens.
# Each of these takes time that is linear in the text: what is repeated has a bound, or ends where nothing else begins.
URL = re.compile(r"://[^\s?#\"'<>]*(?:[?#][^\s\"'<>)\]]*)?")
SIGNATURE = re.compile(r"(?i)\b(x-amz-[a-z\-]{1,40}|signature|awsaccesskeyid)=[^\s&\"'<>)\]]+")
BEARER = re.compile(r"(?i)\b(bearer)\s+[^\s\"',)\]]+")

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
    text = URL.sub(lambda found: _without_user_and_query(found[0]), text)
    text = SIGNATURE.sub(r"\1=…", text)
    return BEARER.sub(r"\1 …", text)


def _without_user_and_query(url: str) -> str:
    """The end of a URL from its "://" on, without secrets; a URL within the path is one too."""
    mark = min((place for place in (url.find("?"), url.find("#")) if place >= 0), default=len(url))
    parts = url[:mark].split("://")
    for index, part in enumerate(parts):
        authority, slash, path = part.partition("/")
        user, at, host = authority.rpartition("@")
        parts[index] = f"…@{host}{slash}{path}" if at and user else part
    return "://".join(parts) + (f"{url[mark]}…" if mark < len(url) else "")


def shortened(text: str, limit: int) -> str:
    """The beginning of a text; the user part of a URL, which its "@" gives away, is not cut off from that."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 1]
    before, mark, after = kept.rpartition("://")
    return f"{before}{mark}…" if mark and not re.search(r"[\s/?#\"'<>]", after) else f"{kept}…"


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON, whose length has a bound whatever the record says."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": without_secrets(shortened(_message(record), MAX_MESSAGE)),
        }
        fields: dict[str, object] = dict(_bound.get())
        if traced := tracing.trace_id():
            fields["trace_id"] = traced
        fields |= {name: value for name in FIELDS if (value := getattr(record, name, None)) is not None}
        line |= {
            name: shortened(value, MAX_FIELD) if isinstance(value, str) else value for name, value in fields.items()
        }
        if record.exc_info:
            # The end says what was raised, and where.
            trace = self.formatException(record.exc_info)
            line["exception"] = without_secrets(trace if len(trace) <= MAX_TRACE else f"…{_whole_lines(trace)}")
        elif "peer" in fields:
            _cut_to_a_call(line)
        return _json(line)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _size(value: object) -> int:
    """Bytes in the log: what JSON has to escape takes six for a character."""
    return len(_json(value).encode(errors="backslashreplace"))


def _cut_to_a_call(line: dict[str, object]) -> None:
    """Bring a line to MAX_CALL_LINE: without its logger, then with what the caller named cut, then whatever is longest.

    Its time, level and trace stay.
    """
    if _size(line) >= MAX_CALL_LINE:
        del line["logger"]
    texts = {name: text for name, text in line.items() if isinstance(text, str) and name not in KEPT_WHOLE}
    for name in sorted(texts, key=lambda name: (name != "resource", -_size(texts[name]))):
        if (excess := _size(line) + 1 - MAX_CALL_LINE) > 0:
            line[name] = _cut(texts[name], _size(texts[name]) - excess)


def _cut(text: str, size: int) -> str:
    """The beginning of a text that takes so many bytes of the log at most, with a mark; the mark alone below that."""
    left = size - _size("…")
    for index, character in enumerate(text):
        left -= _size(character) - 2
        if left < 0:
            return f"{text[:index]}…"
    return text


def _message(record: logging.LogRecord) -> str:
    """The record's text, made of arguments that are cut before they are joined."""
    if isinstance(record.args, tuple):
        limit = 2 * MAX_MESSAGE
        cut = tuple(value[:limit] if isinstance(value, str | bytes) else value for value in record.args)
        record = logging.makeLogRecord({**record.__dict__, "args": cut})
    return record.getMessage()


def _whole_lines(trace: str) -> str:
    """The last lines of a trace; one line that is too long by itself is cut at its end."""
    last = shortened(trace[trace.rfind("\n", 0, len(trace) - 1) + 1 :], MAX_TRACE // 2)
    before = trace[: trace.rfind("\n", 0, len(trace) - 1) + 1]
    rest = before[-(MAX_TRACE - len(last)) :]
    return rest[rest.find("\n") :] + last


class Bounded(logging.Filter):
    """Lets so many lines a second through; the next one of the same place says how many were left out.

    Counted are the lines of one place in the code about one peer, and all lines of a place.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._second = 0
        self._written: Counter[tuple[str, ...]] = Counter()
        self._left_out: Counter[tuple[str, ...]] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("grpc._cython") and str(record.msg).startswith(GRPC_NOISE):
            return False
        if (second := int(self._clock())) != self._second:
            self._second = second
            self._written.clear()
        place = (record.name, record.pathname, str(record.lineno))
        peer = (*place, _bound.get().get("peer", ""))
        if self._written[place] >= LINES or (peer[-1] and self._written[peer] >= PEER_LINES):
            self._left_out[place] += 1
            return False
        self._written[place] += 1
        if peer[-1]:
            self._written[peer] += 1
        if left_out := self._left_out.pop(place, 0):
            record.left_out = left_out
        return True


def log_to_stderr(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(Bounded())
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At DEBUG it writes every statement with its values, which may be secrets of callers.
    logging.getLogger("aiosqlite").setLevel(logging.INFO)


def current_trace() -> dict[str, str]:
    """The carrier of the present unit of work for a Ray task or actor: pass it as a plain argument."""
    return {**_bound.get(), "trace_id": trace_id(), **tracing.carried()}


@contextmanager
def resumed_trace(carrier: Mapping[str, str], name: str, *, flush: bool = False) -> Iterator[None]:
    """A part of a unit of work in another process: its log lines and spans belong to the same trace.

    flush: for the last part in its process, spans are sent before the block ends.
    """
    fields = {key: value for key, value in carrier.items() if key in FIELDS}
    with bound(**fields), tracing.resumed(carrier, name, flush=flush):
        yield
