"""What became of every file of the data, and why."""

from collections.abc import AsyncGenerator

import typer
from ltxtrain.v1.work_pb2 import ReportLine, ReportReason

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.jobs import Name
from ltxtrain_client.cli.resources import resource_name
from ltxtrain_client.cli.session import Json, Suite, open_suite, run, settings_of
from ltxtrain_client.cli.show import print_table
from ltxtrain_client.plain import plain
from ltxtrain_client.progress import print_json
from ltxtrain_client.tally import in_order, of_paths, outcome_word, tally, trained
from ltxtrain_client.words import word


def report(
    context: typer.Context,
    name: Name,
    json_lines: Json = False,
) -> None:
    """Say of every file and clip whether it was kept, changed or left out, and why. Works for failed ones too."""
    run(_report(settings_of(context), resource_name(name), json_lines))


async def _report(settings: ClientSettings, name: str, json_lines: bool) -> None:
    async with open_suite(settings) as suite:
        found = {
            resource: [line async for line in _lines(suite, resource)] for resource in await _resources(suite, name)
        }
        if json_lines:
            for resource, lines in found.items():
                for line in lines:
                    print_json({"resource": resource, "line": plain(line)})
            return
        suggestions = {resource: await _suggestions(suite, resource) for resource in found}
    _print_report(found, suggestions)


async def _resources(suite: Suite, name: str) -> list[str]:
    """What has a report of its own: for a job, what it made of its data so far."""
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
    """A section for each resource; of a job, first what all of it comes to."""
    dataset = next((lines for name, lines in found.items() if name.startswith("datasets/")), [])
    for name, lines in found.items():
        if dataset and lines and name.startswith("trainingSets/"):
            print(f"{trained(dataset, lines)}\n")
    for name, lines in found.items():
        training, validation = lines, list[ReportLine]()
        if dataset and name.startswith("trainingSets/"):
            training, validation = of_paths(lines, {line.path for line in dataset})
        print(f"{name}: {tally(training)}" + (f"; for validation {tally(validation)}" if validation else ""))
        _print_lines(lines)
        for suggestion in suggestions[name]:
            print(f"  {suggestion}")
        print()


def _print_lines(lines: list[ReportLine]) -> None:
    rows = [
        (
            outcome_word(line.outcome) if line.path else "note",
            line.path or "(the whole of the data)",
            " ".join(word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons),
            line.description,
        )
        for line in in_order(lines)
    ]
    if rows:
        print_table(("OUTCOME", "PATH", "REASONS", "DETAIL"), rows)
