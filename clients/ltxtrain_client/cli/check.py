"""`ltxtrain check`: everything about training data that can be known without a GPU."""

import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import EstimateJobResponse

from ltxtrain_client.as_json import as_json, error_as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.check import SHEET_FRAMES, DataCheck, check_data
from ltxtrain_client.cli.data import GivenData, Validation, read_data
from ltxtrain_client.cli.faults import with_hints
from ltxtrain_client.cli.report import print_data_report
from ltxtrain_client.cli.session import Exit, Json, command_line, fail, run, settings_of
from ltxtrain_client.cli.sheet_file import STDIN, Settings
from ltxtrain_client.cli.submit import estimate_lines, read_filled
from ltxtrain_client.event_text import describe_error
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.quantities import duration_text
from ltxtrain_client.sheet import Sheet
from ltxtrain_client.suite import Suite, open_suite
from ltxtrain_client.view import View


def check(
    context: typer.Context,
    data: Annotated[
        list[str],
        typer.Argument(
            help="A zip, a folder, videos, a URL or datasets/ID; then, optionally, the parameter sheet (.json or -).",
            metavar="DATA",
        ),
    ],
    validation: Validation = None,
    settings: Settings = None,
    out: Annotated[Path, typer.Option(help="Folder for the contact sheet.", file_okay=False)] = Path("."),
    show: Annotated[bool, typer.Option("--open", help="Open the contact sheet in a browser.")] = False,
    json_lines: Json = False,
) -> None:
    """Check training data without a GPU: what would be trained on, what not and why, and what would help."""
    *paths, last = data
    sheet = Path(last) if last.endswith(".json") or Path(last) == STDIN else None
    if sheet is None:
        paths.append(last)
    if not paths:
        raise fail(Exit.INVALID, f"Give the training data before the sheet: ltxtrain check clips/ {last}")
    client = settings_of(context)
    view = make_view(json_lines=json_lines)
    given = read_data(paths, validation or [])
    if (local := given.local()) is not None and not json_lines:
        print(local.summary(), flush=True)
    filled = run(read_filled(client, sheet, settings or [], given.announce))
    found, page = run(_check(client, filled, given, out, view))
    asked = [*(settings or []), *found.chosen]
    again = _submit_command(client, sheet, asked, found)
    trial = None
    if found.trial is not None:
        trial = _submit_command(client, sheet, [*asked, *found.trial.settings], found)
    if json_lines:
        print_json(_as_json(found, page, again, trial))
    else:
        _print(found, page, again, trial)
    if show and page is not None:
        webbrowser.open(page.resolve().as_uri())
    if found.error is not None:
        raise typer.Exit(Exit.FAILED)


async def _check(
    client: ClientSettings, sheet: Sheet, given: GivenData, out: Path, view: View
) -> tuple[DataCheck, Path | None]:
    """Run the check and download the contact sheet."""
    async with open_suite(client) as suite:
        found = await with_hints(check_data(suite, sheet, given.files, view))
        return found, await _contact_sheet(suite, found, out)


async def _contact_sheet(suite: Suite, found: DataCheck, out: Path) -> Path | None:
    if not found.contact_sheet or found.training_set is None:
        return None
    path = out / f"contact-sheet-{found.training_set.name.rpartition('/')[2][:8]}.html"
    async for _ in suite.download_steps(found.contact_sheet, path):
        pass
    return path


def _submit_command(client: ClientSettings, sheet: Path | None, settings: Sequence[str], found: DataCheck) -> str:
    """Command that starts the job on what is on the server already."""
    changes = [word for setting in settings for word in ("--set", setting)]
    for index, entry in enumerate(found.spec.validation):
        changes += ["--set", f"validation[{index}].video_url={entry.video_url}"]
    sheets = [] if sheet is None else [sheet]
    return command_line(client, "submit", *sheets, "--data", found.dataset.name, *changes, "--watch")


def _print(found: DataCheck, page: Path | None, again: str, trial: str | None) -> None:
    print()
    if found.known:
        print(f"Sent and looked into before: it is {found.dataset.name}.")
    for setting in found.chosen:
        keep = f"--set number_of_frames={SHEET_FRAMES} keeps the default"
        print(f"{found.chosen_because}: fitted with {setting.replace('=', ' = ')} instead; {keep}.")
    lines = {found.dataset.name: [*found.dataset_report]}
    if found.validation_dataset is not None:
        lines[found.validation_dataset.name] = [*found.validation_report]
    suggestions: dict[str, list[str]] = {}
    if found.training_set is not None:
        lines[found.training_set.name] = [*found.training_report]
        suggestions[found.training_set.name] = [*found.training_set.report.suggestions]
    print_data_report(lines, suggestions, brief=True)
    if found.estimate is not None:
        print("\n".join(estimate_lines(found.estimate)) + "\n")
    if page is not None:
        print(f"Contact sheet: {page}")
    if found.error is None:
        _print_next(found, again, trial)
    else:
        # The report above names the clips.
        reason, *_ = describe_error(found.error).splitlines()
        print(f"This data cannot be trained on: {reason}", file=sys.stderr)


def _print_next(found: DataCheck, again: str, trial: str | None) -> None:
    """The commands to go on with; on a CPU each with its time, and last the one that ends soon."""
    slow = found.estimate is not None and found.estimate.on_cpu
    print(f"To start the job on this data{_time(found.estimate) if slow else ''}: {again}")
    if found.trial is not None:
        print(f"To try it out without a GPU{_time(found.trial.estimate)}: {trial}")
    sys.stdout.flush()


def _time(estimate: EstimateJobResponse | None) -> str:
    if estimate is None:
        return ""
    return f" ({duration_text(estimate.seconds_low)} to {duration_text(estimate.seconds_high)})"


def _as_json(found: DataCheck, page: Path | None, again: str, trial: str | None) -> dict[str, object]:
    parts = {
        "dataset": found.dataset,
        "validation_dataset": found.validation_dataset,
        "training_set": found.training_set,
        "estimate": found.estimate,
    }
    reports = {
        "dataset_report": found.dataset_report,
        "validation_report": found.validation_report,
        "training_report": found.training_report,
    }
    return {
        **{name: None if part is None else as_json(part) for name, part in parts.items()},
        **{name: [as_json(line) for line in lines] for name, lines in reports.items()},
        "error": None if found.error is None else error_as_json(found.error),
        "contact_sheet": None if page is None else str(page),
        "known": found.known,
        "chosen": list(found.chosen),
        "chosen_because": found.chosen_because,
        "submit": again if found.error is None else None,
        "submit_trial": trial,
    }
