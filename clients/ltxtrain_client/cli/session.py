"""What every command shares: exit codes, connections, and errors told to a person."""

import asyncio
import sys
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Any, TypeVar

import typer

from ltxtrain_client.channel import ClientSettings, connect
from ltxtrain_client.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    SettingsInvalid,
    SheetInvalid,
    TransferFailed,
    Unavailable,
)
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.lines import describe_error
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.train import TrainClient

T = TypeVar("T")


class Exit(IntEnum):
    """How a command ends; scripts rely on these numbers."""

    SUCCEEDED = 0
    FAILED = 1
    INVALID = 2
    CANCELLED = 3
    UNREACHABLE = 4
    REFUSED = 5
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done, or the job succeeded; 1 the job failed; 2 wrong usage, sheet or spec; 3 the job was "
    "cancelled; 4 a service or the object store cannot be reached; 5 refused: no such resource, no permission, "
    "not in this state; 130 interrupted, the job runs on."
)

Json = Annotated[bool, typer.Option("--json", help="JSON lines for scripts.")]


@dataclass(frozen=True)
class Suite:
    """Clients of the three services."""

    train: TrainClient
    ingest: IngestClient
    preprocess: PreprocessClient


@asynccontextmanager
async def open_suite(settings: ClientSettings) -> AsyncIterator[Suite]:
    """The three services as the settings name them; nothing is dialled before it is called."""
    async with (
        connect(settings.train, settings.credentials) as train,
        connect(settings.ingest, settings.credentials) as ingest,
        connect(settings.preprocess, settings.credentials) as preprocess,
    ):
        yield Suite(TrainClient(train), IngestClient(ingest), PreprocessClient(preprocess))


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; an interrupt, and what this package raises, become a message and an exit code."""
    try:
        return run_interruptible(work)
    except KeyboardInterrupt:
        raise fail(Exit.INTERRUPTED, "Interrupted.") from None


def run_interruptible(work: Coroutine[Any, Any, T]) -> T:
    """`run`, leaving KeyboardInterrupt to the caller; the work was cancelled then."""
    try:
        return asyncio.run(work)
    except SheetInvalid as error:
        raise fail(Exit.INVALID, "The sheet is not usable:", *(f"  {problem}" for problem in error.problems)) from None
    except SettingsInvalid as error:
        raise fail(Exit.INVALID, str(error)) from None
    except TransferFailed as error:
        raise fail(Exit.UNREACHABLE, str(error)) from None
    except CallError as error:
        raise fail(_exit_code(error), describe_error(error), *_advice(error)) from None
    except OSError as error:
        raise fail(Exit.INVALID, str(error)) from None


def fail(code: Exit, *lines: str) -> typer.Exit:
    """Tell on stderr, and return what ends the command with this code."""
    print(*lines, sep="\n", file=sys.stderr)
    return typer.Exit(code)


def settings_of(context: typer.Context) -> ClientSettings:
    settings = context.find_root().obj
    assert isinstance(settings, ClientSettings)
    return settings


def _exit_code(error: CallError) -> Exit:
    if isinstance(error, InvalidArgument):
        return Exit.INVALID
    return Exit.UNREACHABLE if isinstance(error, Unavailable | DeadlineExceeded) else Exit.REFUSED


def _advice(error: CallError) -> tuple[str, ...]:
    # A service that answers gives a reason; without one nobody was there.
    if isinstance(error, Unavailable) and not error.reason:
        return ("Is the suite running? `ltxtrain up` starts it on this machine, `ltxtrain doctor` looks into it.",)
    return ()
