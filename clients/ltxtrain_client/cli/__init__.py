"""The command `ltxtrain`."""

from dataclasses import replace
from typing import Annotated

import typer

from ltxtrain_client.channel import read_settings
from ltxtrain_client.cli import follow, local
from ltxtrain_client.cli.doctor import doctor
from ltxtrain_client.cli.fetch import fetch
from ltxtrain_client.cli.jobs import cancel, delete, job, jobs
from ltxtrain_client.cli.report import report
from ltxtrain_client.cli.session import EXIT_CODES, Exit, fail
from ltxtrain_client.cli.submit import estimate, submit
from ltxtrain_client.errors import SettingsInvalid

app = typer.Typer(
    help="Train LoRAs that continue a video, with LTX 2.3. A token and certificates, where the services ask for them, "
    "come from LTXTRAIN_TOKEN, LTXTRAIN_TLS_ROOT, LTXTRAIN_TLS_CERT and LTXTRAIN_TLS_KEY.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def services(
    context: typer.Context,
    train: Annotated[str | None, typer.Option(help="Address of Train.", envvar="LTXTRAIN_TRAIN")] = None,
    ingest: Annotated[str | None, typer.Option(help="Address of Ingest.", envvar="LTXTRAIN_INGEST")] = None,
    preprocess: Annotated[str | None, typer.Option(help="Address of Preprocess.", envvar="LTXTRAIN_PREPROCESS")] = None,
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


for command in (submit, follow.watch, cancel, jobs, job, report, fetch, estimate, delete, doctor, local.up, local.demo):
    app.command()(command)
app.add_typer(local.model, name="model")


def main() -> None:
    """Entry of the console script."""
    app(prog_name="ltxtrain")
