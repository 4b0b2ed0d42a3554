"""The collaborators that every step of one attempt at a training set shares."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, TrainingSet
from ltxtrain.v1.work_pb2 import Progress, ReportLine, Stage

from ltxtrain_services.preprocess.actors import ClipFitter, Encoder, ModelSource
from ltxtrain_services.preprocess.cache import Cache
from ltxtrain_services.preprocess.plan import Plan
from ltxtrain_services.runtime.report import ReportWriter
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.telemetry import current_trace
from ltxtrain_services.runtime.work import Attempt


@dataclass(frozen=True, kw_only=True)
class Context:
    """One attempt at a training set, and what its steps work with."""

    attempt: Attempt[TrainingSet]
    runtime: Runtime
    cache: Cache
    report: "ClipReport"
    training_set: TrainingSet
    # Revision of the model that encodes; empty with fit_only.
    model_revision: str

    @property
    def name(self) -> str:
        return self.training_set.name

    @property
    def settings(self) -> PreprocessSettings:
        return self.training_set.settings

    @property
    def encoder_count(self) -> int:
        """GPUs that the cluster has now, or as many processes on CPUs as the operator allows."""
        cluster = self.runtime.cluster
        # Where there is no GPU yet, one encoder waits for it.
        return max(1, cluster.gpu_count) if cluster.uses_gpus else self.runtime.settings.cpu_encoders

    def make_encoder(self) -> Any:
        settings = self.runtime.settings
        source = ModelSource(
            reference=settings.model, revision=self.model_revision, with_audio=self.settings.HasField("audio")
        )
        options = self.runtime.cluster.model_options()
        address = self.runtime.objects.objects.address
        arguments = address, source, settings.torch_threads, current_trace()
        return Encoder.options(**options).remote(*arguments)  # type: ignore[attr-defined]

    def make_fitter(self) -> Any:
        settings = self.runtime.settings
        address = self.runtime.objects.objects.address
        limits = settings.clip_seconds, settings.clip_memory_bytes
        return ClipFitter.remote(address, *limits, current_trace())  # type: ignore[attr-defined]


class ClipReport:
    """The report of a training set: clips end in any order, their lines are written in the order of the dataset.

    Stages count the clips that are trained on; openings are counted where there is nothing else.
    """

    def __init__(self, writer: ReportWriter[TrainingSet], plan: Plan, *, fit_only: bool) -> None:
        self._writer = writer
        counted = plan.training or plan.validation
        fitted = {item.position for item in counted}
        encoded = {item.position for item in counted if item.outcome is None}
        # Positions of the clips that a stage has to do with, and of those that are through with it.
        self._counted = {Stage.STAGE_PREPROCESS: fitted} | ({} if fit_only else {Stage.STAGE_ENCODE: encoded})
        self._reached: dict[Stage, set[int]] = {stage: set() for stage in self._counted}
        for stage in self._counted:
            self._advance(stage)

    def writing(self) -> AbstractAsyncContextManager[None]:
        """See ReportWriter.writing."""
        return self._writer.writing()

    def reach(self, stage: "Stage", position: int) -> None:
        """Count the clip at a position as through with a stage."""
        if position in self._counted.get(stage, ()):
            self._reached[stage].add(position)
            self._advance(stage)

    def leave_out(self, position: int) -> None:
        """Nothing of the clip at a position is encoded."""
        if position in self._counted.get(Stage.STAGE_ENCODE, ()):
            self._counted[Stage.STAGE_ENCODE].remove(position)
            self._advance(Stage.STAGE_ENCODE)

    def add_lines(self, position: int, lines: Sequence[tuple[str, ReportLine]]) -> None:
        """Add the named lines of the clip at a position; every position from 0 on comes once."""
        self._writer.add_in_turn(position, lines)

    async def add_whole(self, key: str, line: ReportLine) -> None:
        """Add a line about the training set as a whole, under a name that no clip has."""
        await self._writer.add(key, line)

    def _advance(self, stage: "Stage") -> None:
        progress = Progress(completed=len(self._reached[stage]), total=len(self._counted[stage]))
        self._writer.progress(stage, progress)
