"""Help pages and the version."""

from contextlib import suppress
from importlib import metadata
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

DISTRIBUTION = "ltxtrain"
# The same client without the server's files.
CLIENT_ALONE = "ltxtrain-client"
# Typer bundles click in newer versions and imports it in older ones: no common type.
_Parameter = Any


class Command(TyperCommand):
    """Command whose help shows flags without a type, since they take no value."""

    def get_params(self, ctx: Any) -> list[_Parameter]:
        return [_shown(parameter) for parameter in super().get_params(ctx)]


class Group(TyperGroup):
    """Command group with the same help."""

    def get_params(self, ctx: Any) -> list[_Parameter]:
        return [_shown(parameter) for parameter in super().get_params(ctx)]


def _shown(parameter: _Parameter) -> _Parameter:
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    return parameter


def own_version() -> str:
    """Version of the installed distribution."""
    for name in (DISTRIBUTION, CLIENT_ALONE):
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return "run from a folder"


def print_version(wanted: bool) -> None:
    """Callback of `--version`."""
    if wanted:
        print(f"{DISTRIBUTION} {own_version()}")
        raise typer.Exit
