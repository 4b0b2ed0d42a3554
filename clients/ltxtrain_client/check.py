"""Check training data without a GPU: ingest it, fit it to the sheet's geometry, and report."""

import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import EstimateJobResponse, JobOptions
from ltxtrain.v1.work_pb2 import Event, ReportLine, State

from ltxtrain_client.errors import CallError, from_status
from ltxtrain_client.sheet import UPLOAD, Sheet, format_sheet, name_datasets, parse_sheet
from ltxtrain_client.sheet_files import NO_FILES, SheetFiles
from ltxtrain_client.suite import Suite
from ltxtrain_client.view import SilentView, View
from ltxtrain_client.watch import TERMINAL

# A job on a CPU that may take longer gets a trial.
PATIENCE_SECONDS = 1800.0
# Made in this order until the trial is short: the fewest steps that a job may have, then the smallest pictures.
TRIAL_CHANGES: dict[str, str | int] = {"number_of_steps": 100, "resolution": "low", "validation_resolution": "low"}


# Of the request ids of checks: the same bytes are one dataset, however often they are checked.
CHECKS = uuid.UUID("5c7f5f64-2c3e-5b53-9a43-6c1f8d1b7f0e")
# A check chooses another length where less than this share of the clips that fit at some length have the default one.
ENOUGH_SHARE = 0.5
# Of the clips that fit at some length, the share that has to fit at the length that a check chooses: with the above,
# at least half as many again as at the default.
FITTING_SHARE = 0.75
SHEET_FRAMES, SHEET_PREFIX = 89, 9


@dataclass(frozen=True)
class Trial:
    """A job that a suite without a GPU does in reasonable time: what it has unlike the sheet, and its estimate."""

    settings: tuple[str, ...]
    """As `--set` takes them."""

    estimate: EstimateJobResponse


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """Result of check_data."""

    spec: ExtendPrefixSpec
    """The spec of a job on the checked data: training data and validation clips are on the server already."""

    options: JobOptions
    """Options of such a job."""

    dataset: Dataset
    """The ingested training data."""

    validation_dataset: Dataset | None = None
    """The ingested validation clips; None: the sheet has none, or the training data failed."""

    training_set: TrainingSet | None = None
    """The fitted data, with `report.suggestions` and `contact_sheet`; None: a dataset failed."""

    dataset_report: tuple[ReportLine, ...]
    """Lines of Ingest about every file of the training data."""

    validation_report: tuple[ReportLine, ...] = ()
    """Lines of Ingest about the validation clips."""

    training_report: tuple[ReportLine, ...] = ()
    """Lines of Preprocess about every clip and scene."""

    estimate: EstimateJobResponse | None = None
    """Time, memory and price of the job; None: the data cannot be trained on."""

    trial: Trial | None = None
    """A shorter job on the same data; None: the job is short, there is a GPU, or the sheet gives its steps."""

    known: bool = False
    """The same training data was sent and ingested before, and its dataset is used again."""

    chosen: tuple[str, ...] = ()
    """Settings that the check chose, as `--set` takes them: number_of_frames, where the sheet leaves it open and fewer
    than half of the clips are as long as its default. They are in `spec`."""

    chosen_because: str = ""
    """The numbers for which they were chosen, for people: clips with the default, and with what was chosen."""

    @property
    def error(self) -> CallError | None:
        """Reason that a job on this data would fail; None: it can be trained on."""
        for part in (self.dataset, self.validation_dataset, self.training_set):
            if part is not None and part.lifecycle.state != State.STATE_SUCCEEDED:
                return from_status(part.lifecycle.error)
        return None

    @property
    def contact_sheet(self) -> str:
        """Name of the contact sheet for Suite.remote_file; empty: there is none."""
        made = self.training_set
        return f"{made.name}/contact_sheet" if made is not None and made.HasField("contact_sheet") else ""


async def check_data(suite: Suite, sheet: Sheet, files: SheetFiles = NO_FILES, view: View | None = None) -> DataCheck:
    """Check the training data and validation clips of a sheet, uploading `files` in place of its URLs.

    Nothing is encoded and no model is loaded. Data that cannot be trained on is a result: see DataCheck.error.
    Raises InvalidArgument when the sheet is invalid, before anything is uploaded; TransferFailed when an upload fails.
    """
    spec = ExtendPrefixSpec()
    spec.CopyFrom(sheet.spec)
    files.announce(spec)
    await suite.train.validate(spec, sheet.options)
    view = view or SilentView()
    with view:
        await files.upload(suite.ingest, spec, view)
        found = await _ingested(suite, spec, sheet.options, view)
        if found.error is not None:
            return found
        fitted = await _fitted(suite, found, view)
        if (frames := _frames_that_fit(fitted)) is not None:
            found.spec.number_of_frames = frames
            because, fitted = _numbers(fitted, frames), await _fitted(suite, found, view)
            fitted = replace(fitted, chosen=(f"number_of_frames={frames}",), chosen_because=because)
    found = fitted
    if found.error is not None:
        return found
    estimate = await suite.train.estimate(found.spec, found.options)
    return replace(found, estimate=estimate, trial=await _trial(suite, found, estimate))


