"""`ltxtrain up`, `demo` and `model`: commands that run the suite itself on this machine.

The client finds them by entry points (pyproject.toml). Imports stay light here: the command line loads this module at
each start, in a client's installation too, which lacks what the suite needs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain_client.cli.help import Command, Group
from ltxtrain_client.cli.session import Exit, fail

from ltxtrain_trainer.model.folder import DEFAULT_MODEL

StateDir = Annotated[
    Path,
    typer.Option(help="Databases, objects and logs of the suite.", envvar="LTXTRAIN_STATE_DIR", file_okay=False),
]
DEFAULT_STATE_DIR = Path(".ltxtrain")

model = typer.Typer(cls=Group, help="Models for trying things out.", no_args_is_help=True)


def up(
    state_dir: StateDir = DEFAULT_STATE_DIR,
    model: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hugging Face repository in diffusers layout, or pocket: small, trained on moving shapes.",
            envvar="LTXTRAIN_MODEL",
            show_default=f"{DEFAULT_MODEL}; pocket without a GPU",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(help="Address of this machine for other hosts; needs LTXTRAIN_TOKENS_FILE, or mTLS."),
    ] = "127.0.0.1",
    nodes: Annotated[
        bool,
        typer.Option("--nodes", help="Have Ray nodes of other hosts join there; needs LTXTRAIN_RAY_TOKEN."),
    ] = False,
) -> None:
    """Run the whole suite until Ctrl-C, on loopback or for other hosts: object store, Ray, services, gateway.

    Its ports are those of the addresses LTXTRAIN_TRAIN, LTXTRAIN_INGEST, LTXTRAIN_PREPROCESS and LTXTRAIN_GATEWAY.
    """
    with _server_packages():
        from ltxtrain_services.local.up import run
    raise typer.Exit(run(state_dir=state_dir, model=model, host=host, nodes=nodes))


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the results.", file_okay=False)] = Path("demo-out"),
    state_dir: StateDir = DEFAULT_STATE_DIR,
) -> None:
    """Run a complete job on a small synthetic dataset and the pocket model, from zip to LoRA."""
    with _server_packages():
        from ltxtrain_services.local.demo import run
    raise typer.Exit(run(out=out, state_dir=state_dir))


@model.command(cls=Command)
def tiny(folder: Annotated[Path, typer.Argument(help="Folder to build it in.", file_okay=False)]) -> None:
    """Build a complete LTX 2.3 pipeline with small random weights: it runs everywhere, and its videos are noise."""
    with _server_packages():
        from ltxtrain_trainer.model.tiny import build_tiny_model
    build_tiny_model(folder)
    print(folder)


@model.command(cls=Command)
def pocket(folder: Annotated[Path, typer.Argument(help="Folder to assemble it in.", file_okay=False)]) -> None:
    """Assemble the pocket model: a small LTX 2.3 that has learned to continue clips of moving shapes."""
    with _server_packages():
        from ltxtrain_pocket.model import build_pocket_model
    build_pocket_model(folder)
    print(folder)


@contextmanager
def _server_packages() -> Iterator[None]:
    """Imports that a client's installation cannot make. Raises typer.Exit with advice when a package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise fail(
            Exit.INVALID,
            f"This installation is the client alone ({error.name} is missing). "
            "To run the suite here: pip install 'ltxtrain[server,embedded]'",
        ) from None
