"""`ltxtrain report`: the outcome of every file and clip of the data, with reasons."""

from collections.abc import AsyncGenerator

import typer
from ltxtrain.v1.work_pb2 import ReportLine, ReportReason

from ltxtrain_client.as_json import as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.jobs import Name
from ltxtrain_client.cli.resources import resource_name
from ltxtrain_client.cli.session import Json, Suite, open_suite, run, settings_of
from ltxtrain_client.cli.show import print_table
from ltxtrain_client.enum_words import word
from ltxtrain_client.progress import print_json
from ltxtrain_client.report_summary import outcome_summary, outcome_word, split_by_path, training_summary, worst_first


def report(
    context: typer.Context,
    name: Name,
    json_lines: Json = False,
) -> None:
    """List every file and clip of the data with its outcome and the reasons. Works for failed work too."""
    run(_report(settings_of(context), resource_name(name), json_lines))


async def _report(settings: ClientSettings, name: str, json_lines: bool) -> None:
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
    _print_report(found, suggestions)


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


def _print_report(found: dict[str, list[ReportLine]], suggestions: dict[str, list[str]]) -> None:
    """Print a section per resource; for a job, a summary first."""
    dataset = next((lines for name, lines in found.items() if name.startswith("datasets/")), [])
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
        _print_lines(lines)
        for suggestion in suggestions[name]:
            print(f"  {suggestion}")
        print()


def _print_lines(lines: list[ReportLine]) -> None:
    rows = [
        (
            outcome_word(line.outcome) if line.path else "note",
            line.path or "(all of the data)",
            " ".join(word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons),
            line.description,
        )
        for line in worst_first(lines)
    ]
    if rows:
        print_table(("OUTCOME", "PATH", "REASONS", "DETAIL"), rows)
