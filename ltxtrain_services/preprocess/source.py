"""The datasets that a training set is made of, read from Ingest and watched while they are read."""

import asyncio
import contextlib
from dataclasses import dataclass

from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, State
from ltxtrain_client.ingest import IngestClient

from ltxtrain_services.runtime.errors import NotFound, NotReady, Upstream
from ltxtrain_services.runtime.upstream import errors_passed_on, passing_errors_on
from ltxtrain_services.runtime.work import Retryable

PAGE = 500
# How often Ingest is asked whether the datasets still exist.
ALIVE_SECONDS = 2.0


@dataclass(frozen=True)
class Source:
    """Clips to train on and clips to validate with, in the order of their datasets."""

    training: list[Clip]
    validation: list[Clip]

    @property
    def duplicates(self) -> dict[str, str]:
        """Path of the first clip with the same bytes, by the name of each later one."""
        first: dict[str, str] = {}
        found = {}
        for clip in self.training:
            earlier = first.setdefault(clip.blob.sha256, clip.path)
            if earlier != clip.path:
                found[clip.name] = earlier
        return found


async def read_source(ingest: IngestClient, training_set: TrainingSet) -> Source:
    """Every clip. Raises Upstream (the dataset's own error, or NOT_FOUND), NotReady and Retryable."""
    return Source(
        await _clips(ingest, training_set.dataset) if training_set.dataset else [],
        await _clips(ingest, training_set.validation_dataset) if training_set.validation_dataset else [],
    )


async def skipped_at_ingest(ingest: IngestClient, dataset: str) -> list[ReportLine]:
    """Clips that Ingest left out, which no clip of the dataset stands for."""
    async with errors_passed_on():
        lines = [line async for line in ingest.list_dataset_report(dataset, PAGE)]
    return [line for line in lines if line.outcome == Outcome.OUTCOME_SKIPPED]


async def check_alive(ingest: IngestClient, training_set: TrainingSet) -> None:
    """Raises NotFound with the name of a dataset that was deleted."""
    for name in filter(None, (training_set.dataset, training_set.validation_dataset)):
        try:
            await passing_errors_on(ingest.get_dataset(name))
        except Upstream as error:
            if error.code is NotFound.code:
                raise NotFound(name) from error
            raise


async def keep_alive(ingest: IngestClient, training_set: TrainingSet) -> None:
    """Runs until a dataset is deleted, then raises NotFound."""
    while True:
        await asyncio.sleep(ALIVE_SECONDS)
        with contextlib.suppress(Retryable):  # an Ingest that starts anew has deleted nothing
            await check_alive(ingest, training_set)


async def _clips(ingest: IngestClient, dataset: str) -> list[Clip]:
    lifecycle = (await passing_errors_on(ingest.get_dataset(dataset))).lifecycle
    if lifecycle.state == State.STATE_FAILED:
        raise Upstream(lifecycle.error)
    if lifecycle.state != State.STATE_SUCCEEDED:
        state = State.Name(lifecycle.state)
        raise NotReady(
            f"{dataset} is {state}; a training set needs one that has SUCCEEDED.", metadata={"name": dataset}
        )
    async with errors_passed_on():
        return [clip async for clip in ingest.list_clips(dataset, PAGE)]
