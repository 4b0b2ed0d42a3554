"""Shared by all commands: exit codes, connections, and errors shown to people."""

import asyncio
import logging
import shlex
import sys
from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import typer

from ltxtrain_client.as_json import error_as_json
from ltxtrain_client.channel import ClientSettings, read_settings
from ltxtrain_client.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    SettingsInvalid,
    TransferFailed,
    Unavailable,
)
from ltxtrain_client.event_text import describe_error
from ltxtrain_client.local_data import DataInvalid
from ltxtrain_client.progress import OutputClosed, print_json
from ltxtrain_client.sheet import SheetInvalid

T = TypeVar("T")


class Exit(IntEnum):
    """Exit codes; scripts rely on these numbers."""

    SUCCEEDED = 0
    FAILED = 1
    INVALID = 2
    CANCELLED = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERRUPTED = 130
    # OutputClosed
    UNREAD = 141


EXIT_CODES = (
    "Exit codes: 0 done, or the job succeeded; 1 the job failed; 2 wrong usage, sheet or spec; 3 the job was "
    "cancelled; 4 a service or the object store cannot be reached; 5 refused: no such resource, no permission, "
    "not in this state; 130 interrupted, nothing is cancelled; 141 the reader of the output is gone. With --json, "
    'an error is a line {"error": {"exit_code": …, "code": …, "reason": …, "message": …, …}} on stderr.'
)

_json: ContextVar[bool] = ContextVar("json", default=False)


def _remember(wanted: bool) -> bool:
    _json.set(wanted)
    return wanted


Json = Annotated[bool, typer.Option("--json", help="JSON lines for scripts, errors too.", callback=_remember)]


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the work. Raises typer.Exit with an exit code after showing an interrupt or an error of this package."""
    try:
        return run_interruptible(work)
    except KeyboardInterrupt:
        raise fail(Exit.INTERRUPTED, "Interrupted.") from None


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """`run`, but KeyboardInterrupt is raised to the caller, after the work was cancelled."""
    try:
        return asyncio.run(work)
    except SheetInvalid as error:
        problems = [f"  {problem}" for problem in error.problems]
        raise fail(Exit.INVALID, "The sheet is invalid:", *problems, details=_sheet_details(error)) from None
    except (SettingsInvalid, DataInvalid) as error:
        raise fail(Exit.INVALID, str(error)) from None
    except TransferFailed as error:
        raise fail(Exit.UNREACHABLE, str(error)) from None
    except CallError as error:
        lines = (describe_error(error), *_advice(error))
        raise fail(_exit_code(error), *lines, details=error_as_json(error)) from None
    except BrokenPipeError:
        raise OutputClosed from None
    except OSError as error:
        raise fail(Exit.INVALID, str(error)) from None


def fail(code: Exit, *lines: str, details: Mapping[str, Any] | None = None) -> typer.Exit:
    """Print an error to stderr and return the exception to raise. With --json, `details` replace the lines."""
    if _json.get():
        error = {"exit_code": int(code), **_NO_DETAILS, "message": "\n".join(lines), **(details or {})}
        print_json({"error": error}, sys.stderr)
    else:
        print(*lines, sep="\n", file=sys.stderr)
    return typer.Exit(code)


def note(text: str, **values: object) -> None:
    """Print a remark to stderr: the text, or with --json the `values`."""
    if _json.get():
        print_json(values or {"note": text}, sys.stderr)
    else:
        print(text, file=sys.stderr)


class _NoteHandler(logging.Handler):
    """Prints warnings of the client's modules as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        note(record.getMessage())


logging.getLogger("ltxtrain_client").addHandler(_NoteHandler(logging.WARNING))


def command_line(settings: ClientSettings, *words: object) -> str:
    """Command to copy, with the addresses that the environment does not set."""
    usual = read_settings()
    places = [
        word
        for name in ("train", "ingest", "preprocess")
        if (address := getattr(settings, name)) != getattr(usual, name)
        for word in (f"--{name}", address)
    ]
    return shlex.join(["ltxtrain", *places, *map(str, words)])


def settings_of(context: typer.Context) -> ClientSettings:
    settings = context.find_root().obj
    assert isinstance(settings, ClientSettings)
    return settings


_NO_DETAILS: dict[str, Any] = {
    "code": "",
    "reason": "",
    "message": "",
    "metadata": {},
    "violations": [],
    "subjects": [],
}


def _sheet_details(error: SheetInvalid) -> dict[str, Any]:
    violations = [
        {"field": item.path, "reason": item.reason or "INVALID_SPEC", "description": item.description}
        for item in error.problems
    ]
    return {"reason": "INVALID_SPEC", "message": "The sheet is invalid.", "violations": violations}


def _exit_code(error: CallError) -> Exit:
    if isinstance(error, InvalidArgument):
        return Exit.INVALID
    return Exit.UNREACHABLE if isinstance(error, Unavailable | DeadlineExceeded) else Exit.REFUSED


def _advice(error: CallError) -> tuple[str, ...]:
    # A service that answers gives a reason; without one, nothing answered.
    if isinstance(error, Unavailable) and not error.reason:
        return ("Is the suite running? `ltxtrain up` starts it on this machine, `ltxtrain doctor` looks into it.",)
    return ()
