"""IngestService: the RPCs. The work of a dataset is in `pipeline`."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc.aio
from ltxtrain.v1 import ingest_pb2, ingest_pb2_grpc
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip, Dataset, Upload, VideoUrls
from ltxtrain.v1.work_pb2 import ReportLine

from ltxtrain_services.ingest.clip_store import ClipStore
from ltxtrain_services.ingest.fetch import Fetcher
from ltxtrain_services.ingest.pipeline import CLIPS, IngestWorkflow
from ltxtrain_services.ingest.probing import Probing
from ltxtrain_services.ingest.sources import Sources
from ltxtrain_services.ingest.uploads import Uploads, uploads_of
from ltxtrain_services.runtime import report
from ltxtrain_services.runtime.addresses import CLIP, check_url
from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, Violation
from ltxtrain_services.runtime.paging import request_digest
from ltxtrain_services.runtime.requests import (
    Watches,
    beside,
    check_names,
    check_request_id,
    listed,
    new_name,
    sign_download,
    visible_owner,
)
from ltxtrain_services.runtime.rules import max_items
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import WorkRunner

MAX_VIDEOS = max_items(VideoUrls, "urls")


class IngestService(ingest_pb2_grpc.IngestServiceServicer):
    """Datasets, their clips, their reports, and uploads."""

    full_name = "ltxtrain.v1.IngestService"

    def __init__(self, runtime: Runtime, fetcher: Fetcher | None = None) -> None:
        self._settings = runtime.settings
        self._objects = runtime.objects
        self._datasets: Store[Dataset] = Store(runtime.database, runtime.log, "datasets", Dataset)
        self._watches = Watches(runtime.log)
        self._uploads = Uploads(
            Store(runtime.database, runtime.log, "uploads", Upload), runtime.objects, runtime.settings.fetch_max_bytes
        )
        self._clips = ClipStore(runtime.objects, runtime.blobs)
        fetcher = fetcher or Fetcher(runtime.settings)
        sources = Sources(runtime.settings, runtime.objects, self._uploads, fetcher, self._clip)
        probing = Probing(runtime, self._clips)
        self._workflow = IngestWorkflow(runtime.settings, sources, self._clips, probing)
        self.work = WorkRunner(self._datasets, self._workflow)

    def register(self, server: grpc.aio.Server) -> None:
        ingest_pb2_grpc.add_IngestServiceServicer_to_server(self, server)

    async def tidy(self) -> None:
        await self._workflow.sweep(self._datasets.unfinished)
        await self._uploads.sweep(self._datasets.unfinished)
        await self._clips.sweep()

    async def CreateUpload(
        self, request: ingest_pb2.CreateUploadRequest, context: Any
    ) -> ingest_pb2.CreateUploadResponse:
        return await self._uploads.create(request, caller.get())

    async def ListUploadParts(
        self, request: ingest_pb2.ListUploadPartsRequest, context: Any
    ) -> ingest_pb2.ListUploadPartsResponse:
        return await self._uploads.missing_parts(request, visible_owner())

    async def CompleteUpload(
        self, request: ingest_pb2.CompleteUploadRequest, context: Any
    ) -> ingest_pb2.CompleteUploadResponse:
        await self._uploads.complete(request.upload, visible_owner())
        return ingest_pb2.CompleteUploadResponse()

    async def CreateDataset(
        self, request: ingest_pb2.CreateDatasetRequest, context: Any
    ) -> ingest_pb2.CreateDatasetResponse:
        # A hundred URLs of eight kilobytes take a few milliseconds.
        violations = await beside(request.ByteSize(), lambda: self._violations(request))
        violations = [*violations, *check_request_id(request.request_id)]
        if violations := [*violations, *check_names(request.display_name, request.labels)]:
            raise InvalidSpec(violations)
        dataset = Dataset(name=new_name("datasets"), display_name=request.display_name, labels=request.labels)
        match request.WhichOneof("source"):
            case "archive_url":
                dataset.archive_url = request.archive_url
            case "upload":
                dataset.upload = request.upload
            case "videos":
                dataset.videos.CopyFrom(request.videos)
        for url in request.videos.urls:
            if clip := CLIP.fullmatch(url):
                await self._clip(clip[1], visible_owner())
        async with self._uploads.held(uploads_of(dataset), visible_owner()) as file_names:
            dataset.file_names.extend(file_names)
            made = await self._datasets.create(
                dataset, owner=caller.get(), request_id=request.request_id, digest=request_digest(request)
            )
        self.work.start(made.name)
        return ingest_pb2.CreateDatasetResponse(dataset=made)

    async def GetDataset(self, request: ingest_pb2.GetDatasetRequest, context: Any) -> ingest_pb2.GetDatasetResponse:
        return ingest_pb2.GetDatasetResponse(dataset=await self._datasets.get(request.name, visible_owner()))

    async def ListDatasets(
        self, request: ingest_pb2.ListDatasetsRequest, context: Any
    ) -> ingest_pb2.ListDatasetsResponse:
        datasets, token = await listed(self._datasets, request)
        return ingest_pb2.ListDatasetsResponse(datasets=datasets, next_page_token=token)

    async def CancelDataset(
        self, request: ingest_pb2.CancelDatasetRequest, context: Any
    ) -> ingest_pb2.CancelDatasetResponse:
        return ingest_pb2.CancelDatasetResponse(dataset=await self.work.cancel(request.name, visible_owner()))

    async def DeleteDataset(
        self, request: ingest_pb2.DeleteDatasetRequest, context: Any
    ) -> ingest_pb2.DeleteDatasetResponse:
        await self._datasets.get(request.name, visible_owner())
        await self._datasets.delete(request.name, visible_owner())
        return ingest_pb2.DeleteDatasetResponse()

    async def ListClips(self, request: ingest_pb2.ListClipsRequest, context: Any) -> ingest_pb2.ListClipsResponse:
        await self._datasets.get(request.parent, visible_owner())
        clips, token = await self._datasets.children(request.parent, CLIPS, Clip, request.page_size, request.page_token)
        return ingest_pb2.ListClipsResponse(clips=clips, next_page_token=token)

    async def GetClip(self, request: ingest_pb2.GetClipRequest, context: Any) -> ingest_pb2.GetClipResponse:
        clip = await self._clip(request.name, visible_owner())
        url, expires = await sign_download(self._objects, clip.blob)
        return ingest_pb2.GetClipResponse(clip=clip, download_url=url, expire_time=expires)

    async def ListDatasetReport(
        self, request: ingest_pb2.ListDatasetReportRequest, context: Any
    ) -> ingest_pb2.ListDatasetReportResponse:
        await self._datasets.get(request.parent, visible_owner())
        lines, token = await self._datasets.children(
            request.parent, report.COLLECTION, ReportLine, request.page_size, request.page_token
        )
        return ingest_pb2.ListDatasetReportResponse(lines=lines, next_page_token=token)

    async def WatchDataset(
        self, request: ingest_pb2.WatchDatasetRequest, context: Any
    ) -> AsyncIterator[ingest_pb2.WatchDatasetResponse]:
        await self._datasets.get(request.name, visible_owner())
        response = ingest_pb2.WatchDatasetResponse
        async for item in self._watches.responses(request.name, request.after_sequence, response, request.kinds):
            yield item

    async def _clip(self, name: str, owner: str | None = None) -> Clip:
        """A clip of a dataset. Raises NotFound, also for one of another owner; owner None sees all."""
        dataset, _, number = name.partition(f"/{CLIPS}/")
        await self._datasets.get(dataset, owner)
        clip = await self._datasets.child(dataset, CLIPS, number, Clip)
        if clip is None:
            raise NotFound(name)
        return clip

    def _violations(self, request: ingest_pb2.CreateDatasetRequest) -> list[Violation]:
        if (count := len(request.videos.urls)) > MAX_VIDEOS:
            text = f"{count} videos, at most {MAX_VIDEOS} are taken one by one. Use an archive."
            return [Violation("videos.urls", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)]
        urls: Sequence[tuple[str, str]] = ()
        match request.WhichOneof("source"):
            case "archive_url":
                urls = [("archive_url", request.archive_url)]
            case "upload":
                urls = [("upload", request.upload and f"upload:{request.upload}")]
            case "videos":
                urls = [(f"videos.urls[{index}]", url) for index, url in enumerate(request.videos.urls)]
        if not urls:
            text = "Name an archive_url, an upload or videos."
            return [Violation("source", ErrorReason.ERROR_REASON_FIELD_REQUIRED, text)]
        return [violation for field, url in urls if (violation := self._violation(field, url)) is not None]

    def _violation(self, field: str, url: str) -> Violation | None:
        if not url:
            return Violation(field, ErrorReason.ERROR_REASON_FIELD_REQUIRED, "It is empty.")
        if field.startswith("videos") and CLIP.fullmatch(url):
            return None
        refusal = check_url(url, self._settings.fetch_allow, self._settings.source_buckets)
        return None if refusal is None else Violation(field, ErrorReason.ERROR_REASON_URL_NOT_ALLOWED, refusal)
