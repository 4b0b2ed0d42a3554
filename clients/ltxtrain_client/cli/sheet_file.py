"""The parameter sheet of a command: a file, stdin, or none."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ltxtrain_client.cli.session import Exit, fail
from ltxtrain_client.local_data import VIDEO_SUFFIXES
from ltxtrain_client.sheet import Sheet, SheetInvalid, parse_sheet

ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
STDIN = Path("-")

SheetFile = Annotated[
    Path | None,
    typer.Argument(help="Parameter sheet as JSON; - reads stdin. Without one: defaults and --set."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change the sheet: rank=64, options.seed=7, validation[0].prompt=…"
    ),
]


def read_sheet(path: Path | dict[str, Any] | None, settings: Sequence[str]) -> Sheet:
    """Read a sheet and apply `settings`.

    Raises typer.Exit when there is no JSON object, SheetInvalid when parts of it are invalid.
    """
    if path is None or isinstance(path, dict):
        return parse_sheet(path or {}, settings)
    name = "stdin" if path == STDIN else str(path)
    content = _content(path, name)
    try:
        return parse_sheet(content, settings)
    except SheetInvalid as error:
        first = error.problems[0]
        if first.path:
            raise
        # A problem without a path means that there is no sheet at all.
        raise fail(Exit.INVALID, f"{name} is not a JSON sheet: {first.description}") from None


def _content(path: Path, name: str) -> bytes:
    try:
        content = sys.stdin.buffer.read() if path == STDIN else path.read_bytes()
    except IsADirectoryError:
        raise fail(Exit.INVALID, f"{name} is a folder; the sheet is a JSON file") from None
    except OSError as error:
        raise fail(Exit.INVALID, f"{name} cannot be read: {error.strerror}") from None
    if content.startswith(ZIP_STARTS):
        raise fail(Exit.INVALID, f"{name} is not a JSON sheet; give the zip with --data")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise fail(Exit.INVALID, f"{name} is not a JSON sheet; give an opening clip with --validation")
    return content
