"""A job from its spec to its LoRA: prepare, queue, train, publish. Every step can run twice."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.struct_pb2 import Struct
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job, JobOutput
from ltxtrain.v1.work_pb2 import Event, Progress, ReportLine, Stage, State
from ltxtrain_client.as_json import as_json
from ltxtrain_client.sheet import continues_clips

from ltxtrain_services.runtime import errors
from ltxtrain_services.runtime.cluster import NOT_A_SERVICE, WorkerLost, kill
from ltxtrain_services.runtime.extend_prefix import billable_units, price
from ltxtrain_services.runtime.service import Runtime, store_address
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.trainer_errors import api_error, translated
from ltxtrain_services.runtime.upstream import errors_passed_on
from ltxtrain_services.runtime.work import Attempt, Ending, Retryable
from ltxtrain_services.train.actors import AuditActor, Remote
from ltxtrain_services.train.artifacts import (
    artifacts,
    drop_states,
    latest_checkpoint,
    publish_training_set,
    record,
    short_name,
)
from ltxtrain_services.train.continuation import take_over
from ltxtrain_services.train.continue_clips import clips_output
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.job_plan import Prepared
from ltxtrain_services.train.prepare import Pace, Preparation, enter_stage
from ltxtrain_services.train.publication import (
    FACTS,
    Published,
    facts_of,
    lora_audit,
    publish_papers,
    training_summary,
)
from ltxtrain_services.train.queue import GpuQueue, Room
from ltxtrain_services.train.recorder import REQUESTED, TrainingResult
from ltxtrain_services.train.training import Training
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.errors import TrainerError
from ltxtrain_trainer.model.folder import ModelFolder, fetching_model
from ltxtrain_trainer.training.step_log import StepLog


class TrainWorkflow:
    """The work of the Train service on one job."""

    def __init__(self, runtime: Runtime, upstream: Upstream, estimator: Estimator) -> None:
        self._runtime = runtime
        self._upstream = upstream
        self._estimator = estimator
        self._training = Training(runtime, estimator.observe)
        self._queue = GpuQueue(self.room, most_of_an_owner=runtime.settings.max_owner_gpus)
        runtime.cluster.on_change(self._queue.settle)

    def room(self) -> Room:
        """Workers that jobs are given now."""
        cluster, settings = self._runtime.cluster, self._runtime.settings
        if not cluster.uses_gpus:
            return Room(settings.cpu_trainers, on_gpus=False)
        return Room(cluster.gpu_count, settings.max_gpus)

    async def deliver(self, name: str) -> None:
        """Tell a training, if it runs now, what its job says is asked of it."""
        await self._training.deliver(name)

    async def run(self, attempt: Attempt[Job]) -> Ending[Job]:
        await take_over(self._runtime.objects, attempt)
        job = await attempt.get()
        # One that goes on from another job has a checkpoint, but has not run.
        created, resumed = job.lifecycle.create_time.ToNanoseconds(), bool(await attempt.children(FACTS, Struct))
        with self._queue.place(job.name, attempt.owner, created, resumed=resumed) as place:
            begun = time.monotonic()
            prepared = await self._prepare(attempt)
            if not continues_clips(job):
                self._estimator.observe_preparation(time.monotonic() - begun)
            result = await self._training.run(attempt, prepared, place)
        if continues_clips(job):
            return await self._publish_clips(attempt, result.artifacts)
        return await self._publish(attempt, result)

    async def salvage(self, attempt: Attempt[Job]) -> Ending[Job]:
        """Cancel upstream work; the job keeps its contact sheet, its previews and the LoRA of its last checkpoint, if
        that is sound."""
        training_set = await Preparation(attempt, self._upstream).salvage()
        if continues_clips(await attempt.get()):
            return await self._publish_clips(attempt)
        if training_set is not None:
            await publish_training_set(self._runtime.objects, attempt, training_set)
        lora = latest_checkpoint(await artifacts(attempt)).get("LORA")
        audit: Mapping[str, Any] = {}
        fault: TrainerError | None = None
        if lora is not None:
            try:
                audit = await self._audited(await attempt.get(), lora)
            except TrainerError as error:
                lora, fault = None, error
        cancelling = (await attempt.get()).lifecycle.state == State.STATE_CANCELLING
        state = State.STATE_CANCELLED if cancelling else State.STATE_FAILED
        papers = await self._papers(attempt, state, audit)
        await drop_states(self._runtime.objects, attempt, keep_last=True)
        stored = await artifacts(attempt)

        def ending(edit: Edit[Job]) -> None:
            edit.body.ClearField("queue_position")
            edit.body.ClearField("waiting")
            record(edit, papers.artifacts)
            close(edit, [*stored, *papers.artifacts])
            if fault is not None:
                edit.add_event(Event(stage=Stage.STAGE_PUBLISH, warning=api_error(fault).status()))
            if papers.artifacts or lora is not None:
                edit.body.output.CopyFrom(job_output([*papers.artifacts, *([lora] if lora is not None else [])], audit))
            summarize(edit, papers)

        return ending

    async def _prepare(self, attempt: Attempt[Job]) -> Prepared:
        model = await self._model(attempt)
        training_set = await Preparation(attempt, self._upstream).run(await attempt.get(), model.revision)
        async with errors_passed_on():
            samples = [
                sample async for sample in self._upstream.preprocess(attempt.owner).list_samples(training_set.name)
            ]
        await publish_training_set(self._runtime.objects, attempt, training_set)
        return Prepared(model=model, training_set=training_set, samples=samples)

    async def _model(self, attempt: Attempt[Job]) -> ModelFolder:
        """The base model; the job tells of its download, where it is not here yet."""
        settings = self._runtime.settings
        fetching, pace = fetching_model(settings.model, settings.model_revision or None), Pace()

        def look() -> tuple[int, int] | ModelFolder:
            try:
                return next(fetching)
            except StopIteration as found:
                folder: ModelFolder = found.value
                return folder

        while True:
            with translated():
                found = await asyncio.to_thread(look)
            if isinstance(found, ModelFolder):
                return found
            progress = pace.progress(*found)
            async with attempt.edit() as edit:
                enter_stage(edit.body, Stage.STAGE_MODEL, progress)
                edit.add_event(Event(stage=Stage.STAGE_MODEL, progress=progress))

    async def _publish(self, attempt: Attempt[Job], result: TrainingResult) -> Ending[Job]:
        papers = await self._papers(attempt, State.STATE_SUCCEEDED, result.audit, result.artifacts)
        made = [*result.artifacts, *papers.artifacts]
        await drop_states(self._runtime.objects, attempt, keep_last=self._runtime.settings.keep_optimizer_state)
        stored = await artifacts(attempt)
        shared = [item for item in stored if item.kind == Artifact.KIND_DEBUG_DATASET]
        job = await attempt.get()
        units = billable_units(job.effective_spec.extend_prefix.number_of_steps - job.continue_from.billed_steps)

        def ending(edit: Edit[Job]) -> None:
            record(edit, made)
            close(edit, [*stored, *made])
            edit.body.output.CopyFrom(job_output([*made, *shared], result.audit))
            summarize(edit, papers)
            edit.body.billable_units = units
            if (cost := price(units, self._runtime.settings.unit_price)) is not None:
                edit.body.price.CopyFrom(cost)
            total = sum(item.blob.size_bytes for item in made)
            enter_stage(edit.body, Stage.STAGE_PUBLISH, Progress(completed=total, total=total))
            edit.add_event(Event(stage=Stage.STAGE_PUBLISH, progress=edit.body.progress))

        return ending

    async def _publish_clips(self, attempt: Attempt[Job], made: Sequence[Artifact] = ()) -> Ending[Job]:
        """The ending of a continuation: the clips that there are, whatever its state. The LoRA stays its job's."""
        found = [*await artifacts(attempt), *made]
        facts = await attempt.children(FACTS, Struct)

        def ending(edit: Edit[Job]) -> None:
            edit.body.ClearField("queue_position")
            edit.body.ClearField("waiting")
            record(edit, made)
            close(edit, found)
            edit.body.output.CopyFrom(clips_output(found))
            if facts:
                edit.body.training_summary.CopyFrom(training_summary(facts_of(facts[0]), StepLog()))

        return ending

    async def _papers(
        self, attempt: Attempt[Job], state: "State", audit: Mapping[str, Any], made: Sequence[Artifact] = ()
    ) -> Published:
        """config.json and job.html, with as much of the report as the other services still have."""
        job = await attempt.get()
        preprocess, ingest = self._upstream.preprocess(attempt.owner), self._upstream.ingest(attempt.owner)
        found: list[ReportLine] = []
        fitted: list[ReportLine] = []
        preprocess_report: Mapping[str, Any] = {}
        try:
            async with errors_passed_on():
                if job.training_set:
                    preprocess_report = as_json((await preprocess.get_training_set(job.training_set)).report)
                    fitted += [line async for line in preprocess.list_training_set_report(job.training_set)]
                if job.dataset:
                    found += [line async for line in ingest.list_dataset_report(job.dataset)]
        except errors.Upstream as error:
            if error.code is not errors.NotFound.code:
                raise
        return await publish_papers(
            self._runtime,
            attempt,
            state,
            audit=audit,
            found=found,
            fitted=fitted,
            preprocess_report=preprocess_report,
            made=made,
        )

    async def _audited(self, job: Job, lora: Artifact) -> Mapping[str, Any]:
        """The audit's numbers. Raises TrainerError for a LoRA that does not pass."""
        settings = self._runtime.settings
        # Never waits for a CPU, of which others may hold all.
        actor = AuditActor.options(num_cpus=0, label_selector=NOT_A_SERVICE).remote(store_address(settings))  # type: ignore[attr-defined]
        remote, with_audio = Remote(lora.blob.key, lora.blob.sha256), job.effective_spec.extend_prefix.with_audio
        try:
            call = actor.audit.remote(remote, settings.model, settings.model_revision or None, with_audio)
            audit: Mapping[str, Any] = await self._runtime.cluster.value(call)
            return audit
        except WorkerLost as error:
            raise Retryable(str(error)) from error
        finally:
            kill(actor)


def close(edit: Edit[Job], stored: Sequence[Artifact]) -> None:
    """Nothing more can be asked of a job that ends; its bytes in the store are counted, a name once."""
    for field in REQUESTED.values():
        edit.body.ClearField(field)
    edit.body.stored_bytes = sum({short_name(item): item.blob.size_bytes for item in stored}.values())


def summarize(edit: Edit[Job], papers: Published) -> None:
    if papers.summary is not None:
        edit.body.training_summary.CopyFrom(papers.summary)


def job_output(files: Sequence[Artifact], audit: Mapping[str, Any]) -> JobOutput:
    names = {item.kind: item.name for item in files}
    return JobOutput(
        lora_file=names.get(Artifact.KIND_LORA, ""),
        config_file=names.get(Artifact.KIND_CONFIG, ""),
        video=names.get(Artifact.KIND_VALIDATION_REEL, ""),
        debug_dataset=names.get(Artifact.KIND_DEBUG_DATASET, ""),
        lora_video_only_file=names.get(Artifact.KIND_LORA_VIDEO_ONLY, ""),
        audit=lora_audit(audit) if audit else None,
    )
