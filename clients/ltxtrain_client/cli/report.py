"""`ltxtrain report`: the outcome of every file and clip of the data, with reasons."""

from collections.abc import AsyncGenerator, Mapping, Sequence

import typer
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.jobs import Name
from ltxtrain_client.cli.resources import resource_name
from ltxtrain_client.cli.session import Json, run, settings_of
from ltxtrain_client.cli.show import print_table
from ltxtrain_client.enum_words import word
from ltxtrain_client.progress import print_json
from ltxtrain_client.report_summary import (
    headlines,
    line_word,
    outcome_summary,
    path_text,
    split_by_path,
    training_summary,
    worst_first,
)
from ltxtrain_client.suite import Suite, open_suite


def report(
    context: typer.Context,
    name: Name,
    json_lines: Json = False,
) -> None:
    """List every file and clip of the data with its outcome and the reasons. Works for failed work too."""
    run(show_report(settings_of(context), resource_name(name), json_lines))


async def show_report(settings: ClientSettings, name: str, json_lines: bool) -> None:
    async with open_suite(settings) as suite:
        found = {
            resource: [line async for line in _lines(suite, resource)] for resource in await _resources(suite, name)
        }
        if json_lines:
            for resource, lines in found.items():
                for line in lines:
                    print_json({"resource": resource, "line": as_json(line)})
            return
        suggestions = {resource: await _suggestions(suite, resource) for resource in found}
        trains = not name.startswith("jobs/") or bool((await suite.train.get_job(name)).dataset)
    print_data_report(found, suggestions, trains=trains)


async def _resources(suite: Suite, name: str) -> list[str]:
    """Resources with a report: a job's datasets and training set so far."""
    if not name.startswith("jobs/"):
        return [name]
    job = await suite.train.get_job(name)
    return [part for part in (job.dataset, job.validation_dataset, job.training_set) if part]


def _lines(suite: Suite, name: str) -> AsyncGenerator[ReportLine, None]:
    if name.startswith("datasets/"):
        return suite.ingest.list_dataset_report(name)
    return suite.preprocess.list_training_set_report(name)


async def _suggestions(suite: Suite, name: str) -> list[str]:
    if name.startswith("datasets/"):
        return []
    return list((await suite.preprocess.get_training_set(name)).report.suggestions)


def print_data_report(
    found: Mapping[str, list[ReportLine]],
    suggestions: Mapping[str, Sequence[str]],
    *,
    brief: bool = False,
    trains: bool = True,
) -> None:
    """Print headlines, then a section per resource; a summary first when there are a dataset and its training set.

    `brief` leaves out what Ingest kept, when the training set has a line about it. Openings that are continued and
    nothing else have no summary (`trains` is false).
    """
    for text in dict.fromkeys(text for lines in found.values() for text in headlines(lines)):
        typer.secho(f"WARNING: {text}\n", bold=True)
    fitted = {line.path for name, lines in found.items() if name.startswith("trainingSets/") for line in lines}
    dataset = next((lines for name, lines in found.items() if trains and name.startswith("datasets/")), [])
    for name, lines in found.items():
        if dataset and lines and name.startswith("trainingSets/"):
            print(f"{training_summary(dataset, lines)}\n")
    for name, lines in found.items():
        training, validation = lines, list[ReportLine]()
        if dataset and name.startswith("trainingSets/"):
            training, validation = split_by_path(lines, {line.path for line in dataset})
        print(
            f"{name}: {outcome_summary(training)}"
            + (f"; for validation {outcome_summary(validation)}" if validation else "")
        )
        told_later = fitted if brief and name.startswith("datasets/") else set()
        _print_lines([line for line in lines if _is_news(line) or line.path not in told_later])
        for suggestion in suggestions.get(name, ()):
            print(f"  {suggestion}")
        print()


def _is_news(line: ReportLine) -> bool:
    """Whether Ingest says of a clip what its training set does not repeat."""
    return line.outcome != Outcome.OUTCOME_KEPT or ReportReason.REPORT_REASON_CAPTION_CONFLICT in line.reasons


def _print_lines(lines: list[ReportLine]) -> None:
    rows = [
        (
            line_word(line) if line.path else "note",
            path_text(line.path) or "(all of the data)",
            " ".join(word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons),
            line.description,
        )
        for line in worst_first(lines)
        if not headlines([line])
    ]
    if rows:
        print_table(("OUTCOME", "PATH", "REASONS", "DETAIL"), rows)
