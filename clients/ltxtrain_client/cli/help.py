"""What `--help` shows of options."""

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from ltxtrain_client.checks import DISTRIBUTION, own_version

# Of click or of what Typer has in its place.
_Parameter = Any


class Command(TyperCommand):
    """A command whose flags are shown without a type: they take no value."""

    def get_params(self, ctx: Any) -> list[_Parameter]:
        return [_shown(parameter) for parameter in super().get_params(ctx)]


class Group(TyperGroup):
    """As Command, of commands."""

    def get_params(self, ctx: Any) -> list[_Parameter]:
        return [_shown(parameter) for parameter in super().get_params(ctx)]


def _shown(parameter: _Parameter) -> _Parameter:
    if getattr(parameter, "is_flag", False):
        parameter.metavar = ""
    return parameter


def print_version(wanted: bool) -> None:
    """Callback of `--version`."""
    if wanted:
        print(f"{DISTRIBUTION} {own_version()}")
        raise typer.Exit
