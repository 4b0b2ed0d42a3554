"""What became of every file of the data, and why."""

from collections import Counter
from collections.abc import AsyncGenerator
from typing import Annotated

import typer
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.resources import resource_name
from ltxtrain_client.cli.session import Json, Suite, open_suite, run, settings_of
from ltxtrain_client.cli.show import print_table
from ltxtrain_client.plain import plain
from ltxtrain_client.progress import print_json
from ltxtrain_client.words import word


def report(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="jobs/ID (or the ID alone), datasets/ID or trainingSets/ID.")],
    json_lines: Json = False,
) -> None:
    """Say of every file and clip whether it was kept, changed or left out, and why. Works for failed ones too."""
    run(_report(settings_of(context), resource_name(name), json_lines))


async def _report(settings: ClientSettings, name: str, json_lines: bool) -> None:
    async with open_suite(settings) as suite:
        for resource in await _resources(suite, name):
            lines = [line async for line in _lines(suite, resource)]
            if json_lines:
                for line in lines:
                    print_json({"resource": resource, "line": plain(line)})
            else:
                _print_section(resource, lines, await _suggestions(suite, resource))


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


def _print_section(name: str, lines: list[ReportLine], suggestions: list[str]) -> None:
    counts = Counter(_outcome(line) for line in lines)
    print(f"{name}: " + (", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "no lines yet"))
    rows = [
        (
            _outcome(line),
            line.path,
            " ".join(word(ReportReason.DESCRIPTOR, reason).upper() for reason in line.reasons),
            line.description,
        )
        for line in lines
    ]
    if rows:
        print_table(("OUTCOME", "PATH", "REASONS", "DETAIL"), rows)
    for suggestion in suggestions:
        print(f"  {suggestion}")
    print()


def _outcome(line: ReportLine) -> str:
    return word(Outcome.DESCRIPTOR, line.outcome).replace("kept_changed", "changed")
