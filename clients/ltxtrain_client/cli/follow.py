"""`ltxtrain watch`: show progress until the work ends; Ctrl-C asks whether to cancel it."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
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
from ltxtrain_client.errors import CallError
from ltxtrain_client.event_text import state_word, title
from ltxtrain_client.export import Exporter, run_info
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.quantities import duration_text, price_text
from ltxtrain_client.suite import Suite, open_suite
from ltxtrain_client.trackers import TrackerName, open_tracker
from ltxtrain_client.view import View
from ltxtrain_client.watch import Pace

RUNS = Path("runs")
PATIENCE_SECONDS = 300.0
Patience = Annotated[
    float, typer.Option(help="Stop watching after this many seconds without a message; the work goes on.")
]
_EXITS = {State.STATE_SUCCEEDED: Exit.SUCCEEDED, State.STATE_CANCELLED: Exit.CANCELLED}


@dataclass(frozen=True)
class Export:
    """Trackers that a job is also written to."""

    trackers: Sequence[TrackerName]
    folder: Path

    def words(self) -> list[object]:
        """Options that ask for it."""
        words: list[object] = [word for name in self.trackers for word in ("--to", name.value)]
        return words + (["--runs", self.folder] if words and self.folder != RUNS else [])


NO_EXPORT = Export((), RUNS)


@dataclass
class Cursor:
    """Sequence of the last event shown, and its resource as people know it; empty before the first event."""

    sequence: int = 0
    title: str = ""


def watch(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="jobs/ID (or the ID alone), datasets/ID or trainingSets/ID.", autocompletion=job_names),
    ],
    after: Annotated[int, typer.Option(help="Show events after this sequence; 0 shows all.", min=0)] = 0,
    out: Annotated[Path | None, typer.Option(help="Then download a job's results here.", file_okay=False)] = None,
    to: Annotated[
        list[TrackerName] | None,
        typer.Option(help="Also write a job's losses, measurements and previews to this experiment tracker."),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Folder of what trackers write on this machine.", file_okay=False)] = RUNS,
    patience: Patience = PATIENCE_SECONDS,
    json_lines: Json = False,
) -> None:
    """Show progress until the work ends. Leaving cancels nothing."""
    view = make_view(json_lines=json_lines)
    export = Export(list(dict.fromkeys(to or ())), runs)
    if export.trackers and not resource_name(name).startswith("jobs/"):
        raise typer.BadParameter("--to is for jobs: datasets and training sets have no losses and previews")
    raise typer.Exit(
        follow_to_end(
            settings_of(context),
            resource_name(name),
            view,
            after_sequence=after,
            out=out,
            export=export,
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
    export: Export = NO_EXPORT,
    json_lines: bool,
    patience_seconds: float,
) -> Exit:
    """Show events until the work ends, then download a job's files to `out`. Ctrl-C asks: cancel, leave or continue."""
    cursor = Cursor(after_sequence)
    pace = Pace(patience_seconds=patience_seconds)
    kept = [] if out is None else ["--out", out]
    kept += export.words()
    kept += [] if patience_seconds == PATIENCE_SECONDS else ["--patience", f"{patience_seconds:g}"]
    kept += ["--json"] if json_lines else []

    def say_how_to_resume(first: str) -> None:
        again = command_line(settings, "watch", name, "--after", cursor.sequence, *kept)
        stop = command_line(settings, "cancel", name)
        values = {"name": name, "after": cursor.sequence, "watch": again, "cancel": stop}
        note(f"{first}: {again}\nTo stop it: {stop}", resume=values)

    while True:
        try:
            ended = run_interruptible(_follow(settings, name, view, cursor, pace, export))
        except KeyboardInterrupt:
            choice = _asked(cursor.title or name)
            if choice == "leave":
                say_how_to_resume(f"{cursor.title or name} is not cancelled. To continue watching")
                return Exit.INTERRUPTED
            if choice == "cancel":
                run(_cancel(settings, name))
        except typer.Exit as error:
            if error.exit_code == Exit.UNREACHABLE:
                unknown = f"The state of {cursor.title or name} is unknown"
                say_how_to_resume(f"{unknown}; it resumes when the suite is back. To watch it then")
            raise
        else:
            if out is not None and isinstance(ended, Job):
                run(_fetch(settings, ended, out, view))
            _summarize(settings, ended, json_lines)
            return _EXITS.get(ended.lifecycle.state, Exit.FAILED)


async def _follow(
    settings: ClientSettings, name: str, view: View, cursor: Cursor, pace: Pace, export: Export
) -> Resource:
    async with open_suite(settings) as suite, AsyncExitStack() as stack:
        exporters = [
            await stack.enter_async_context(_exporter(suite, name, tracker, export.folder, fresh=not cursor.sequence))
            for tracker in export.trackers
        ]
        with view:
            async with aclosing(watch_resource(suite, name, cursor.sequence, pace)) as events:
                async for sequence, event in events:
                    if not cursor.title:
                        cursor.title = await _title(suite, name)
                    view.show(sequence, event)
                    for exporter in exporters:
                        await exporter.show(sequence, event)
                    cursor.sequence = sequence
        return await get_resource(suite, name)


async def _title(suite: Suite, name: str) -> str:
    """The resource as people know it; its name alone when the call fails, which the watch deals with."""
    with suppress(CallError):
        return title(name, (await get_resource(suite, name)).display_name)
    return name


@asynccontextmanager
async def _exporter(
    suite: Suite, name: str, tracker: TrackerName, folder: Path, *, fresh: bool
) -> AsyncIterator[Exporter]:
    run = run_info(await suite.train.get_job(name))
    exporter = Exporter(suite.train, await asyncio.to_thread(open_tracker, tracker, run, folder, fresh=fresh))
    try:
        yield exporter
    finally:
        await exporter.close()


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
