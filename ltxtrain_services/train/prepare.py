"""The first half of a job: datasets and training set, made by the other services, their events relayed.

Every call upstream has a request id that is a function of the job, so that a restart asks for the same again and gets
what the first start made. Relayed events and the cursor that says how far they are move in one transaction.
"""

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from typing import Any, TypeVar

from google.rpc.error_details_pb2 import ErrorInfo, PreconditionFailure
from google.rpc.status_pb2 import Status
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Progress, Stage, State
from ltxtrain_client.errors import CLIPS_PATH, SHEET_PATH
from ltxtrain_client.sheet import continues_clips, name_datasets
from ltxtrain_client.watch import TERMINAL, is_terminal

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.addresses import CLIP, shown
from ltxtrain_services.runtime.extend_prefix import preprocess_settings
from ltxtrain_services.runtime.upstream import errors_passed_on, passing_errors_on
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.continue_clips import opening_settings
from ltxtrain_services.train.upstream import Upstream

T = TypeVar("T")

# For upstream work that is cancelled to write its report; a job's cancellation waits no longer.
END_SECONDS = 60.0

DATASET, VALIDATION_DATASET, TRAINING_SET = "dataset", "validation_dataset", "training_set"


class Preparation:
    """The upstream work of one attempt at a job."""

    def __init__(self, attempt: Attempt[Job], upstream: Upstream) -> None:
        self._attempt = attempt
        self._ingest = upstream.ingest(attempt.owner)
        self._preprocess = upstream.preprocess(attempt.owner)

    async def run(self, job: Job, model_revision: str) -> TrainingSet:
        """Return the finished training set. Raises errors.Upstream with the status that ended it or its dataset."""
        if (kept := await self._kept(job, model_revision)) is not None:
            return kept
        try:
            return await self._made_anew(job, model_revision)
        except errors.Upstream as error:
            raise named_culprit(error, job) from error

    async def _made_anew(self, job: Job, model_revision: str) -> TrainingSet:
        if continues_clips(job):
            dataset, validation = "", await self._validation_dataset(job)
            settings = opening_settings(job.effective_spec.continue_clips, model_revision)
        else:
            dataset, validation = await together(self._dataset(job), self._validation_dataset(job))
            spec, on_skipped_clip = job.effective_spec.extend_prefix, job.options.on_skipped_clip
            settings = preprocess_settings(spec, on_skipped_clip, model_revision)
        training_set = await passing_errors_on(
            self._preprocess.create_training_set(
                dataset,
                settings,
                validation_dataset=validation,
                request_id=request_id(job, TRAINING_SET),
                display_name=job.display_name,
                labels=job.labels,
            )
        )
        name = training_set.name
        await self._made(TRAINING_SET, name, Stage.STAGE_PREPROCESS)
        await self._relay(name, self._preprocess.watch_training_set(name, await self._attempt.cursor(name)))
        training_set = await passing_errors_on(self._preprocess.get_training_set(name))
        check_succeeded(training_set.name, training_set.lifecycle)
        return training_set

    async def _kept(self, job: Job, model_revision: str) -> TrainingSet | None:
        """The training set of the job that this one goes on from, if it is there and would be made alike."""
        if not (name := job.continue_from.training_set):
            return None
        try:
            training_set = await passing_errors_on(self._preprocess.get_training_set(name))
        except errors.Upstream as error:
            if error.code is not errors.NotFound.code:
                raise
            return None
        wanted, spec = job.effective_spec.extend_prefix, ExtendPrefixSpec()
        spec.CopyFrom(wanted)
        name_datasets(spec, training_set.dataset, training_set.validation_dataset)
        settings = preprocess_settings(wanted, job.options.on_skipped_clip, model_revision)
        alike = spec == wanted and training_set.settings == settings
        if training_set.lifecycle.state != State.STATE_SUCCEEDED or not alike:
            return None
        async with self._attempt.edit() as edit:
            edit.body.dataset, edit.body.training_set = training_set.dataset, name
            edit.body.validation_dataset = training_set.validation_dataset
            edit.body.ClearField("progress")
        return training_set

    async def salvage(self) -> TrainingSet | None:
        """Cancel what this job started upstream and wait for its end; its training set, as far as that came."""
        await self._cancel()
        job = await self._attempt.get()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                for name in filter(None, (job.dataset, job.validation_dataset)):
                    if name != job.effective_spec.extend_prefix.dataset:
                        await self._ended(self._ingest.watch_dataset(name, await self._attempt.cursor(name)))
                if name := job.training_set:
                    await self._ended(self._preprocess.watch_training_set(name, await self._attempt.cursor(name)))
        try:
            found = self._preprocess.get_training_set(job.training_set) if job.training_set else None
            return None if found is None else await passing_errors_on(found)
        except errors.Upstream as error:
            if error.code is not errors.NotFound.code:
                raise
            return None

    async def _ended(self, events: AsyncIterator[tuple[int, Event]]) -> None:
        """Wait for the terminal event, or for nothing where the work was deleted."""
        try:
            async with errors_passed_on():
                async for _, event in events:
                    if is_terminal(event):
                        return
        except errors.Upstream as error:
            if error.code is not errors.NotFound.code:
                raise

    async def _cancel(self) -> None:
        """A dataset that was given stays."""
        job = await self._attempt.get()
        calls: list[Awaitable[object]] = []
        if job.training_set:
            calls.append(self._preprocess.cancel_training_set(job.training_set))
        if job.dataset and not job.effective_spec.extend_prefix.dataset:
            calls.append(self._ingest.cancel_dataset(job.dataset))
        if job.validation_dataset:
            calls.append(self._ingest.cancel_dataset(job.validation_dataset))
        for call in calls:
            try:
                await passing_errors_on(call)
            except errors.Upstream as error:
                if error.code is not errors.NotFound.code:
                    raise

    async def _dataset(self, job: Job) -> str:
        if given := job.effective_spec.extend_prefix.dataset:
            await self._made(DATASET, given, Stage.STAGE_INGEST)
            return await self._ingested(given)
        made = await passing_errors_on(
            self._ingest.create_dataset(
                archive_url=job.effective_spec.extend_prefix.training_data_url,
                request_id=request_id(job, DATASET),
                display_name=job.display_name,
                labels=job.labels,
            )
        )
        await self._made(DATASET, made.name, Stage.STAGE_INGEST)
        return await self._ingested(made.name)

    async def _validation_dataset(self, job: Job) -> str:
        urls = [entry.video_url for entry in openings(job)]
        if not urls:
            return ""
        made = await passing_errors_on(
            self._ingest.create_dataset(
                videos=urls,
                request_id=request_id(job, VALIDATION_DATASET),
                display_name=job.display_name,
                labels=job.labels,
            )
        )
        await self._made(VALIDATION_DATASET, made.name, Stage.STAGE_INGEST)
        # Of two datasets at once one is counted: that which is trained on.
        return await self._ingested(made.name, counted=continues_clips(job))

    async def _ingested(self, name: str, *, counted: bool = True) -> str:
        events = self._ingest.watch_dataset(name, await self._attempt.cursor(name))
        await self._relay(name, events, counted=counted)
        dataset = await passing_errors_on(self._ingest.get_dataset(name))
        check_succeeded(name, dataset.lifecycle)
        return name

    async def _made(self, field: str, name: str, stage: "Stage") -> None:
        async with self._attempt.edit() as edit:
            setattr(edit.body, field, name)
            enter_stage(edit.body, stage)

    async def _relay(self, upstream: str, events: AsyncIterator[tuple[int, Event]], *, counted: bool = True) -> None:
        """Relay events until the last; those of progress only where it is `counted`."""
        async with errors_passed_on():
            async for sequence, event in events:
                if is_terminal(event):
                    return
                async with self._attempt.edit() as edit:
                    edit.move_cursor(upstream, sequence)
                    kind = event.WhichOneof("detail")
                    if kind == "lifecycle" or (kind == "progress" and not counted):
                        continue
                    edit.add_event(event)
                    if kind == "progress":
                        enter_stage(edit.body, event.stage, event.progress)


