"""A job from its spec to its LoRA: prepare, train, publish. Every step can run twice."""

import asyncio
from collections.abc import Sequence

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from services.runtime import errors
from services.runtime.service import Runtime
from services.runtime.upstream import errors_passed_on
from services.runtime.work import Attempt, Ending
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
    """The work of the Train service on one job: prepare, queue, train, publish."""

    def __init__(self, runtime: Runtime, upstream: Upstream, estimator: Estimator) -> None:
        self._runtime = runtime
        self._upstream = upstream
        self._training = Training(runtime, estimator.measured)

    async def run(self, attempt: Attempt[Job]) -> Ending[Job]:
        with self._training.place(await attempt.get()) as place:
            prepared = await self._prepared(attempt)
            return await self._training.run(attempt, prepared, place)

    async def salvage(self, attempt: Attempt[Job]) -> Ending[Job]:
        """Stop upstream work; the job keeps the LoRA of its last checkpoint and its previews."""
        await Preparation(attempt, self._upstream).cancel()
        return await last_checkpoint(self._runtime, attempt)

    async def _prepared(self, attempt: Attempt[Job]) -> Prepared:
        model = await self._model()
        training_set = await Preparation(attempt, self._upstream).run(await attempt.get(), model.revision)
        preprocess = self._upstream.preprocess(attempt.owner)
        job = await attempt.get()
        async with errors_passed_on():
            samples = [sample async for sample in preprocess.list_samples(training_set.name)]
            report = [line async for line in preprocess.list_training_set_report(training_set.name)]
            report += [line async for line in self._upstream.ingest(attempt.owner).list_dataset_report(job.dataset)]
        shared = await publish_training_set(self._runtime.objects, attempt.name, training_set)
        return Prepared(
            model=model, training_set=training_set, samples=samples, report=report_rows(report), shared=shared
        )

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
            outcome=Outcome.Name(line.outcome).removeprefix("OUTCOME_"),
            reasons=[ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in line.reasons],
            description=line.description,
        )
        for line in ordered[:MAX_REPORT_ROWS]
    )