async def _fitted(suite: Suite, found: DataCheck, view: View) -> DataCheck:
    """The data fitted to the geometry of the spec."""
    made = await suite.preprocess.create_training_set(
        found.dataset.name,
        found.spec,
        validation_dataset=found.validation_dataset.name if found.validation_dataset is not None else "",
        on_skipped_clip=found.options.on_skipped_clip,
        fit_only=True,
    )
    await _show(suite.preprocess.watch_training_set(made.name), view)
    return replace(
        found,
        training_set=await suite.preprocess.get_training_set(made.name),
        training_report=tuple([line async for line in suite.preprocess.list_training_set_report(made.name)]),
    )


def _frames_that_fit(found: DataCheck) -> int | None:
    """The number_of_frames for clips most of which are shorter than its default; None where the sheet gives one."""
    spec = found.spec
    if spec.HasField("number_of_frames") or (found.error and found.error.reason != "ALL_CLIPS_TOO_SHORT"):
        return None
    prefix = spec.conditioning_frames if spec.HasField("conditioning_frames") else SHEET_PREFIX
    long, short = _lengths(found)
    # 1 modulo 8, as the model counts frames.
    short = [(count - 1) // 8 * 8 + 1 for count in short]
    fitting = [*sorted(count for count in short if prefix < count < SHEET_FRAMES), *[SHEET_FRAMES] * long]
    if long >= ENOUGH_SHARE * len(fitting):
        return None
    return fitting[int((1 - FITTING_SHARE) * len(fitting))]


def _numbers(found: DataCheck, frames: int) -> str:
    """How many clips have the default number of frames, and how many `frames`."""
    long, short = _lengths(found)
    total, fitting = long + len(short), long + sum(count >= frames for count in short)
    things = "clips and scenes" if found.training_set and found.training_set.report.scenes else "clips"
    have = "has" if long == 1 else "have"
    return f"Of {total} {things} {long or 'none'} {have} the default {SHEET_FRAMES} frames and {fitting} have {frames}"


def _lengths(found: DataCheck) -> tuple[int, list[int]]:
    """The number of clips and scenes that fit, and the frames of each that is too short."""
    fitting = found.training_set.report.samples if found.training_set is not None else 0
    return fitting, [line.frame_count for line in found.training_report if line.HasField("needed_frames")]


async def _trial(suite: Suite, found: DataCheck, estimate: EstimateJobResponse) -> Trial | None:
    """A job in which only fields that the sheet leaves open are unlike it."""
    settings: list[str] = []
    asked_for = {field.name for field, _ in found.spec.ListFields()}
    for field, value in TRIAL_CHANGES.items() if estimate.on_cpu and "number_of_steps" not in asked_for else ():
        if estimate.seconds_high <= PATIENCE_SECONDS or field in asked_for:
            continue
        if field.startswith("validation") and not found.spec.validation:
            continue
        settings.append(f"{field}={value}")
        spec = parse_sheet(format_sheet(found.spec), settings).spec
        estimate = await suite.train.estimate(spec, found.options)
    return Trial(tuple(settings), estimate) if settings else None


async def _ingested(suite: Suite, spec: ExtendPrefixSpec, options: JobOptions, view: View) -> DataCheck:
    """The datasets of a check, once they have ended; `spec` names the training data by its dataset then."""
    known = False
    if not spec.dataset:
        source = spec.training_data_url
        made = await _dataset(suite, [source], archive_url=source)
        known = made.lifecycle.state == State.STATE_SUCCEEDED
        spec.dataset = made.name
    dataset, report = await _ended(suite, spec.dataset, view)
    found = DataCheck(spec=spec, options=options, dataset=dataset, dataset_report=report, known=known)
    if found.error is not None or not spec.validation:
        return found
    videos = [entry.video_url for entry in spec.validation]
    made = await _dataset(suite, videos, videos=videos)
    validation, report = await _ended(suite, made.name, view)
    name_datasets(spec, "", made.name)
    return replace(found, validation_dataset=validation, validation_report=report)


async def _dataset(suite: Suite, sources: Sequence[str], **source: Any) -> Dataset:
    """A dataset of these sources: that of an earlier check, where all are uploads, whose bytes never change."""
    if not all(text.startswith(UPLOAD) for text in sources):
        return await suite.ingest.create_dataset(**source)
    made = await suite.ingest.create_dataset(**source, request_id=str(uuid.uuid5(CHECKS, " ".join(sources))))
    if made.lifecycle.state in TERMINAL and made.lifecycle.state != State.STATE_SUCCEEDED:
        # What ended it may be over.
        made = await suite.ingest.create_dataset(**source)
    return made


async def _ended(suite: Suite, name: str, view: View) -> tuple[Dataset, tuple[ReportLine, ...]]:
    await _show(suite.ingest.watch_dataset(name), view)
    lines = tuple([line async for line in suite.ingest.list_dataset_report(name)])
    return await suite.ingest.get_dataset(name), lines


async def _show(events: AsyncGenerator[tuple[int, Event], None], view: View) -> None:
    """Show progress until the end; what else happened is in the reports."""
    async with aclosing(events):
        async for sequence, event in events:
            if event.HasField("progress"):
                view.show(sequence, event)