def openings(job: Job) -> Sequence[ValidationInput]:
    """The clips that a job continues: at the end, or as all that it does."""
    task = job.effective_spec
    return task.continue_clips.openings if continues_clips(job) else task.extend_prefix.validation


def named_culprit(error: errors.Upstream, job: Job) -> errors.Upstream:
    """The error with the field and the file of the opening that it is about; as it is, when it is about none."""
    status = error.status()
    info, failure = ErrorInfo(), PreconditionFailure()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(failure)
    texts = [*(item.subject for item in failure.violations), *info.metadata.values()]
    path = f"{CLIPS_PATH}openings" if continues_clips(job) else f"{SHEET_PATH}validation"
    for index, entry in enumerate(openings(job)):
        source = entry.video_url if CLIP.fullmatch(entry.video_url) else shown(entry.video_url)
        names = [text for text in texts if text.startswith(source)]
        names += re.findall(rf"{re.escape(source)}(?:/[^\s:;]+)?", status.message)
        if not source or not names:
            continue
        field, file = f"{path}[{index}].video_url", max(names, key=len).rstrip(".,").rpartition("/")[2]
        info.metadata["field"], info.metadata["file"] = field, file
        named = Status(code=status.code, message=f"{field} ({file}): {status.message}")
        for detail in status.details:
            named.details.add().CopyFrom(detail)
        named.details[0].Pack(info)
        return errors.Upstream(named)
    return error


def enter_stage(job: Job, stage: "Stage", progress: Progress | None = None) -> None:
    """Set the stage of a job together with its progress, which is never another stage's."""
    job.stage = stage
    job.ClearField("progress")
    if progress is not None:
        job.progress.CopyFrom(progress)


class Pace:
    """How long a piece of work will still take, from how fast it went since the first look at it."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: int | None = None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def progress(self, completed: int, total: int) -> Progress:
        """The progress of so much of it, with the time left where there is a pace."""
        if self._first is None:
            self._first, self._began = completed, time.monotonic()
        progress, gained = Progress(completed=completed, total=total), completed - self._first
        if gained > 0:
            progress.eta_seconds = self.seconds / gained * (total - completed)
        return progress


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """Return all results; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def request_id(job: Job, purpose: str) -> str:
    """A request id that is the same at every start of a job."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job.name}/{purpose}"))


def check_succeeded(name: str, lifecycle: Lifecycle) -> None:
    """Raises the upstream's own error, or NotReady when it was cancelled."""
    if lifecycle.state == State.STATE_FAILED:
        raise errors.Upstream(lifecycle.error)
    if lifecycle.state != State.STATE_SUCCEEDED:
        assert lifecycle.state in TERMINAL
        raise errors.NotReady(f"{name} was cancelled.", metadata={"name": name})
