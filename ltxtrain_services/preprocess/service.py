"""PreprocessService: the RPCs. What is done for a training set is in `workflow`."""

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
from ltxtrain.v1 import preprocess_pb2, preprocess_pb2_grpc
from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.work_pb2 import ReportLine

from ltxtrain_services.preprocess.cache import Cache
from ltxtrain_services.preprocess.cache_keys import read_versions
from ltxtrain_services.preprocess.request import requested
from ltxtrain_services.preprocess.workflow import PreprocessWorkflow
from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.errors import NotFound
from ltxtrain_services.runtime.paging import request_digest
from ltxtrain_services.runtime.requests import (
    Watches,
    beside,
    listed,
    new_name,
    sign_download,
    visible_owner,
)
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import WorkRunner


class PreprocessService(preprocess_pb2_grpc.PreprocessServiceServicer):
    """Datasets to training sets."""

    full_name = "ltxtrain.v1.PreprocessService"

    def __init__(self, runtime: Runtime) -> None:
        self._sets: Store[TrainingSet] = Store(runtime.database, runtime.log, "trainingSets", TrainingSet)
        self._objects = runtime.objects
        self._watches = Watches(runtime.log)
        self._cache = Cache(runtime.blobs, runtime.objects)
        read_versions()
        self.work = WorkRunner(self._sets, PreprocessWorkflow(runtime, self._cache))

    def register(self, server: grpc.aio.Server) -> None:
        preprocess_pb2_grpc.add_PreprocessServiceServicer_to_server(self, server)

    async def tidy(self) -> None:
        """Sweep what no training set has referred to for a day."""
        await self._cache.sweep()

    async def CreateTrainingSet(
        self, request: preprocess_pb2.CreateTrainingSetRequest, context: Any
    ) -> preprocess_pb2.CreateTrainingSetResponse:
        training_set = await beside(request.ByteSize(), lambda: requested(request))
        training_set.name = new_name("trainingSets")
        digest = request_digest(request)
        made = await self._sets.create(training_set, owner=caller.get(), request_id=request.request_id, digest=digest)
        self.work.start(made.name)
        return preprocess_pb2.CreateTrainingSetResponse(training_set=made)

    async def GetTrainingSet(
        self, request: preprocess_pb2.GetTrainingSetRequest, context: Any
    ) -> preprocess_pb2.GetTrainingSetResponse:
        found = await self._sets.get(request.name, visible_owner())
        return preprocess_pb2.GetTrainingSetResponse(training_set=found)

    async def ListTrainingSets(
        self, request: preprocess_pb2.ListTrainingSetsRequest, context: Any
    ) -> preprocess_pb2.ListTrainingSetsResponse:
        found, token = await listed(self._sets, request)
        return preprocess_pb2.ListTrainingSetsResponse(training_sets=found, next_page_token=token)

    async def CancelTrainingSet(
        self, request: preprocess_pb2.CancelTrainingSetRequest, context: Any
    ) -> preprocess_pb2.CancelTrainingSetResponse:
        cancelled = await self.work.cancel(request.name, visible_owner())
        return preprocess_pb2.CancelTrainingSetResponse(training_set=cancelled)

    async def DeleteTrainingSet(
        self, request: preprocess_pb2.DeleteTrainingSetRequest, context: Any
    ) -> preprocess_pb2.DeleteTrainingSetResponse:
        await self._sets.delete(request.name, visible_owner())
        return preprocess_pb2.DeleteTrainingSetResponse()

    async def ListSamples(
        self, request: preprocess_pb2.ListSamplesRequest, context: Any
    ) -> preprocess_pb2.ListSamplesResponse:
        await self._sets.get(request.parent, visible_owner())
        samples, token = await self._sets.children(
            request.parent, "samples", Sample, request.page_size, request.page_token
        )
        return preprocess_pb2.ListSamplesResponse(samples=samples, next_page_token=token)

    async def ListTrainingSetReport(
        self, request: preprocess_pb2.ListTrainingSetReportRequest, context: Any
    ) -> preprocess_pb2.ListTrainingSetReportResponse:
        await self._sets.get(request.parent, visible_owner())
        lines, token = await self._sets.children(
            request.parent, "report", ReportLine, request.page_size, request.page_token
        )
        return preprocess_pb2.ListTrainingSetReportResponse(lines=lines, next_page_token=token)

    async def GetTrainingSetFile(
        self, request: preprocess_pb2.GetTrainingSetFileRequest, context: Any
    ) -> preprocess_pb2.GetTrainingSetFileResponse:
        owner, _, field = request.name.rpartition("/")
        training_set, _, sample = owner.partition("/samples/")
        holder: TrainingSet | Sample | None = await self._sets.get(training_set, visible_owner())
        if sample:
            holder = await self._sets.child(training_set, "samples", sample, Sample)
        described = None if holder is None else holder.DESCRIPTOR.fields_by_name.get(field)
        if holder is None or described is None or described.message_type is not Blob.DESCRIPTOR:
            raise NotFound(request.name)
        blob = getattr(holder, field)
        if not blob.key:
            raise NotFound(request.name)
        url, expires = await sign_download(self._objects, blob)
        return preprocess_pb2.GetTrainingSetFileResponse(blob=blob, download_url=url, expire_time=expires)

    async def WatchTrainingSet(
        self, request: preprocess_pb2.WatchTrainingSetRequest, context: Any
    ) -> AsyncIterator[preprocess_pb2.WatchTrainingSetResponse]:
        await self._sets.get(request.name, visible_owner())
        async for response in self._watches.responses(
            request.name, request.after_sequence, preprocess_pb2.WatchTrainingSetResponse, request.kinds
        ):
            yield response
