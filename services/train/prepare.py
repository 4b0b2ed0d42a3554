"""The first half of a job: datasets and training set, made by the other services, their events relayed.

Every call upstream has a request id that is a function of the job, so that a restart asks for the same again and gets
what the first start made. Relayed events and the cursor that says how far they are move in one transaction.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Coroutine
from typing import Any, TypeVar

from ltxtrain.v1.preprocess_pb2 import AudioSettings, Geometry, PreprocessSettings, TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Stage, State
from ltxtrain_client.watch import TERMINAL, is_terminal

from services.runtime import errors
from services.runtime.store import Store
from services.runtime.upstream import errors_passed_on, passing_errors_on
from services.train.spec import ASPECT_NAMES, RESOLUTION_NAMES
from services.train.upstream import Upstream
from trainer.geometry import BUCKETS

T = TypeVar("T")

DATASET, VALIDATION_DATASET, TRAINING_SET = "dataset", "validation_dataset", "training_set"


class Preparation:
    """Brings a job from its spec to a training set."""

    def __init__(self, jobs: Store[Job], upstream: Upstream) -> None:
        self._jobs = jobs
        self._upstream = upstream

    async def run(self, job: Job, attempt: int, owner: str, model_revision: str) -> TrainingSet:
        """The finished training set. Raises what ended the dataset or the training set, unchanged."""
        dataset, validation = await together(
            self._dataset(job, attempt, owner), self._validation_dataset(job, attempt, owner)
        )
        preprocess = self._upstream.preprocess(owner)
        training_set = await passing_errors_on(
            preprocess.create_training_set(
                dataset,
                preprocess_settings(job, model_revision),
                validation_dataset=validation,
                request_id=request_id(job, TRAINING_SET),
            )
        )
        name = training_set.name
        await self._made(job, attempt, TRAINING_SET, name, Stage.STAGE_PREPROCESS)
        await self._relay(job, attempt, name, preprocess.watch_training_set(name, await self._after(job, name)))
        training_set = await passing_errors_on(preprocess.get_training_set(name))
        check_succeeded(training_set.name, training_set.lifecycle)
        return training_set

    async def cancel(self, job: Job, owner: str) -> None:
        """Cancel what this job started upstream; a dataset that was given stays."""
        calls: list[Awaitable[object]] = []
        if job.training_set:
            calls.append(self._upstream.preprocess(owner).cancel_training_set(job.training_set))
        ingest = self._upstream.ingest(owner)
        if job.dataset and not job.effective_spec.dataset:
            calls.append(ingest.cancel_dataset(job.dataset))
        if job.validation_dataset:
            calls.append(ingest.cancel_dataset(job.validation_dataset))
        for call in calls:
            try:
                await passing_errors_on(call)
            except errors.Upstream as error:
                if error.code is not errors.NotFound.code:
                    raise

    async def _dataset(self, job: Job, attempt: int, owner: str) -> str:
        spec = job.effective_spec
        if spec.dataset:
            await self._made(job, attempt, DATASET, spec.dataset, Stage.STAGE_INGEST)
        else:
            made = await passing_errors_on(
                self._upstream.ingest(owner).create_dataset(
                    archive_url=spec.training_data_url, request_id=request_id(job, DATASET)
                )
            )
            await self._made(job, attempt, DATASET, made.name, Stage.STAGE_INGEST)
            spec.dataset = made.name
        return await self._ingested(job, attempt, owner, spec.dataset)

    async def _validation_dataset(self, job: Job, attempt: int, owner: str) -> str:
        urls = [entry.video_url for entry in job.effective_spec.validation]
        if not urls:
            return ""
        made = await passing_errors_on(
            self._upstream.ingest(owner).create_dataset(videos=urls, request_id=request_id(job, VALIDATION_DATASET))
        )
        await self._made(job, attempt, VALIDATION_DATASET, made.name, Stage.STAGE_INGEST)
        return await self._ingested(job, attempt, owner, made.name)

    async def _ingested(self, job: Job, attempt: int, owner: str, name: str) -> str:
        ingest = self._upstream.ingest(owner)
        await self._relay(job, attempt, name, ingest.watch_dataset(name, await self._after(job, name)))
        dataset = await passing_errors_on(ingest.get_dataset(name))
        check_succeeded(name, dataset.lifecycle)
        return name

    async def _made(self, job: Job, attempt: int, field: str, name: str, stage: "Stage") -> None:
        async with self._jobs.edit(job.name, attempt=attempt) as edit:
            setattr(edit.body, field, name)
            edit.body.stage = stage
            edit.body.ClearField("progress")

    async def _after(self, job: Job, upstream: str) -> int:
        return await self._jobs.cursor(job.name, upstream)

    async def _relay(self, job: Job, attempt: int, upstream: str, events: AsyncIterator[tuple[int, Event]]) -> None:
        async with errors_passed_on():
            async for sequence, event in events:
                if is_terminal(event):
                    return
                async with self._jobs.edit(job.name, attempt=attempt) as edit:
                    edit.move_cursor(upstream, sequence)
                    if event.WhichOneof("detail") == "lifecycle":
                        continue
                    edit.add_event(event)
                    if event.WhichOneof("detail") == "progress":
                        edit.body.stage = event.stage
                        edit.body.progress.CopyFrom(event.progress)


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results of all; the first error cancels the others and is raised as it is."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def request_id(job: Job, purpose: str) -> str:
    """The same for every start of a job."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{job.name}/{purpose}"))


def check_succeeded(name: str, lifecycle: Lifecycle) -> None:
    """Raises the upstream's own error, or NotReady when somebody cancelled it."""
    if lifecycle.state == State.STATE_FAILED:
        raise errors.Upstream(lifecycle.error)
    if lifecycle.state != State.STATE_SUCCEEDED:
        assert lifecycle.state in TERMINAL
        raise errors.NotReady(f"{name} was cancelled.", metadata={"name": name})


def preprocess_settings(job: Job, model_revision: str) -> PreprocessSettings:
    """What a resolved spec asks of Preprocess."""
    spec = job.effective_spec
    width, height = BUCKETS[RESOLUTION_NAMES[spec.resolution], ASPECT_NAMES[spec.aspect_ratio]]
    preview_width, preview_height = BUCKETS[
        RESOLUTION_NAMES[spec.validation_resolution], ASPECT_NAMES[spec.validation_aspect_ratio]
    ]
    settings = PreprocessSettings(
        training=Geometry(width=width, height=height, frame_count=spec.number_of_frames, frame_rate=spec.frame_rate),
        validation=Geometry(
            width=preview_width,
            height=preview_height,
            frame_count=spec.validation_number_of_frames,
            frame_rate=spec.validation_frame_rate,
        ),
        conditioning_frames=spec.conditioning_frames,
        trigger_phrase=spec.trigger_phrase,
        auto_scale_input=spec.auto_scale_input,
        export_archive=spec.debug_dataset,
        model_revision=model_revision,
        validation_prompts=[entry.prompt for entry in spec.validation],
        negative_prompt=spec.validation_negative_prompt,
        on_skipped_clip=job.options.on_skipped_clip,
    )
    if spec.split_input_into_scenes:
        settings.split_above_seconds = spec.split_input_duration_threshold
    if spec.with_audio:
        settings.audio.CopyFrom(AudioSettings(normalize=spec.audio_normalize, preserve_pitch=spec.audio_preserve_pitch))
    return settings
