"""`ltxtrain fetch`: download a job's results."""

from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import State

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, command_line, fail, open_suite, run, settings_of
from ltxtrain_client.errors import from_status
from ltxtrain_client.event_text import describe_error
from ltxtrain_client.outputs import PAGES, file_name, is_result, result_files
from ltxtrain_client.progress import View, make_view
from ltxtrain_client.train import TrainClient


def fetch(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="jobs/ID, or the ID alone.", autocompletion=job_names)],
    out: Annotated[Path, typer.Option(help="Folder for the files.", file_okay=False)] = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and previews too.")] = False,
    json_lines: Json = False,
) -> None:
    """Download a job's files, checked by sha256. Files that are already there are not fetched again."""
    view = make_view(json_lines=json_lines)
    nothing = run(_fetch(settings_of(context), job_name(job), out, everything, view))
    if nothing is not None:
        raise fail(Exit.REFUSED, nothing)


async def _fetch(settings: ClientSettings, name: str, out: Path, everything: bool, view: View) -> str | None:
    """Reason that there was nothing to download; None after a download."""
    async with open_suite(settings) as suite:
        job = await suite.train.get_job(name)
        with view:
            if await fetch_files(suite.train, job, out, view, everything=everything):
                return None
        return await _why_nothing(settings, suite.train, job)


async def fetch_files(train: TrainClient, job: Job, out: Path, view: View, *, everything: bool = False) -> list[Path]:
    """Download a job's results and pages, or `everything`; returns the paths, which the view has shown."""
    wanted = result_files(job)
    if wanted or everything:
        kinds = () if everything else PAGES
        async for artifact in train.list_artifacts(job.name, kinds):
            if artifact.name not in wanted.values() and (everything or is_result(artifact, job)):
                wanted.setdefault(file_name(artifact), artifact.name)
    for file, artifact_name in wanted.items():
        async for step in train.download_steps(artifact_name, out / file):
            view.show_transfer(file, step)
    paths = [out / file for file in wanted]
    if paths:
        view.show_files(paths)
    return paths


async def left_behind(settings: ClientSettings, train: TrainClient, job: Job) -> str:
    """Sentence about the files of a job without results."""
    count = len([artifact async for artifact in train.list_artifacts(job.name)])
    if not count:
        return "It left no other files either."
    return (
        f"It left {count} other file{'' if count == 1 else 's'}: {command_line(settings, 'fetch', job.name, '--all')}"
    )


def what_cancelling_left(settings: ClientSettings, job: Job) -> str:
    """Phrase that says whether a cancelled job kept a LoRA."""
    step = job.checkpoint_step
    if job.output.lora_file:
        return f"with the LoRA of its checkpoint at step {step}: {command_line(settings, 'fetch', job.name)}"
    if step:
        return f"without a LoRA: that of its checkpoint at step {step} failed its checks"
    interval = job.options.checkpoint_interval
    return "before its first checkpoint" + (f" (checkpoint_interval {interval})" if interval else "")


async def _why_nothing(settings: ClientSettings, train: TrainClient, job: Job) -> str:
    left = await left_behind(settings, train, job)
    match job.lifecycle.state:
        case State.STATE_FAILED:
            return f"{job.name} failed: {describe_error(from_status(job.lifecycle.error))}\n{left}"
        case State.STATE_CANCELLED:
            return f"{job.name} was cancelled {what_cancelling_left(settings, job)}.\n{left}"
    waiting = command_line(settings, "watch", job.name)
    return f"{job.name} has no results yet. To wait for them: {waiting}\n{left}"
