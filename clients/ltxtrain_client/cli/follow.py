"""`ltxtrain watch`: show progress until the work ends; Ctrl-C asks whether to cancel it."""

import sys
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Lifecycle, State

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.fetch import fetch_files, left_behind, what_cancelling_left
from ltxtrain_client.cli.resources import Resource, cancel_resource, get_resource, resource_name, watch_resource
from ltxtrain_client.cli.session import Exit, Json, command_line, note, run, run_interruptible, settings_of
from ltxtrain_client.event_text import state_word, title
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.quantities import duration_text, price_text
from ltxtrain_client.suite import open_suite
from ltxtrain_client.view import View
from ltxtrain_client.watch import Pace

PATIENCE_SECONDS = 300.0
Patience = Annotated[
    float, typer.Option(help="Stop watching after this many seconds without a message; the work goes on.")
]
_EXITS = {State.STATE_SUCCEEDED: Exit.SUCCEEDED, State.STATE_CANCELLED: Exit.CANCELLED}


@dataclass
class Cursor:
    """Sequence of the last event shown."""

    sequence: int = 0


def watch(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="jobs/ID (or the ID alone), datasets/ID or trainingSets/ID.", autocompletion=job_names),
    ],
    after: Annotated[int, typer.Option(help="Show events after this sequence; 0 shows all.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Then download a job's results here.", file_okay=False)] = None,
    patience: Patience = PATIENCE_SECONDS,
    json_lines: Json = False,
) -> None:
    """Show progress until the work ends. Leaving cancels nothing."""
    view = make_view(json_lines=json_lines)
    raise typer.Exit(
        follow_to_end(
            settings_of(context),
            resource_name(name),
            view,
            after_sequence=after,
            out=out,
            json_lines=json_lines,
            patience_seconds=patience,
        )
    )


def follow_to_end(
    settings: ClientSettings,
    name: str,
    view: View,
    *,
    after_sequence: int = 0,
    out: Path | None,
    json_lines: bool,
    patience_seconds: float,
) -> Exit:
    """Show events until the work ends, then download a job's files to `out`. Ctrl-C asks: cancel, leave or continue."""
    cursor = Cursor(after_sequence)
    pace = Pace(patience_seconds=patience_seconds)
    kept = [] if out is None else ["--out", out]
    kept += [] if patience_seconds == PATIENCE_SECONDS else ["--patience", f"{patience_seconds:g}"]
    kept += ["--json"] if json_lines else []

    def say_how_to_resume(first: str) -> None:
        again = command_line(settings, "watch", name, "--after", cursor.sequence, *kept)
        stop = command_line(settings, "cancel", name)
        values = {"name": name, "after": cursor.sequence, "watch": again, "cancel": stop}
        note(f"{first}: {again}\nTo stop it: {stop}", resume=values)

    while True:
        try:
            ended = run_interruptible(_follow(settings, name, view, cursor, pace))
        except KeyboardInterrupt:
            choice = _asked(name)
            if choice == "leave":
                say_how_to_resume(f"{name} is not cancelled. To continue watching")
                return Exit.INTERRUPTED
            if choice == "cancel":
                run(_cancel(settings, name))
        except typer.Exit as error:
            if error.exit_code == Exit.UNREACHABLE:
                say_how_to_resume(
                    f"The state of {name} is unknown; it resumes when the suite is back. To watch it then"
                )
            raise
        else:
            if out is not None and isinstance(ended, Job):
                run(_fetch(settings, ended, out, view))
            _summarize(settings, ended, json_lines)
            return _EXITS.get(ended.lifecycle.state, Exit.FAILED)


async def _follow(settings: ClientSettings, name: str, view: View, cursor: Cursor, pace: Pace) -> Resource:
    async with open_suite(settings) as suite:
        with view:
            async with aclosing(watch_resource(suite, name, cursor.sequence, pace)) as events:
                async for sequence, event in events:
                    view.show(sequence, event)
                    cursor.sequence = sequence
        return await get_resource(suite, name)


async def _fetch(settings: ClientSettings, job: Job, out: Path, view: View) -> None:
    async with open_suite(settings) as suite:
        with view:
            if await fetch_files(suite.train, job, out, view):
                return
        note(f"No results to download. {await left_behind(settings, suite.train, job)}")


async def _cancel(settings: ClientSettings, name: str) -> None:
    async with open_suite(settings) as suite:
        await cancel_resource(suite, name)


def _asked(name: str) -> str:
    """Choice after Ctrl-C: "cancel", "leave" or "watch". Without a terminal the work is left running."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "leave"
    print(f"\nWatching {name} was interrupted; it is not cancelled.", file=sys.stderr)
    try:
        answer = typer.prompt("[c]ancel it, [l]eave it running, or continue to [w]atch?", default="l", err=True)
    except (KeyboardInterrupt, typer.Abort):
        return "leave"
    return {"c": "cancel", "w": "watch"}.get(str(answer).strip().lower()[:1], "leave")


def _summarize(settings: ClientSettings, ended: Resource, json_lines: bool) -> None:
    if json_lines:
        print_json({"ended": as_json(ended)})
        return
    text = f"{title(ended.name, ended.display_name)} {state_word(ended.lifecycle.state)}{_lasted(ended.lifecycle)}"
    if isinstance(ended, Job) and ended.billable_units:
        text += f", {price_text(ended.billable_units, ended.price)}"
    if isinstance(ended, Job) and ended.lifecycle.state == State.STATE_CANCELLED:
        text += f" {what_cancelling_left(settings, ended)}"
    print(text, flush=True)


def _lasted(lifecycle: Lifecycle) -> str:
    if not (lifecycle.HasField("start_time") and lifecycle.HasField("end_time")):
        return ""
    seconds = (lifecycle.end_time.ToDatetime() - lifecycle.start_time.ToDatetime()).total_seconds()
    return f" after {duration_text(seconds)}"
