"""`ltxtrain jobs`, `job`, `cancel` and `delete`."""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Stage, State

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.resources import (
    cancel_resource,
    check_unused,
    delete_resource,
    get_resource,
    job_name,
    resource_name,
)
from ltxtrain_client.cli.session import Exit, Json, fail, run, settings_of
from ltxtrain_client.cli.show import indented, print_named, print_pairs, print_table, time_text
from ltxtrain_client.enum_words import word, words
from ltxtrain_client.errors import from_status
from ltxtrain_client.event_text import describe_error, measure, origin_text, stage_word, state_word, title, waiting_text
from ltxtrain_client.outputs import file_name, is_result
from ltxtrain_client.progress import print_json
from ltxtrain_client.quantities import price_text, size_text
from ltxtrain_client.sheet import format_sheet, spec_of
from ltxtrain_client.suite import open_suite

STATES = tuple(words(State.DESCRIPTOR))
_UNITS = {
    Stage.STAGE_INGEST: "clips",
    Stage.STAGE_PREPROCESS: "clips",
    Stage.STAGE_ENCODE: "clips",
    Stage.STAGE_TRAIN: "steps",
    Stage.STAGE_PREVIEW: "steps",
}
Name = Annotated[
    str,
    typer.Argument(help="jobs/ID (or the ID alone), datasets/ID or trainingSets/ID.", autocompletion=job_names),
]

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation; required without a terminal.")]


def _states(texts: Sequence[str]) -> list[str]:
    """Names of enum values for words. Raises BadParameter when a word is unknown."""
    unknown = [text for text in texts if text not in STATES]
    if unknown:
        raise typer.BadParameter(f"{', '.join(unknown)}: a state is one of {', '.join(STATES)}")
    return [f"STATE_{text.upper()}" for text in texts]


def jobs(
    context: typer.Context,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help=f"Only jobs in this state: {', '.join(STATES)}; may be repeated.",
            autocompletion=lambda: list(STATES),
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY[=VALUE]", help="Only jobs with this label; may be repeated, all have to match."),
    ] = None,
    text: Annotated[str, typer.Option(help="Only jobs whose name holds this text.")] = "",
    limit: Annotated[int, typer.Option(help="Maximum number of jobs.", min=1)] = 50,
    json_lines: Json = False,
) -> None:
    """List jobs, newest first."""
    found = run(_list(settings_of(context), _states(state or []), label or [], text, limit))
    if json_lines:
        for item in found:
            print_json(as_json(item))
        return
    rows = [
        (
            item.name,
            item.display_name,
            state_word(item.lifecycle.state),
            _where(item),
            time_text(item.lifecycle.create_time),
            from_status(item.lifecycle.error).reason if item.lifecycle.HasField("error") else "",
        )
        for item in found
    ]
    print_named(("JOB", "NAME", "STATE", "STAGE", "CREATED", "REASON"), rows)


async def _list(
    settings: ClientSettings, states: Sequence[str], labels: Sequence[str], text: str, limit: int
) -> list[Job]:
    found: list[Job] = []
    async with open_suite(settings) as suite:
        async for item in suite.train.list_jobs(states, min(limit, 500), labels=labels, text=text):
            found.append(item)
            if len(found) == limit:
                break
    return found


