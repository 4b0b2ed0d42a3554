"""The command `ltxtrain`."""

import logging
from dataclasses import replace
from importlib import metadata
from typing import Annotated, Any

import typer

from ltxtrain_client.channel import ClientSettings, read_settings
from ltxtrain_client.cli.check import check
from ltxtrain_client.cli.continue_clips import continue_clips
from ltxtrain_client.cli.continuing import checkpoint, preview, retry
from ltxtrain_client.cli.dataset_commands import datasets, training_sets
from ltxtrain_client.cli.doctor import doctor
from ltxtrain_client.cli.fetch import fetch, push
from ltxtrain_client.cli.follow import watch
from ltxtrain_client.cli.help import Command, Group, print_version
from ltxtrain_client.cli.jobs import cancel, delete, job, jobs
from ltxtrain_client.cli.report import report
from ltxtrain_client.cli.session import EXIT_CODES, Exit, fail
from ltxtrain_client.cli.submit import estimate, submit
from ltxtrain_client.errors import SettingsInvalid

log = logging.getLogger(__name__)

# Entry points of commands that other parts of the distribution add, such as `up`: functions or Typer apps.
COMMANDS = "ltxtrain.commands"

app = typer.Typer(
    cls=Group,
    help="Train LoRAs that continue a video, with LTX 2.3. A token and certificates, where the services ask for them, "
    "come from LTXTRAIN_TOKEN, LTXTRAIN_TLS_ROOT, LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _address(service: str) -> Any:
    return typer.Option(
        help=f"Address of {service.capitalize()}.",
        envvar=f"LTXTRAIN_{service.upper()}",
        metavar="HOST:PORT",
        show_default=getattr(ClientSettings, service),
    )


@app.callback()
def services(
    context: typer.Context,
    train: Annotated[str | None, _address("train")] = None,
    ingest: Annotated[str | None, _address("ingest")] = None,
    preprocess: Annotated[str | None, _address("preprocess")] = None,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    try:
        settings = read_settings()
    except SettingsInvalid as error:
        raise fail(Exit.INVALID, str(error)) from None
    context.obj = replace(
        settings,
        train=train or settings.train,
        ingest=ingest or settings.ingest,
        preprocess=preprocess or settings.preprocess,
    )


def _add_commands(app: typer.Typer) -> None:
    """Add the commands that entry points name. One that cannot be imported is left out with a warning."""
    for entry in metadata.entry_points(group=COMMANDS):
        try:
            command = entry.load()
        except ImportError as error:
            log.warning("The command %s of %s cannot be loaded: %s", entry.name, entry.value, error)
            continue
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=entry.name)
        else:
            app.command(entry.name, cls=Command)(command)


for command in (
    check,
    submit,
    watch,
    cancel,
    retry,
    checkpoint,
    preview,
    jobs,
    job,
    report,
    fetch,
    push,
    estimate,
    delete,
    doctor,
):
    app.command(cls=Command)(command)
app.command("continue", cls=Command)(continue_clips)
app.add_typer(datasets, name="datasets")
app.add_typer(training_sets, name="training-sets")
_add_commands(app)


def main() -> None:
    """Entry of the console script."""
    app(prog_name="ltxtrain")
