"""`ltxtrain fetch`: download a job's results. `ltxtrain push`: publish its LoRA."""

import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import State

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, command_line, fail, run, settings_of
from ltxtrain_client.errors import OutputMissing, from_status
from ltxtrain_client.event_text import describe_error, title
from ltxtrain_client.outputs import PAGES, file_name, is_result, result_files
from ltxtrain_client.progress import files_text, make_view, print_json, print_line
from ltxtrain_client.publish import Published, PublishFailed, collect
from ltxtrain_client.publish import push as push_folder
from ltxtrain_client.suite import RemoteFile, Suite, open_suite
from ltxtrain_client.train import TrainClient
from ltxtrain_client.view import View


def fetch(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="jobs/ID (or the ID alone), trainingSets/ID, or one file: jobs/ID/artifacts/FILE, "
            "datasets/ID/clips/CLIP, trainingSets/ID/contact_sheet, trainingSets/ID/samples/SAMPLE/clip_preview.",
            metavar="NAME",
            autocompletion=job_names,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the files; default: the display name's, or this one.", file_okay=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Checkpoints and previews too.")] = False,
    urls: Annotated[
        bool, typer.Option("--url", help="Print URLs that serve the files for 15 minutes; download nothing.")
    ] = False,
    json_lines: Json = False,
) -> None:
    """Download a job's files, checked by sha256. Files that are already there are not fetched again."""
    client = settings_of(context)
    if urls:
        for file in run(_signed(client, name, everything)):
            print_line(json.dumps({"name": file.name, "url": file.download_url}) if json_lines else file.download_url)
        return
    view = make_view(json_lines=json_lines)
    if _is_job(name):
        nothing = run(_fetch(client, job_name(name), out, everything, view))
    else:
        nothing = run(_fetch_named(client, name, out or Path("."), view))
    if nothing is not None:
        raise fail(Exit.REFUSED, nothing)


def _is_job(name: str) -> bool:
    parts = name.strip("/").split("/")
    return len(parts) == 1 or (parts[0] == "jobs" and len(parts) == 2)


async def _fetch_named(settings: ClientSettings, name: str, out: Path, view: View) -> str | None:
    """Download files of a training set, or one file; returns the reason when there is none."""
    async with open_suite(settings) as suite:
        with view:
            paths = []
            for file in await _named_files(suite, name):
                path = out / file.file_name
                async for step in suite.download_steps(file.name, path):
                    view.show_transfer(file.file_name, step)
                paths.append(path)
            if paths:
                view.show_files(paths)
        return None if paths else f"{name} has no files yet."


async def _named_files(suite: Suite, name: str) -> list[RemoteFile]:
    """The contact sheet and archive of a training set, or one file. Raises BadParameter when it is neither."""
    parts = name.strip("/").split("/")
    if parts[0] == "trainingSets" and len(parts) == 2:
        made = await suite.preprocess.get_training_set(name)
        fields = [field for field in ("contact_sheet", "archive") if made.HasField(field)]
        return [await suite.remote_file(f"{name}/{field}") for field in fields]
    fewest = {"jobs": 4, "datasets": 4, "trainingSets": 3}.get(parts[0])
    if fewest is None or len(parts) < fewest:
        raise typer.BadParameter(_how_to_name(parts))
    return [await suite.remote_file(name)]


def _how_to_name(parts: Sequence[str]) -> str:
    """Advice for a name that stands for no file, by its parts."""
    if parts[0] == "datasets":
        # A dataset may be hundreds of gigabytes.
        return f"name one clip of it, datasets/ID/clips/CLIP: `ltxtrain datasets show {parts[-1]}` lists them"
    job = parts[1] if parts[0] == "jobs" else parts[0]
    return f"{'/'.join(parts)} names no file; one of a job is jobs/ID/artifacts/FILE: `ltxtrain job {job}` lists them"


async def _signed(settings: ClientSettings, name: str, everything: bool) -> list[RemoteFile]:
    async with open_suite(settings) as suite:
        if not _is_job(name):
            return await _named_files(suite, name)
        job = await suite.train.get_job(job_name(name))
        files = await wanted_files(suite.train, job, everything=everything)
        return [await suite.remote_file(artifact) for artifact in files.values()]


