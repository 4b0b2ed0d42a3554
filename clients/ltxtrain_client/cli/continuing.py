"""`ltxtrain retry`, `checkpoint` and `preview`, and options that commands which start jobs share."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import ContinueFrom, ContinueMode, Job

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.follow import PATIENCE_SECONDS, Patience, follow_to_end
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, fail, run, settings_of
from ltxtrain_client.event_text import state_word, title
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.suite import Suite, open_suite

Name = Annotated[str, typer.Argument(help="jobs/ID, or the ID alone.", autocompletion=job_names)]
Source = Annotated[
    str | None,
    typer.Option(
        help="Go on with the training of this job, exactly: --set number_of_steps=… says up to which step. "
        "What the sheet leaves out is that job's. One checkpoint of it: jobs/ID/artifacts/NAME.",
        metavar="JOB",
        autocompletion=job_names,
    ),
]
Weights = Annotated[
    bool,
    typer.Option(
        "--weights",
        help="With --continue-from: a new training, with settings of its own, from the LoRA's weights.",
    ),
]

Labels = Annotated[
    list[str] | None, typer.Option(metavar="KEY=VALUE", help="Label to find the job by; may be repeated.")
]
RequestId = Annotated[
    str | None, typer.Option(help="UUID that makes repeating the command safe: it starts no second job.")
]
WebhookUrl = Annotated[
    str,
    typer.Option(
        "--webhook", metavar="URL", help="Have a signed message sent here when the job has ended.", show_default=False
    ),
]


def labels_of(texts: list[str] | None) -> dict[str, str]:
    """The labels of options KEY=VALUE."""
    return {key: value for key, _, value in (text.partition("=") for text in texts or [])}


def continuation(source: str | None, weights: bool) -> ContinueFrom | None:
    """The message of the two options of `submit`. Raises typer.Exit for the second without the first."""
    if source is None:
        if weights:
            raise fail(Exit.INVALID, "--weights needs --continue-from JOB.")
        return None
    name, slash, rest = source.partition("/artifacts/")
    mode = ContinueMode.CONTINUE_MODE_WEIGHTS if weights else ContinueMode.CONTINUE_MODE_EXACT
    return ContinueFrom(source=job_name(name) + slash + rest, mode=mode)


def retry(
    context: typer.Context,
    job: Name,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the job ends.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Watch, then download the results to this folder.", file_okay=False)
    ] = None,
    patience: Patience = PATIENCE_SECONDS,
    webhook: WebhookUrl = "",
    json_lines: Json = False,
) -> None:
    """Go on with a failed or cancelled job from its last checkpoint, in a new job. Repeating it starts no other."""
    settings, view = settings_of(context), make_view(json_lines=json_lines)
    made = run(_call(settings, lambda suite: suite.train.retry_job(job_name(job), webhook_url=webhook)))
    if json_lines:
        print_json({"job": as_json(made)})
    else:
        step = made.continue_from.step
        start = f"step {step}" if step else "the beginning"
        print(f"{title(made.name, made.display_name)} {state_word(made.lifecycle.state)}, from {start}", flush=True)
    if watch or out is not None:
        raise typer.Exit(
            follow_to_end(settings, made.name, view, out=out, json_lines=json_lines, patience_seconds=patience)
        )


def checkpoint(context: typer.Context, job: Name, json_lines: Json = False) -> None:
    """Have the LoRA and the state of a training stored after the step that it is at."""
    asked = run(_call(settings_of(context), lambda suite: suite.train.checkpoint_job(job_name(job))))
    _show(asked, "a checkpoint", json_lines)


def preview(context: typer.Context, job: Name, json_lines: Json = False) -> None:
    """Have previews made after the step that a training is at."""
    asked = run(_call(settings_of(context), lambda suite: suite.train.preview_job(job_name(job))))
    _show(asked, "previews", json_lines)


def _show(job: Job, what: str, json_lines: bool) -> None:
    if json_lines:
        print_json(as_json(job))
    else:
        print(f"{title(job.name, job.display_name)}: {what} after the present step")


async def _call(settings: ClientSettings, call: Callable[[Suite], Awaitable[Job]]) -> Job:
    async with open_suite(settings) as suite:
        return await call(suite)
