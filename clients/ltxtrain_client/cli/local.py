"""Commands that run the suite itself on this machine; they need what `ltxtrain[server,embedded]` brings."""

import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from ltxtrain_client.cli.help import Command, Group
from ltxtrain_client.cli.session import Exit, fail

StateDir = Annotated[
    Path,
    typer.Option(help="Databases, objects and logs of the suite.", envvar="LTXTRAIN_STATE_DIR", file_okay=False),
]
# trainer.model.folder.DEFAULT_MODEL, which a client's installation cannot import.
DEFAULT_MODEL = "diffusers/LTX-2.3-Diffusers"
DEFAULT_STATE_DIR = Path(".ltxtrain")

model = typer.Typer(cls=Group, help="Models for trying things out.", no_args_is_help=True)


def up(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder, or name of a Hugging Face repository, in diffusers layout.",
            envvar="LTXTRAIN_MODEL",
            show_default=DEFAULT_MODEL,
        ),
    ] = None,
) -> None:
    """Run the whole suite here, on loopback, until Ctrl-C: object store, Ray, Ingest, Preprocess, Train."""
    _end(_server_part("services.local.up").run(state_dir=state_dir, model=model))


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.", file_okay=False)] = Path("demo-out"),
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Run one whole job on a small made-up dataset and a tiny model, from zip to LoRA, in view."""
    _end(_server_part("services.local.demo").run(out=out, state_dir=state_dir))


@model.command(cls=Command)
def tiny(folder: Annotated[Path, typer.Argument(help="Where to build it.", file_okay=False)]) -> None:
    """Build a complete LTX 2.3 pipeline with small random weights: everything runs, nothing looks good."""
    _server_part("trainer.model.tiny").build_tiny_model(folder)
    print(folder)


def _server_part(module: str) -> Any:
    """A module that a client's installation lacks the libraries for."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise fail(
            Exit.INVALID,
            f"This installation is the client alone ({error.name} is missing). "
            "To run the suite here: pip install 'ltxtrain[server,embedded]'",
        ) from None


def _end(status: object) -> None:
    """End the command with the status that the suite ended with; None is success."""
    raise typer.Exit(status if isinstance(status, int) else Exit.SUCCEEDED)