def job(
    context: typer.Context,
    job: Annotated[str, typer.Argument(help="jobs/ID, or the ID alone.", autocompletion=job_names)],
    json_lines: Json = False,
) -> None:
    """Show a job: its state, parameters and files."""
    item, made = run(_get(settings_of(context), job_name(job)))
    if json_lines:
        print_json(as_json(item) | {"artifacts": [as_json(artifact) for artifact in made]})
        return
    lifecycle = item.lifecycle
    print_pairs(
        [
            ("job", item.name),
            ("name", item.display_name),
            ("labels", ", ".join(f"{key}={value}" for key, value in sorted(item.labels.items()))),
            ("made by", lifecycle.created_by),
            ("state", state_word(lifecycle.state)),
            ("stage", _where(item)),
            ("queue", waiting_text(item.waiting) if item.HasField("waiting") else ""),
            ("created", time_text(lifecycle.create_time)),
            ("started", time_text(lifecycle.start_time)),
            ("ended", time_text(lifecycle.end_time)),
            ("checkpoint", f"step {item.checkpoint_step}" if item.checkpoint_step else ""),
            ("continues", origin_text(item)),
            ("asked for", " and ".join(_asked(item))),
            ("stored", size_text(item.stored_bytes) if item.stored_bytes else ""),
            ("dataset", item.dataset),
            ("validation", item.validation_dataset),
            ("samples", item.training_set),
            ("price", price_text(item.billable_units, item.price) if item.billable_units else ""),
            ("error", describe_error(from_status(lifecycle.error)) if lifecycle.HasField("error") else ""),
        ]
    )
    print(indented(format_sheet(spec_of(item.effective_spec), item.options)))
    if made:
        print()
        print_table(("FILE", "KIND", "SIZE", "DOWNLOADED BY"), _artifact_rows(item, made))


def _artifact_rows(item: Job, made: Sequence[Artifact]) -> list[tuple[str, str, str, str]]:
    """Rows of the file table; files that `fetch` downloads come first."""
    return [
        (
            file_name(artifact),
            word(Artifact.Kind.DESCRIPTOR, artifact.kind).replace("_", " "),
            size_text(artifact.blob.size_bytes),
            "fetch" if is_result(artifact, item) else "fetch --all",
        )
        for artifact in sorted(made, key=lambda artifact: is_result(artifact, item), reverse=True)
    ]


async def _get(settings: ClientSettings, name: str) -> tuple[Job, list[Artifact]]:
    """A job and its artifacts."""
    async with open_suite(settings) as suite:
        item = await suite.train.get_job(name)
        return item, [artifact async for artifact in suite.train.list_artifacts(name)]


def cancel(context: typer.Context, name: Name, json_lines: Json = False) -> None:
    """Cancel a job, dataset or training set. A job keeps the LoRA of the step that it was at."""

    async def work() -> None:
        async with open_suite(settings_of(context)) as suite:
            item = await cancel_resource(suite, resource_name(name))
        if json_lines:
            print_json(as_json(item))
        else:
            print(f"{title(item.name, item.display_name)} {state_word(item.lifecycle.state)}")

    run(work())


def delete(
    context: typer.Context,
    name: Name,
    yes: Yes = False,
    json_lines: Json = False,
) -> None:
    """Delete a job, dataset or training set that has ended, with its files in the object store."""
    full_name = resource_name(name)
    if not yes and not sys.stdin.isatty():
        raise fail(Exit.INVALID, f"{full_name} is not deleted: confirmation needs a terminal. Add --yes.")

    async def known() -> str:
        async with open_suite(settings_of(context)) as suite:
            found = await get_resource(suite, full_name)
            await check_unused(suite, full_name)
            return title(full_name, found.display_name)

    async def work() -> None:
        async with open_suite(settings_of(context)) as suite:
            await delete_resource(suite, full_name)

    shown = run(known())
    if not yes:
        # On stderr: stdout is for JSON.
        typer.confirm(f"Delete {shown} and its files for good?", abort=True, err=True)
    run(work())
    if json_lines:
        print_json({"deleted": full_name})
    else:
        print(f"{shown} deleted")


def _asked(item: Job) -> list[str]:
    flags = {"a checkpoint": item.checkpoint_requested, "previews": item.preview_requested}
    return [what for what, asked in flags.items() if asked]


def _where(item: Job) -> str:
    """Current stage, or the one in which the job ended early, with its progress."""
    if not item.stage or item.lifecycle.state == State.STATE_SUCCEEDED:
        return ""
    at = measure(item.stage, item.progress).text if item.HasField("progress") else ""
    unit = _UNITS.get(item.stage, "") if item.progress.total else ""
    return " ".join(filter(None, (stage_word(item.stage), at, unit)))