async def _fetch(settings: ClientSettings, name: str, out: Path | None, everything: bool, view: View) -> str | None:
    """Reason that there was nothing to download; None after a download."""
    async with open_suite(settings) as suite:
        job = await suite.train.get_job(name)
        with view:
            if await fetch_files(suite.train, job, out or folder_of(job), view, everything=everything):
                return None
        return await _why_nothing(settings, suite.train, job)


def folder_of(job: Job) -> Path:
    """The folder of a job's files: "drone-style" for "Drone style", the present one without a display name."""
    words = re.findall(r"\w+", job.display_name.casefold())
    return Path("-".join(words)[:80] or ".")


async def fetch_files(train: TrainClient, job: Job, out: Path, view: View, *, everything: bool = False) -> list[Path]:
    """Download a job's results and pages, or `everything`; returns the paths, which the view has shown."""
    wanted = await wanted_files(train, job, everything=everything)
    for file, artifact_name in wanted.items():
        async for step in train.download_steps(artifact_name, out / file):
            view.show_transfer(file, step)
    paths = [out / file for file in wanted]
    if paths:
        view.show_files(paths)
    return paths


async def wanted_files(train: TrainClient, job: Job, *, everything: bool) -> dict[str, str]:
    """Artifact name by file name of a job's results with its pages, or of `everything`."""
    wanted = result_files(job)
    if wanted or everything:
        kinds = () if everything else PAGES
        async for artifact in train.list_artifacts(job.name, kinds):
            if artifact.name not in wanted.values() and (everything or is_result(artifact, job)):
                wanted.setdefault(file_name(artifact), artifact.name)
    return wanted


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
    left, name = await left_behind(settings, train, job), title(job.name, job.display_name)
    match job.lifecycle.state:
        case State.STATE_FAILED:
            return f"{name} failed: {describe_error(from_status(job.lifecycle.error))}\n{left}"
        case State.STATE_CANCELLED:
            return f"{name} was cancelled {what_cancelling_left(settings, job)}.\n{left}"
    waiting = command_line(settings, "watch", job.name)
    return f"{name} has no results yet. To wait for them: {waiting}\n{left}"


def push(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="jobs/ID or the ID alone.", autocompletion=job_names)],
    repository: Annotated[
        str, typer.Argument(help="Repository of the hub, which is created if need be.", metavar="OWNER/NAME")
    ],
    private: Annotated[bool, typer.Option("--private", help="Create the repository for yourself alone.")] = False,
    license_name: Annotated[
        str | None,
        typer.Option(
            "--license", help="Licence that the card names.", show_default="that of LTX-2, which holds for its LoRAs"
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Put the files here to look at; publish nothing.", file_okay=False)
    ] = None,
    json_lines: Json = False,
) -> None:
    """Publish a job's LoRA on the Hugging Face hub, with a model card, settings, preview and ComfyUI workflow.

    HF_TOKEN (or `hf auth login`) says who you are. Paths of your machines and URLs of your data are left out.
    """
    try:
        published = run(_push(settings_of(context), job_name(name), repository, private, license_name, out))
    except (OutputMissing, PublishFailed) as error:
        raise fail(Exit.REFUSED, str(error)) from None
    if json_lines:
        print_json({"url": published.url, "files": list(published.files)})
    elif out is not None:
        print(files_text([out / file for file in published.files]))
    else:
        print(published.url)


async def _push(
    settings: ClientSettings, name: str, repository: str, private: bool, license_name: str | None, out: Path | None
) -> Published:
    async with open_suite(settings) as suite:
        job = await suite.train.get_job(name)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            return Published(url="", files=await collect(suite.train, job, out, license_name=license_name))
        with tempfile.TemporaryDirectory(prefix="ltxtrain-push-") as folder:
            files = await collect(suite.train, job, Path(folder), license_name=license_name)
            url = await push_folder(
                Path(folder), repository, private=private, message=f"LoRA of {title(job.name, job.display_name)}"
            )
            return Published(url=url, files=files)
