"""Check training data without a GPU: ingest it, fit it to the sheet's geometry, and report."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import Dataset
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import EstimateJobResponse, JobOptions
from ltxtrain.v1.work_pb2 import Event, ReportLine, State

from ltxtrain_client.errors import CallError, from_status
from ltxtrain_client.sheet import Sheet, name_datasets
from ltxtrain_client.sheet_files import NO_FILES, SheetFiles
from ltxtrain_client.suite import Suite
from ltxtrain_client.view import SilentView, View


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
        validation = found.validation_dataset.name if found.validation_dataset is not None else ""
        made = await suite.preprocess.create_training_set(
            found.dataset.name,
            found.spec,
            validation_dataset=validation,
            on_skipped_clip=sheet.options.on_skipped_clip,
            fit_only=True,
        )
        await _show(suite.preprocess.watch_training_set(made.name), view)
    found = replace(
        found,
        training_set=await suite.preprocess.get_training_set(made.name),
        training_report=tuple([line async for line in suite.preprocess.list_training_set_report(made.name)]),
    )
    if found.error is not None:
        return found
    return replace(found, estimate=await suite.train.estimate(found.spec, found.options))


async def _ingested(suite: Suite, spec: ExtendPrefixSpec, options: JobOptions, view: View) -> DataCheck:
    """The datasets of a check, once they have ended; `spec` names the training data by its dataset then."""
    if not spec.dataset:
        made = await suite.ingest.create_dataset(archive_url=spec.training_data_url)
        spec.dataset = made.name
    dataset, report = await _ended(suite, spec.dataset, view)
    found = DataCheck(spec=spec, options=options, dataset=dataset, dataset_report=report)
    if found.error is not None or not spec.validation:
        return found
    made = await suite.ingest.create_dataset(videos=[entry.video_url for entry in spec.validation])
    validation, report = await _ended(suite, made.name, view)
    name_datasets(spec, "", made.name)
    return replace(found, validation_dataset=validation, validation_report=report)


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
