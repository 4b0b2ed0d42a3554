"""Client of PreprocessService: turn datasets into training sets, clips into samples."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.preprocess_pb2 import (
    CancelTrainingSetRequest,
    CreateTrainingSetRequest,
    DeleteTrainingSetRequest,
    GetTrainingSetFileRequest,
    GetTrainingSetFileResponse,
    GetTrainingSetRequest,
    ListSamplesRequest,
    ListTrainingSetReportRequest,
    ListTrainingSetsRequest,
    OnSkippedClip,
    PreprocessSettings,
    Sample,
    TrainingSet,
    WatchTrainingSetRequest,
)
from ltxtrain.v1.preprocess_pb2_grpc import PreprocessServiceStub
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.work_pb2 import Event, ReportLine, State

from ltxtrain_client.calls import Client, new_request_id
from ltxtrain_client.channel import Channel
from ltxtrain_client.enum_words import number
from ltxtrain_client.watch import STEADY, Pace, watch


class PreprocessClient(Client):
    """One method per RPC of PreprocessService. Every method raises CallError when the call fails."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._stub = PreprocessServiceStub(channel.aio)

    async def create_training_set(
        self,
        dataset: str,
        plan: PreprocessSettings | ExtendPrefixSpec,
        *,
        validation_dataset: str = "",
        on_skipped_clip: "OnSkippedClip" = OnSkippedClip.ON_SKIPPED_CLIP_UNSPECIFIED,
        fit_only: bool = False,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> TrainingSet:
        """Start preprocessing a dataset as a job of this spec would; `fit_only` checks the data without a GPU.

        With PreprocessSettings every field is used as it is, there are no defaults, and `on_skipped_clip` and
        `fit_only` are the settings' own.
        """
        request = CreateTrainingSetRequest(
            request_id=request_id or new_request_id(),
            dataset=dataset,
            validation_dataset=validation_dataset,
            spec=TaskSpec(extend_prefix=plan) if isinstance(plan, ExtendPrefixSpec) else None,
            settings=plan if isinstance(plan, PreprocessSettings) else None,
            on_skipped_clip=on_skipped_clip,
            fit_only=fit_only,
            display_name=display_name,
            labels=labels,
        )
        return (await self._call(self._stub.CreateTrainingSet, request)).training_set

    async def get_training_set(self, name: str) -> TrainingSet:
        return (await self._call(self._stub.GetTrainingSet, GetTrainingSetRequest(name=name))).training_set

    def list_training_sets(
        self, page_size: int = 0, *, states: "Sequence[State | str]" = ()
    ) -> AsyncGenerator[TrainingSet, None]:
        """Your training sets in one of `states` (empty: all), values or words; pages are fetched as needed."""
        wanted: Any = [number(State.DESCRIPTOR, state) for state in states]
        request = ListTrainingSetsRequest(page_size=page_size, states=wanted)
        return self._pages(self._stub.ListTrainingSets, request, lambda response: response.training_sets)

    async def cancel_training_set(self, name: str) -> TrainingSet:
        """Stop preprocessing. A training set that has ended is returned unchanged."""
        return (await self._call(self._stub.CancelTrainingSet, CancelTrainingSetRequest(name=name))).training_set

    async def delete_training_set(self, name: str) -> None:
        """Delete the record, and the bytes that nothing else refers to.

        Raises FailedPrecondition when the training set has not ended yet.
        """
        await self._call(self._stub.DeleteTrainingSet, DeleteTrainingSetRequest(name=name))

    def list_samples(self, training_set: str, page_size: int = 0) -> AsyncGenerator[Sample, None]:
        request = ListSamplesRequest(parent=training_set, page_size=page_size)
        return self._pages(self._stub.ListSamples, request, lambda response: response.samples)

    def list_training_set_report(self, training_set: str, page_size: int = 0) -> AsyncGenerator[ReportLine, None]:
        """Report of a training set: a line for every clip and scene, with how it was fitted or why it was left out."""
        request = ListTrainingSetReportRequest(parent=training_set, page_size=page_size)
        return self._pages(self._stub.ListTrainingSetReport, request, lambda response: response.lines)

    async def get_training_set_file(self, name: str) -> GetTrainingSetFileResponse:
        """Get one file with a URL that serves its bytes for 15 minutes.

        `name` ends in the field that holds it, as in "trainingSets/1/contact_sheet". Raises NotFound when the field
        is not set.
        """
        return await self._call(self._stub.GetTrainingSetFile, GetTrainingSetFileRequest(name=name))

    def watch_training_set(
        self, name: str, after_sequence: int = 0, pace: Pace = STEADY
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of a training set until it ends, across reconnects; see watch.watch."""
        return watch(
            lambda cursor: self._stub.WatchTrainingSet(
                WatchTrainingSetRequest(name=name, after_sequence=cursor), metadata=self.channel.metadata
            ),
            after_sequence,
            pace,
        )
