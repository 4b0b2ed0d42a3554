"""`ltxtrain submit` and `estimate`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import BasePrecision, ContinueFrom, EstimateJobResponse, Job

from ltxtrain_client.as_json import as_json, error_as_json
from ltxtrain_client.channel import ClientSettings
from ltxtrain_client.cli.completion import job_names
from ltxtrain_client.cli.continuing import Labels, RequestId, Source, WebhookUrl, Weights, continuation, labels_of
from ltxtrain_client.cli.data import Data, Validation, read_data
from ltxtrain_client.cli.faults import joined, with_hints, without_faults_of
from ltxtrain_client.cli.follow import PATIENCE_SECONDS, Patience, follow_to_end
from ltxtrain_client.cli.resources import job_name
from ltxtrain_client.cli.session import Exit, Json, fail, note, run, settings_of
from ltxtrain_client.cli.sheet_file import Settings, SheetFile, read_sheet
from ltxtrain_client.cli.show import indented
from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import CallError, InvalidArgument, NotFound
from ltxtrain_client.event_text import time_text, title
from ltxtrain_client.progress import make_view, print_json
from ltxtrain_client.quantities import price_text, size_text
from ltxtrain_client.sheet import Sheet, SheetInvalid, continues_clips, format_sheet, sheet_of_job
from ltxtrain_client.sheet_files import SheetFiles, stand_in
from ltxtrain_client.suite import open_suite
from ltxtrain_client.view import View


def submit(
    context: typer.Context,
    sheet: SheetFile = None,
    data: Data = None,
    validation: Validation = None,
    like: Annotated[
        str | None,
        typer.Option(
            help="Start from the sheet and the data of this job, changed by --set.",
            metavar="JOB",
            autocompletion=job_names,
        ),
    ] = None,
    continue_from: Source = None,
    weights: Weights = False,
    settings: Settings = None,
    name: Annotated[str, typer.Option(help="Name for people; files are downloaded to a folder of it.")] = "",
    label: Labels = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show progress until the job ends.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Watch, then download the results to this folder.", file_okay=False)
    ] = None,
    validate_only: Annotated[
        bool, typer.Option("--validate-only", help="Check the sheet and show it with every default; start nothing.")
    ] = False,
    request_id: RequestId = None,
    webhook: WebhookUrl = "",
    patience: Patience = PATIENCE_SECONDS,
    json_lines: Json = False,
) -> None:
    """Start a job from a parameter sheet."""
    origin = continuation(continue_from, weights)
    if origin is not None and like is not None:
        raise fail(Exit.INVALID, "Give --continue-from or --like, not both.")
    if sheet is None and not data and not settings and like is None and origin is None:
        raise fail(Exit.INVALID, "Give a sheet, training data, or both: ltxtrain submit job.json --data clips.zip")
    client = settings_of(context)
    view = make_view(json_lines=json_lines)
    given = read_data(data or [], validation or [])
    base = _base(client, sheet, like, data, validation)
    filled = run(read_filled(client, base, settings or [], given.announce, origin))
    if validate_only:
        _show_checked(run(_validate(client, filled, origin, webhook)), json_lines)
        return
    words = {"display_name": name, "labels": labels_of(label), "webhook_url": webhook}
    job = run(_submit(client, filled, given.files, request_id, view, words, origin))
    if json_lines:
        print_json({"job": as_json(job)})
    else:
        print(job.name, flush=True)
    if watch or out is not None:
        raise typer.Exit(
            follow_to_end(client, job.name, view, out=out, json_lines=json_lines, patience_seconds=patience)
        )


def _base(
    client: ClientSettings,
    sheet: Path | None,
    like: str | None,
    data: Sequence[str] | None,
    validation: Sequence[Path] | None,
) -> Path | dict[str, Any] | None:
    """The sheet that settings change: a file, the sheet of an earlier job, or none."""
    if like is None:
        return sheet
    if sheet is not None:
        raise fail(Exit.INVALID, "Give a sheet or --like, not both.")
    return run(_sheet_of(client, job_name(like), data or [], validation or []))


async def _sheet_of(
    client: ClientSettings, name: str, data: Sequence[str], validation: Sequence[Path]
) -> dict[str, Any]:
    """The sheet of a job, with its datasets where nothing else is given in their place."""
    async with open_suite(client) as suite:
        job = await suite.train.get_job(name)
        if continues_clips(job):
            raise fail(
                Exit.INVALID, f"{name} trained nothing: it continued clips. Its LoRA is {job.continue_from.artifact}."
            )
        document = sheet_of_job(job)
        if data:
            document.pop("dataset", None)
        needed = {"data": document.get("dataset"), "validation": job.validation_dataset if not validation else None}
        for option, dataset in needed.items():
            try:
                if dataset:
                    await suite.ingest.get_dataset(dataset)
            except NotFound as error:
                text = f"{dataset} of {title(name, job.display_name)} was deleted. Give its files with --{option}."
                raise fail(Exit.REFUSED, text, details=error_as_json(error) | {"message": text}) from None
    return document


def estimate(
    context: typer.Context, sheet: SheetFile = None, settings: Settings = None, json_lines: Json = False
) -> None:
    """Estimate the time, memory and price of a job; starts nothing and needs no data."""
    client = settings_of(context)
    filled = run(read_filled(client, sheet, settings or [], stand_in))
    answer = run(_estimate(client, filled))
    if json_lines:
        print_json(as_json(answer))
    else:
        print("\n".join(estimate_lines(answer)))


async def read_filled(
    client: ClientSettings,
    path: Path | dict[str, Any] | None,
    settings: Sequence[str],
    stand_for_files: Callable[[ExtendPrefixSpec], None],
    origin: ContinueFrom | None = None,
) -> Sheet:
    """Read the sheet (a file, or the JSON itself) and put placeholders for files into it.

    Raises SheetInvalid, with the service's violations merged in, when it is invalid.
    """
    try:
        sheet = read_sheet(path, settings)
        stand_for_files(sheet.spec)
        return sheet
    except SheetInvalid as error:
        if error.sheet is None:
            raise
        try:
            stand_for_files(error.sheet.spec)
            await _validate(client, error.sheet, origin)
        except InvalidArgument as more:
            raise joined(error, more) from None
        except (CallError, SheetInvalid):
            raise error from None
        raise


async def _validate(client: ClientSettings, sheet: Sheet, origin: ContinueFrom | None, webhook: str = "") -> Job:
    async with open_suite(client) as suite:
        checked = suite.train.validate(sheet.spec, sheet.options, continue_from=origin, webhook_url=webhook)
        return await with_hints(checked)


async def _submit(
    client: ClientSettings,
    sheet: Sheet,
    files: SheetFiles,
    request_id: str | None,
    view: View,
    words: dict[str, Any],
    origin: ContinueFrom | None,
) -> Job:
    """`words`: name, labels and webhook of the job, as the client takes them."""
    async with open_suite(client) as suite:
        if files.fields:
            # Before gigabytes are sent for nothing.
            checked = suite.train.validate(sheet.spec, sheet.options, continue_from=origin, **words)
            await without_faults_of(files.fields, checked)
            if files.data is not None:
                note(files.data.summary())
            with view:
                await files.upload(suite.ingest, sheet.spec, view)
        made = suite.train.submit(sheet.spec, sheet.options, continue_from=origin, request_id=request_id, **words)
        return await with_hints(made)


async def _estimate(client: ClientSettings, sheet: Sheet) -> EstimateJobResponse:
    async with open_suite(client) as suite:
        return await with_hints(suite.train.estimate(sheet.spec, sheet.options))


def _show_checked(job: Job, json_lines: bool) -> None:
    document = format_sheet(job.effective_spec.extend_prefix, job.options)
    if json_lines:
        print_json(document)
    else:
        print(f"The sheet is valid. With every default:\n{indented(document)}")


def estimate_lines(answer: EstimateJobResponse) -> list[str]:
    lines = [
        "gpu       this suite has none, and its model needs one: what follows is said of a GPU"
    ] * answer.gpu_missing
    lines += [
        f"time      {time_text(answer)}" + (" on the CPU: this suite has no GPU" if answer.on_cpu else ""),
        f"memory    {size_text(answer.peak_memory_bytes)} "
        + ("of the machine's memory" if answer.on_cpu else "on each GPU")
        + (f", each clip shared by {answer.gpus_per_clip}" if answer.gpus_per_clip > 1 else ""),
        f"price     {price_text(answer.billable_units, answer.price)}",
        f"clip      {answer.tokens_per_clip} video tokens"
        + (f", {answer.audio_tokens_per_clip} audio tokens" if answer.audio_tokens_per_clip else ""),
    ]
    for plan in answer.card_plans:
        how = word(BasePrecision.DESCRIPTOR, plan.base_precision)
        if plan.streamed_blocks:
            how += f", {plan.streamed_blocks} blocks in {size_text(plan.host_bytes)} of host memory"
        lines.append(f"{plan.card_gib:2d} GB     {how if plan.fits else 'too small'}")
    if answer.HasField("total_samples"):
        done, total = answer.cached_samples, answer.total_samples
        lines.append(
            f"encoded   {done} of {total} samples already" if done else "encoded   nothing yet: the job does it"
        )
    return lines
