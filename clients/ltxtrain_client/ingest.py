"""Client of IngestService: turn archives and videos into datasets of probed clips."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ltxtrain.v1.ingest_pb2 import (
    CancelDatasetRequest,
    Clip,
    CompleteUploadRequest,
    CreateDatasetRequest,
    CreateUploadRequest,
    CreateUploadResponse,
    Dataset,
    DeleteDatasetRequest,
    GetClipRequest,
    GetClipResponse,
    GetDatasetRequest,
    ListClipsRequest,
    ListDatasetReportRequest,
    ListDatasetsRequest,
    ListUploadPartsRequest,
    ListUploadPartsResponse,
    VideoUrls,
    WatchDatasetRequest,
)
from ltxtrain.v1.ingest_pb2_grpc import IngestServiceStub
from ltxtrain.v1.work_pb2 import Event, ReportLine

from ltxtrain_client.calls import Client, new_request_id
from ltxtrain_client.channel import Channel
from ltxtrain_client.transfer import Transfer, digest_source
from ltxtrain_client.upload_source import FileSource, Source
from ltxtrain_client.watch import STEADY, Pace, watch

# Larger sources are sent in parts: in parallel, and resumed after an interruption.
MULTIPART_ABOVE_BYTES = 64 << 20
MAX_PARTS_A_PAGE = 100


@dataclass(frozen=True)
class Upload:
    """A file that the object store expects. `send` it; then its name stands for it for a day."""

    name: str
    """Format: uploads/{upload}."""

    source: Source
    """The bytes."""

    complete: bool
    """The store has all bytes already, from an earlier upload of the same file."""

    put_url: str = field(repr=False)
    """Presigned URL that takes the bytes; empty for an upload in parts."""

    ingest: "IngestClient" = field(repr=False)
    """Client of the service that announced it."""

    async def send(self) -> AsyncGenerator[Transfer, None]:
        """Send what the store lacks, yielding progress. Raises TransferFailed when the store does not take it."""
        # With aiohttp, which whoever sends nothing is spared.
        from ltxtrain_client.presigned import put_parts, put_source

        if self.complete:
            yield Transfer(self.source.size_bytes, self.source.size_bytes)
        elif self.put_url:
            async for step in put_source(self.source, self.put_url, self.ingest.channel.tls_root):
                yield step
        else:
            missing = partial(self.ingest.list_upload_parts, self.name)
            async for step in put_parts(self.source, missing, self.ingest.channel.tls_root):
                yield step
            await self.ingest.complete_upload(self.name)

    @property
    def url(self) -> str:
        """Reference to this upload where a sheet expects a URL."""
        return f"upload:{self.name}"


class IngestClient(Client):
    """One method per RPC of IngestService, and `upload` for files.

    Every method raises CallError when the call fails.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._stub = IngestServiceStub(channel.aio)

    async def create_upload(
        self, size_bytes: int, sha256: str, file_name: str = "", *, multipart: bool = False
    ) -> CreateUploadResponse:
        """Announce a file of this size and sha256 (lowercase hex); reports refer to a single video by `file_name`."""
        request = CreateUploadRequest(size_bytes=size_bytes, sha256=sha256, file_name=file_name, multipart=multipart)
        return await self._call(self._stub.CreateUpload, request)

    async def list_upload_parts(self, upload: str) -> ListUploadPartsResponse:
        """The first parts of a multipart upload that the store lacks, with their URLs; none when it has all."""
        request = ListUploadPartsRequest(upload=upload, page_size=MAX_PARTS_A_PAGE)
        return await self._call(self._stub.ListUploadParts, request)

    async def complete_upload(self, upload: str) -> None:
        """Join the parts of a multipart upload. Raises FailedPrecondition when one is missing."""
        await self._call(self._stub.CompleteUpload, CompleteUploadRequest(upload=upload))

    async def prepare_upload(
        self, source: Path | Source, show_hashing: Callable[[Transfer], None] | None = None
    ) -> Upload:
        """Hash a file or source and announce it to the store. Raises OSError when it cannot be read."""
        found = FileSource(source) if isinstance(source, Path) else source
        digest = await digest_source(found, show_hashing)
        multipart = digest.size_bytes > MULTIPART_ABOVE_BYTES
        made = await self.create_upload(digest.size_bytes, digest.sha256, found.name, multipart=multipart)
        return Upload(made.upload, found, made.complete, made.put_url, self)

    async def upload(self, source: Path | Source) -> Upload:
        """Upload a file or source; what an earlier upload of it has stored is not sent again.

        Raises TransferFailed when the store does not take it, OSError when a file cannot be read.
        """
        upload = await self.prepare_upload(source)
        async for _ in upload.send():
            pass
        return upload

    async def create_dataset(
        self,
        *,
        archive_url: str | None = None,
        upload: str | None = None,
        videos: Sequence[str] | None = None,
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Dataset:
        """Start ingesting one source: the URL of an archive, an upload, or URLs of loose videos."""
        request = CreateDatasetRequest(
            request_id=request_id or new_request_id(),
            archive_url=archive_url,
            upload=upload,
            videos=VideoUrls(urls=videos) if videos is not None else None,
            display_name=display_name,
            labels=labels,
        )
        return (await self._call(self._stub.CreateDataset, request)).dataset

    async def get_dataset(self, name: str) -> Dataset:
        return (await self._call(self._stub.GetDataset, GetDatasetRequest(name=name))).dataset

    def list_datasets(self, page_size: int = 0) -> AsyncGenerator[Dataset, None]:
        """All your datasets; pages are fetched as needed."""
        request = ListDatasetsRequest(page_size=page_size)
        return self._pages(self._stub.ListDatasets, request, lambda response: response.datasets)

    async def cancel_dataset(self, name: str) -> Dataset:
        """Stop ingesting. A dataset that has ended is returned unchanged."""
        return (await self._call(self._stub.CancelDataset, CancelDatasetRequest(name=name))).dataset

    async def delete_dataset(self, name: str) -> None:
        """Delete the record, and the bytes that nothing else refers to.

        Raises FailedPrecondition when the dataset has not ended yet.
        """
        await self._call(self._stub.DeleteDataset, DeleteDatasetRequest(name=name))

    def list_clips(self, dataset: str, page_size: int = 0) -> AsyncGenerator[Clip, None]:
        request = ListClipsRequest(parent=dataset, page_size=page_size)
        return self._pages(self._stub.ListClips, request, lambda response: response.clips)

    async def get_clip(self, name: str) -> GetClipResponse:
        """Get one clip with a URL that serves its bytes for 15 minutes."""
        return await self._call(self._stub.GetClip, GetClipRequest(name=name))

    def list_dataset_report(self, dataset: str, page_size: int = 0) -> AsyncGenerator[ReportLine, None]:
        """Report of a dataset: a line for every file of the archive, with its outcome and the reasons."""
        request = ListDatasetReportRequest(parent=dataset, page_size=page_size)
        return self._pages(self._stub.ListDatasetReport, request, lambda response: response.lines)

    def watch_dataset(
        self, name: str, after_sequence: int = 0, pace: Pace = STEADY
    ) -> AsyncGenerator[tuple[int, Event], None]:
        """Events of a dataset until it ends, across reconnects; see watch.watch."""
        return watch(
            lambda cursor: self._stub.WatchDataset(
                WatchDatasetRequest(name=name, after_sequence=cursor), metadata=self.channel.metadata
            ),
            after_sequence,
            pace,
        )
