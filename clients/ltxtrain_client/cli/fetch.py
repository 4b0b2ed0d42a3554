"""Download what a job made."""

from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import Job

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, fail, open_suite, run, settings_of
from ltxtrain_client.outputs import PAGES, file_name, is_final, result_files
from ltxtrain_client.progress import View, make_view
from ltxtrain_client.train import TrainClient


def fetch(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="jobs/ID, or the ID alone.")],
    out: Annotated[Path, typer.Option(help="Folder for the files.", file_okay=False)] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and previews too.")] = False,
    json_lines: Json = False,
) -> None:
    """Download a job's files, checked by sha256; what is there already is not fetched again."""
    name = job_name(job)
    if not run(_fetch(settings_of(context), name, out, everything, make_view(json_lines=json_lines))):
        raise fail(
            Exit.REFUSED, f"{name} has no results yet. `ltxtrain watch {name}` waits; --all takes what is there."
        )


async def _fetch(settings: ClientSettings, name: str, out: Path, everything: bool, view: View) -> list[Path]:
    async with open_suite(settings) as suite:
        with view:
            return await fetch_files(suite.train, await suite.train.get_job(name), out, view, everything=everything)


async def fetch_files(train: TrainClient, job: Job, out: Path, view: View, *, everything: bool = False) -> list[Path]:
    """Download a job's results with its pages, or `everything`; the paths written."""
    wanted = result_files(job)
    if wanted or everything:
        kinds = () if everything else PAGES
        async for artifact in train.list_artifacts(job.name, kinds):
            if artifact.name not in wanted.values() and (everything or is_final(artifact)):
                wanted.setdefault(file_name(artifact), artifact.name)
    for file, artifact_name in wanted.items():
        async for step in train.download_steps(artifact_name, out / file):
            view.show_transfer(file, step)
    return [out / file for file in wanted]
