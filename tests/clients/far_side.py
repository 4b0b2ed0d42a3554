"""The other end of the client's tests: real servers on loopback whose answers a test writes down."""

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from google.type.money_pb2 import Money
from grpc_status import rpc_status
from ltxtrain.v1 import ingest_pb2, ingest_pb2_grpc, preprocess_pb2, preprocess_pb2_grpc, train_pb2, train_pb2_grpc
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Progress, Stage, State

# The sheet's own example, word for word.
EXAMPLE = (Path(__file__).parent.parent / "data/extend-prefix-example.json").read_text()
Context = grpc.aio.ServicerContext[Any, Any]
PAGE = 2


def status(
    code: grpc.StatusCode, message: str, reason: str = "", *, details: Sequence[Message] = (), **metadata: str
) -> status_pb2.Status:
    """A status as the services send it: ErrorInfo first."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="ltxtrain", metadata=metadata)
    made = status_pb2.Status(code=code.value[0], message=message)
    for detail in (info, *details) if reason else details:
        packed = PackedAny()
        packed.Pack(detail)
        made.details.append(packed)
    return made


def violations(*fields: tuple[str, str, str]) -> error_details_pb2.BadRequest:
    return error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field=field, reason=reason, description=description)
            for field, reason, description in fields
        ]
    )


def progress_events(count: int, ending: "State | None" = State.STATE_SUCCEEDED) -> list[Event]:
    """`count` events, the last of which ends the work unless `ending` is None."""
    events = [
        Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=index, total=count)) for index in range(1, count + 1)
    ]
    if ending is not None:
        events[-1] = Event(stage=Stage.STAGE_PUBLISH, lifecycle=Lifecycle(state=ending))
    return events


async def end_ok(context: Context) -> None:
    """The stream ends with OK."""


async def stay_silent(context: Context) -> None:
    """Nothing more is ever sent."""
    await asyncio.Event().wait()


def abort_with(code: grpc.StatusCode) -> Callable[[Context], Awaitable[None]]:
    async def abort(context: Context) -> None:
        await context.abort(code, "cut")

    return abort


def abort_with_status(sent: status_pb2.Status) -> Callable[[Context], Awaitable[None]]:
    async def abort(context: Context) -> None:
        await context.abort_with_status(rpc_status.to_status(sent))

    return abort


@dataclass(frozen=True)
class Act:
    """How one Watch stream behaves."""

    # Events sent before `then`; None: all there are.
    send: int | None = None
    then: Callable[[Context], Awaitable[None]] = end_ok
    # Events sent again although the cursor is past them.
    repeat: int = 0
    heartbeats: int = 0
    heartbeat_seconds: float = 0.0


class FarSide(
    train_pb2_grpc.TrainServiceServicer,
    ingest_pb2_grpc.IngestServiceServicer,
    preprocess_pb2_grpc.PreprocessServiceServicer,
):
    """The three services with as little behind them as a client can tell."""

    def __init__(self) -> None:
        self.address = ""
        # Every call: method, request, metadata.
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        # Statuses that the next calls of a method end with, in order; None lets a call through.
        self.failures: dict[str, deque[status_pb2.Status | None]] = {}
        self.jobs: dict[str, train_pb2.Job] = {}
        # Of the feed of all jobs.
        self.cursor = 0
        # What every job has made.
        self.output = train_pb2.JobOutput()
        self.artifacts: dict[str, Artifact] = {}
        self.report: list[Any] = []
        # Of training sets; None: the first line of the above.
        self.training_report: list[Any] | None = None
        self.training_state: State = State.STATE_SUCCEEDED
        self.events: list[Event] = []
        # One for each stream that is opened; then all is sent and the stream ends.
        self.acts: deque[Act] = deque()
        # Streams whose handler is running.
        self.open_streams = 0
        self.stream_begun = asyncio.Event()
        self.stream_ended = asyncio.Event()
        self.store = ""
        # Of datasets, with the files that GetClip serves.
        self.clips: list[ingest_pb2.Clip] = []
        self.samples: list[preprocess_pb2.Sample] = []
        self.contact_sheet: Blob | None = None
        # Parts of multipart uploads that have not come yet, by the upload; set by the first ListUploadParts.
        self.part_bytes = 1 << 20
        self.announced: dict[str, ingest_pb2.CreateUploadRequest] = {}
        self.complete: set[str] = set()
        # What is in the store, to tell which parts came: the object host's.
        self.objects: dict[str, bytes] = {}

    def fail(self, method: str, *statuses: status_pb2.Status | None) -> None:
        self.failures.setdefault(method, deque()).extend(statuses)

    def requests(self, method: str) -> list[Any]:
        return [request for name, request, _ in self.calls if name == method]

    def add_artifact(self, job: str, file: str, content: bytes, kind: "Artifact.Kind", sha256: str) -> str:
        name = f"{job}/artifacts/{file}"
        blob = Blob(key=f"{job}/{file}", size_bytes=len(content), sha256=sha256)
        self.artifacts[name] = Artifact(name=name, kind=kind, blob=blob)
        return name

    async def _enter(self, method: str, request: Any, context: Context) -> None:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.calls.append((method, request, metadata))
        failures = self.failures.get(method)
        if failures and (sent := failures.popleft()) is not None:
            await context.abort_with_status(rpc_status.to_status(sent))

    async def CreateJob(self, request: train_pb2.CreateJobRequest, context: Context) -> train_pb2.CreateJobResponse:
        await self._enter("CreateJob", request, context)
        job = train_pb2.Job(spec=request.spec, effective_spec=request.spec, options=request.options)
        if request.HasField("continue_from"):
            job.continue_from.CopyFrom(request.continue_from)
        if not request.validate_only:
            job.name = f"jobs/{uuid.uuid4().hex}"
            job.lifecycle.state = State.STATE_PENDING
            self.jobs[job.name] = job
        return train_pb2.CreateJobResponse(job=job)

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Context) -> train_pb2.GetJobResponse:
        await self._enter("GetJob", request, context)
        if request.name not in self.jobs:
            await context.abort_with_status(
                rpc_status.to_status(status(grpc.StatusCode.NOT_FOUND, "no such job", "RESOURCE_NOT_FOUND"))
            )
        job = self.jobs[request.name]
        job.output.CopyFrom(self.output)
        if self.events and self.events[-1].HasField("lifecycle"):
            job.lifecycle.CopyFrom(self.events[-1].lifecycle)
        return train_pb2.GetJobResponse(job=job)

    async def ListJobs(self, request: train_pb2.ListJobsRequest, context: Context) -> train_pb2.ListJobsResponse:
        await self._enter("ListJobs", request, context)
        found = [job for job in self.jobs.values() if not request.states or job.lifecycle.state in request.states]
        page, token = _page(found, request.page_token)
        return train_pb2.ListJobsResponse(jobs=page, next_page_token=token, watch_cursor=self.cursor)

    async def CancelJob(self, request: train_pb2.CancelJobRequest, context: Context) -> train_pb2.CancelJobResponse:
        await self._enter("CancelJob", request, context)
        job = self.jobs[request.name]
        job.lifecycle.state = State.STATE_CANCELLING
        self.events.append(Event(lifecycle=Lifecycle(state=State.STATE_CANCELLED)))
        return train_pb2.CancelJobResponse(job=job)

    async def RetryJob(self, request: train_pb2.RetryJobRequest, context: Context) -> train_pb2.RetryJobResponse:
        await self._enter("RetryJob", request, context)
        origin = train_pb2.ContinueFrom(source=request.name, step=self.jobs[request.name].checkpoint_step)
        job = train_pb2.Job(name=f"{request.name}again", continue_from=origin)
        job.lifecycle.state = State.STATE_PENDING
        return train_pb2.RetryJobResponse(job=self.jobs.setdefault(job.name, job))

    async def CheckpointJob(
        self, request: train_pb2.CheckpointJobRequest, context: Context
    ) -> train_pb2.CheckpointJobResponse:
        await self._enter("CheckpointJob", request, context)
        self.jobs[request.name].checkpoint_requested = True
        return train_pb2.CheckpointJobResponse(job=self.jobs[request.name])

    async def PreviewJob(self, request: train_pb2.PreviewJobRequest, context: Context) -> train_pb2.PreviewJobResponse:
        await self._enter("PreviewJob", request, context)
        self.jobs[request.name].preview_requested = True
        return train_pb2.PreviewJobResponse(job=self.jobs[request.name])

    async def DeleteJob(self, request: train_pb2.DeleteJobRequest, context: Context) -> train_pb2.DeleteJobResponse:
        await self._enter("DeleteJob", request, context)
        del self.jobs[request.name]
        return train_pb2.DeleteJobResponse()

    async def EstimateJob(
        self, request: train_pb2.EstimateJobRequest, context: Context
    ) -> train_pb2.EstimateJobResponse:
        await self._enter("EstimateJob", request, context)
        return train_pb2.EstimateJobResponse(
            tokens_per_clip=6912,
            seconds_low=3600,
            seconds_high=7260,
            peak_memory_bytes=60 * 10**9,
            billable_units=2000,
            price=Money(currency_code="USD", units=12, nanos=400_000_000),
        )

    async def ListArtifacts(
        self, request: train_pb2.ListArtifactsRequest, context: Context
    ) -> train_pb2.ListArtifactsResponse:
        await self._enter("ListArtifacts", request, context)
        found = [item for item in self.artifacts.values() if not request.kinds or item.kind in request.kinds]
        page, token = _page(found, request.page_token)
        return train_pb2.ListArtifactsResponse(artifacts=page, next_page_token=token)

    async def GetArtifact(
        self, request: train_pb2.GetArtifactRequest, context: Context
    ) -> train_pb2.GetArtifactResponse:
        await self._enter("GetArtifact", request, context)
        if request.name not in self.artifacts:
            await context.abort_with_status(
                rpc_status.to_status(status(grpc.StatusCode.NOT_FOUND, "no such artifact", "RESOURCE_NOT_FOUND"))
            )
        artifact = self.artifacts[request.name]
        return train_pb2.GetArtifactResponse(artifact=artifact, download_url=f"{self.store}/{artifact.blob.key}?secret")

    async def CreateUpload(
        self, request: ingest_pb2.CreateUploadRequest, context: Context
    ) -> ingest_pb2.CreateUploadResponse:
        await self._enter("CreateUpload", request, context)
        name = f"uploads/{request.sha256[:32]}"
        self.announced[name] = request
        response = ingest_pb2.CreateUploadResponse(upload=name, complete=name in self.complete)
        if not request.multipart:
            response.put_url = f"{self.store}/{name}?secret"
        return response

    async def ListUploadParts(
        self, request: ingest_pb2.ListUploadPartsRequest, context: Context
    ) -> ingest_pb2.ListUploadPartsResponse:
        await self._enter("ListUploadParts", request, context)
        parts, stored = [], 0
        size = self.announced[request.upload].size_bytes
        for index, start in enumerate(range(0, size, self.part_bytes)):
            length = min(self.part_bytes, size - start)
            path = f"/{request.upload}/{index + 1}"
            if path in self.objects:
                stored += length
                continue
            url = f"{self.store}{path}?secret"
            parts.append(ingest_pb2.UploadPart(number=index + 1, offset_bytes=start, size_bytes=length, put_url=url))
        return ingest_pb2.ListUploadPartsResponse(parts=parts[: request.page_size], stored_bytes=stored)

    async def CompleteUpload(
        self, request: ingest_pb2.CompleteUploadRequest, context: Context
    ) -> ingest_pb2.CompleteUploadResponse:
        await self._enter("CompleteUpload", request, context)
        parts = (len(self.objects) and -(-self.announced[request.upload].size_bytes // self.part_bytes)) or 0
        names = [f"/{request.upload}/{index + 1}" for index in range(parts)]
        self.objects[f"/{request.upload}"] = b"".join(self.objects[name] for name in names)
        self.complete.add(request.upload)
        return ingest_pb2.CompleteUploadResponse()

    async def ListDatasets(
        self, request: ingest_pb2.ListDatasetsRequest, context: Context
    ) -> ingest_pb2.ListDatasetsResponse:
        await self._enter("ListDatasets", request, context)
        made = [
            ingest_pb2.Dataset(
                name="datasets/3", clip_count=3, archive_url="upload:uploads/3", file_names=["holiday.zip"]
            ),
            ingest_pb2.Dataset(
                name="datasets/2",
                clip_count=2,
                videos=ingest_pb2.VideoUrls(urls=["https://a/b.mp4?secret", "upload:uploads/2"]),
                file_names=["opening.mp4"],
            ),
            ingest_pb2.Dataset(name="datasets/1", clip_count=1, upload="uploads/1"),
        ]
        page, token = _page(made, request.page_token)
        return ingest_pb2.ListDatasetsResponse(datasets=page, next_page_token=token)

    async def ListClips(self, request: ingest_pb2.ListClipsRequest, context: Context) -> ingest_pb2.ListClipsResponse:
        await self._enter("ListClips", request, context)
        page, token = _page(self.clips, request.page_token)
        return ingest_pb2.ListClipsResponse(clips=page, next_page_token=token)

    async def GetClip(self, request: ingest_pb2.GetClipRequest, context: Context) -> ingest_pb2.GetClipResponse:
        await self._enter("GetClip", request, context)
        clip = next(clip for clip in self.clips if clip.name == request.name)
        return ingest_pb2.GetClipResponse(clip=clip, download_url=f"{self.store}/{clip.blob.key}?secret")

    async def CreateDataset(
        self, request: ingest_pb2.CreateDatasetRequest, context: Context
    ) -> ingest_pb2.CreateDatasetResponse:
        await self._enter("CreateDataset", request, context)
        return ingest_pb2.CreateDatasetResponse(dataset=ingest_pb2.Dataset(name="datasets/1"))

    async def GetDataset(
        self, request: ingest_pb2.GetDatasetRequest, context: Context
    ) -> ingest_pb2.GetDatasetResponse:
        await self._enter("GetDataset", request, context)
        lifecycle = self.events[-1].lifecycle if self.events else Lifecycle()
        return ingest_pb2.GetDatasetResponse(dataset=ingest_pb2.Dataset(name=request.name, lifecycle=lifecycle))

    async def ListDatasetReport(
        self, request: ingest_pb2.ListDatasetReportRequest, context: Context
    ) -> ingest_pb2.ListDatasetReportResponse:
        await self._enter("ListDatasetReport", request, context)
        page, token = _page(self.report, request.page_token)
        return ingest_pb2.ListDatasetReportResponse(lines=page, next_page_token=token)

    async def ListTrainingSetReport(
        self, request: preprocess_pb2.ListTrainingSetReportRequest, context: Context
    ) -> preprocess_pb2.ListTrainingSetReportResponse:
        await self._enter("ListTrainingSetReport", request, context)
        return preprocess_pb2.ListTrainingSetReportResponse(
            lines=self.report[:1] if self.training_report is None else self.training_report
        )

    async def GetTrainingSet(
        self, request: preprocess_pb2.GetTrainingSetRequest, context: Context
    ) -> preprocess_pb2.GetTrainingSetResponse:
        await self._enter("GetTrainingSet", request, context)
        report = preprocess_pb2.PreprocessReport(suggestions=["At 57 frames 1 more clip would fit."])
        made = preprocess_pb2.TrainingSet(name=request.name, report=report, contact_sheet=self.contact_sheet)
        return preprocess_pb2.GetTrainingSetResponse(training_set=made)

    async def ListTrainingSets(
        self, request: preprocess_pb2.ListTrainingSetsRequest, context: Context
    ) -> preprocess_pb2.ListTrainingSetsResponse:
        await self._enter("ListTrainingSets", request, context)
        ended = Lifecycle(state=self.training_state)
        made = [
            preprocess_pb2.TrainingSet(name=f"trainingSets/{number}", dataset="datasets/1", lifecycle=ended)
            for number in (2, 1)
            if not request.states or self.training_state in request.states
        ]
        return preprocess_pb2.ListTrainingSetsResponse(training_sets=made)

    async def DeleteDataset(
        self, request: ingest_pb2.DeleteDatasetRequest, context: Context
    ) -> ingest_pb2.DeleteDatasetResponse:
        await self._enter("DeleteDataset", request, context)
        return ingest_pb2.DeleteDatasetResponse()

    async def ListSamples(
        self, request: preprocess_pb2.ListSamplesRequest, context: Context
    ) -> preprocess_pb2.ListSamplesResponse:
        await self._enter("ListSamples", request, context)
        return preprocess_pb2.ListSamplesResponse(samples=self.samples)

    async def GetTrainingSetFile(
        self, request: preprocess_pb2.GetTrainingSetFileRequest, context: Context
    ) -> preprocess_pb2.GetTrainingSetFileResponse:
        await self._enter("GetTrainingSetFile", request, context)
        url = f"{self.store}/{self.contact_sheet.key}?secret" if self.contact_sheet is not None else ""
        return preprocess_pb2.GetTrainingSetFileResponse(blob=self.contact_sheet, download_url=url)

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Context
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        async for response in self._watch("WatchJob", request, context, train_pb2.WatchJobResponse):
            yield response

    async def WatchDataset(
        self, request: ingest_pb2.WatchDatasetRequest, context: Context
    ) -> AsyncIterator[ingest_pb2.WatchDatasetResponse]:
        async for response in self._watch("WatchDataset", request, context, ingest_pb2.WatchDatasetResponse):
            yield response

    async def WatchTrainingSet(
        self, request: preprocess_pb2.WatchTrainingSetRequest, context: Context
    ) -> AsyncIterator[preprocess_pb2.WatchTrainingSetResponse]:
        response_type = preprocess_pb2.WatchTrainingSetResponse
        async for response in self._watch("WatchTrainingSet", request, context, response_type):
            yield response

    async def _watch(self, method: str, request: Any, context: Context, response: Any) -> AsyncIterator[Any]:
        self.open_streams += 1
        self.stream_begun.set()
        try:
            await self._enter(method, request, context)
            act = self.acts.popleft() if self.acts else Act()
            first = max(0, request.after_sequence - act.repeat)
            last = len(self.events) if act.send is None else first + act.send
            for sequence, event in enumerate(self.events[first:last], first + 1):
                yield response(sequence=sequence, event=event)
            for _ in range(act.heartbeats):
                yield response(sequence=last)
                await asyncio.sleep(act.heartbeat_seconds)
            await act.then(context)
        finally:
            self.open_streams -= 1
            self.stream_ended.set()


def _page(items: Sequence[Any], token: str) -> tuple[Sequence[Any], str]:
    start = int(token or 0)
    return items[start : start + PAGE], str(start + PAGE) if start + PAGE < len(items) else ""


@asynccontextmanager
async def serving(
    far: FarSide,
    *,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
    also: Callable[[grpc.aio.Server], None] | None = None,
) -> AsyncIterator[grpc.aio.Server]:
    """The far side on a loopback port, which `far.address` then names."""
    server = grpc.aio.server()
    train_pb2_grpc.add_TrainServiceServicer_to_server(far, server)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(far, server)
    preprocess_pb2_grpc.add_PreprocessServiceServicer_to_server(far, server)
    if also is not None:
        also(server)
    bind = f"127.0.0.1:{port}"
    taken = server.add_secure_port(bind, credentials) if credentials else server.add_insecure_port(bind)
    far.address = f"127.0.0.1:{taken}"
    await server.start()
    try:
        yield server
    finally:
        await server.stop(None)
