"""A job from its spec to its LoRA: prepare, train, publish. Every step can run twice."""

import asyncio
from collections.abc import Callable, Sequence

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason
from ltxtrain_client.enum_words import word

from services.runtime import errors
from services.runtime.service import Runtime
from services.runtime.store import Edit, Store
from services.runtime.upstream import errors_passed_on
from services.train.artifacts import publish_training_set
from services.train.estimate import Estimator
from services.train.give_back import last_checkpoint
from services.train.job_plan import Prepared
from services.train.prepare import Preparation
from services.train.training import Training
from services.train.upstream import Upstream
from trainer.errors import ModelUnavailable, ModelUnsupported
from trainer.model.folder import ModelFolder, resolve_model
from trainer.pages.job_page import ReportRow

# ListDatasetReport and ListTrainingSetReport have all of them.
MAX_REPORT_ROWS = 1000


class TrainWorkflow:
    """What the Train service does with one job."""

    def __init__(self, runtime: Runtime, jobs: Store[Job], upstream: Upstream, estimator: Estimator) -> None:
        self._runtime = runtime
        self._jobs = jobs
        self._upstream = upstream
        self._preparation = Preparation(jobs, upstream)
        self._training = Training(runtime, jobs, estimator.measured)

    async def run(self, name: str, attempt: int) -> Callable[[Edit[Job]], None]:
        job = await self._jobs.get(name)
        with self._training.place(job) as place:
            prepared = await self._prepared(job, attempt)
            return await self._training.run(await self._jobs.get(name), attempt, prepared, place)

    async def _prepared(self, job: Job, attempt: int) -> Prepared:
        name = job.name
        owner = await self._jobs.owner(name)
        model = await self._model()
        try:
            training_set = await self._preparation.run(job, attempt, owner, model.revision)
        except errors.ApiError:
            # What is left running upstream is of no use any more.
            await self._preparation.cancel(await self._jobs.get(name), owner)
            raise
        job = await self._jobs.get(name)
        preprocess = self._upstream.preprocess(owner)
        async with errors_passed_on():
            samples = [sample async for sample in preprocess.list_samples(training_set.name)]
            report = [line async for line in preprocess.list_training_set_report(training_set.name)]
            report += [line async for line in self._upstream.ingest(owner).list_dataset_report(job.dataset)]
        shared = await publish_training_set(self._runtime.objects, name, training_set)
        return Prepared(
            model=model, training_set=training_set, samples=samples, report=report_rows(report), shared=shared
        )

    async def give_back(self, name: str, attempt: int) -> Callable[[Edit[Job]], None]:
        """Stop upstream work; the job keeps the LoRA of its last checkpoint and its previews."""
        job = await self._jobs.get(name)
        await self._preparation.cancel(job, await self._jobs.owner(name))
        return await last_checkpoint(self._runtime, self._jobs, job)

    async def _model(self) -> ModelFolder:
        settings = self._runtime.settings
        try:
            return await asyncio.to_thread(resolve_model, settings.model, settings.model_revision or None)
        except ModelUnavailable as error:
            raise errors.FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE, str(error)) from error
        except ModelUnsupported as error:
            raise errors.FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED, str(error)) from error


def report_rows(lines: Sequence[ReportLine]) -> tuple[ReportRow, ...]:
    """For the job's page: what was left out or changed first, and no more than a person reads."""
    ordered = sorted(lines, key=lambda line: (-line.outcome, line.path))
    return tuple(
        ReportRow(
            path=line.path,
            outcome=word(Outcome.DESCRIPTOR, line.outcome).upper(),
            reasons=[word(ReportReason.DESCRIPTOR, reason) for reason in line.reasons],
            description=line.description,
        )
        for line in ordered[:MAX_REPORT_ROWS]
    )
