"""From a sheet and local files to a running job."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from ltxtrain.v1.train_pb2 import EstimateJobResponse, Job

from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.follow import PATIENCE_SECONDS, Patience, follow_to_end
from ltxtrain_client.cli.session import Exit, Json, Suite, fail, open_suite, run, settings_of
from ltxtrain_client.cli.sheet_file import Settings, SheetFile, read_sheet
from ltxtrain_client.cli.show import indented
from ltxtrain_client.errors import InvalidArgument, Problem, SheetInvalid
from ltxtrain_client.lines import duration_text, size_text
from ltxtrain_client.plain import plain
from ltxtrain_client.progress import View, make_view, print_json
from ltxtrain_client.sheet import Sheet, format_sheet

# Stands for a file that is not uploaded yet while the rest of the spec is checked.
PENDING_UPLOAD = "upload:uploads/" + "0" * 32


def submit(
    context: typer.Context,
    sheet: SheetFile = None,
    data: Annotated[
        Path | None, typer.Option(help="Upload this zip as the training data.", exists=True, dir_okay=False)
    ] = None,
    validation: Annotated[
        list[Path] | None,
        typer.Option(
            help="Upload this clip for the next validation entry; may be repeated.", exists=True, dir_okay=False
        ),
    ] = None,
    settings: Settings = None,
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show progress until the job ends.")] = False,
    out: Annotated[Path | None, typer.Option(help="Watch, then download the results here.", file_okay=False)] = None,
    validate_only: Annotated[bool, typer.Option("--validate-only", help="Check it, show it, start nothing.")] = False,
    request_id: Annotated[str | None, typer.Option(help="A UUID: repeating the command starts no second job.")] = None,
    patience: Patience = PATIENCE_SECONDS,
    json_lines: Json = False,
) -> None:
    """Start a job from a parameter sheet."""
    if sheet is None and data is None and not settings:
        raise fail(Exit.INVALID, "Give a sheet, training data, or both: ltxtrain submit job.json --data clips.zip")
    client = settings_of(context)
    view = make_view(json_lines=json_lines)
    filled = run(_read(sheet, settings or [], data, validation or []))
    if validate_only:
        _show_checked(run(_validate(client, filled)), json_lines)
        return
    job = run(_submit(client, filled, data, validation or [], request_id, view))
    if json_lines:
        print_json({"job": plain(job)})
    else:
        print(job.name, flush=True)
    if watch or out is not None:
        raise typer.Exit(
            follow_to_end(client, job.name, view, out=out, json_lines=json_lines, patience_seconds=patience)
        )


def estimate(
    context: typer.Context, sheet: SheetFile = None, settings: Settings = None, json_lines: Json = False
) -> None:
    """What a job would take in time, memory and money; starts nothing."""
    filled = run(_read(sheet, settings or [], None, []))
    answer = run(_estimate(settings_of(context), filled))
    if json_lines:
        print_json(plain(answer))
    else:
        print("\n".join(_estimate_lines(answer)))


async def _read(path: Path | None, settings: Sequence[str], data: Path | None, validation: Sequence[Path]) -> Sheet:
    """The sheet, with PENDING_UPLOAD wherever a local file will be. Raises SheetInvalid."""
    sheet = read_sheet(path, settings)
    if data is not None:
        if sheet.spec.dataset:
            raise SheetInvalid([Problem("dataset", "cannot be given together with --data")])
        sheet.spec.training_data_url = PENDING_UPLOAD
    for index, _ in enumerate(validation):
        if index == len(sheet.spec.validation):
            sheet.spec.validation.add()
        sheet.spec.validation[index].video_url = PENDING_UPLOAD
    return sheet


async def _validate(client: ClientSettings, sheet: Sheet) -> Job:
    async with open_suite(client) as suite:
        return await suite.train.validate(sheet.spec, sheet.options)


async def _submit(
    client: ClientSettings,
    sheet: Sheet,
    data: Path | None,
    validation: Sequence[Path],
    request_id: str | None,
    view: View,
) -> Job:
    async with open_suite(client) as suite:
        if data is not None or validation:
            await _check_before_upload(suite, sheet)
            with view:
                if data is not None:
                    sheet.spec.training_data_url = await _upload(suite, data, view)
                for entry, path in zip(sheet.spec.validation, validation, strict=False):
                    entry.video_url = await _upload(suite, path, view)
        return await suite.train.submit(sheet.spec, sheet.options, request_id=request_id)


async def _check_before_upload(suite: Suite, sheet: Sheet) -> None:
    """Raises InvalidArgument for what is wrong beside the files, before gigabytes are sent in vain."""
    try:
        await suite.train.validate(sheet.spec, sheet.options)
    except InvalidArgument as error:
        fields = [violation.field for violation in error.violations]
        if not fields or not all(field.endswith(("training_data_url", "video_url")) for field in fields):
            raise


async def _upload(suite: Suite, path: Path, view: View) -> str:
    upload = await suite.ingest.prepare_upload(path)
    async for step in upload.send():
        view.show_transfer(path.name, step)
    return upload.url


async def _estimate(client: ClientSettings, sheet: Sheet) -> EstimateJobResponse:
    async with open_suite(client) as suite:
        return await suite.train.estimate(sheet.spec, sheet.options)


def _show_checked(job: Job, json_lines: bool) -> None:
    document = format_sheet(job.effective_spec, job.options)
    if json_lines:
        print_json(document)
    else:
        print(f"The sheet is valid. With every default:\n{indented(document)}")


def _estimate_lines(answer: EstimateJobResponse) -> list[str]:
    lines = [
        f"time      {duration_text(answer.seconds_low)} to {duration_text(answer.seconds_high)}",
        f"memory    {size_text(answer.peak_memory_bytes)} on each GPU",
        f"price     {answer.price_usd:.2f} USD ({answer.billable_units} units)",
        f"clip      {answer.tokens_per_clip} video tokens"
        + (f", {answer.audio_tokens_per_clip} audio tokens" if answer.audio_tokens_per_clip else ""),
    ]
    if answer.HasField("total_samples"):
        lines.append(f"encoded   {answer.cached_samples} of {answer.total_samples} samples already")
    return lines
