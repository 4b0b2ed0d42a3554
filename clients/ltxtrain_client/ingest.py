"""Client of IngestService: turn archives and videos into datasets of probed clips."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ltxtrain.v1.ingest_pb2 import (
    CancelDatasetRequest,
    Clip,
    CreateDatasetRequest,
    CreateUploadRequest,
    CreateUploadResponse,
    Dataset,
    DeleteDatasetRequest,
    GetDatasetRequest,
    ListClipsRequest,
    ListDatasetReportRequest,
    ListDatasetsRequest,
    VideoUrls,
    WatchDatasetRequest,
)
from ltxtrain.v1.ingest_pb2_grpc import IngestServiceStub
from ltxtrain.v1.work_pb2 import Event, ReportLine

from ltxtrain_client.calls import Client, new_request_id
from ltxtrain_client.channel import Channel
from ltxtrain_client.transfer import Transfer, digest_file, put_file
from ltxtrain_client.watch import STEADY, Pace, watch


@dataclass(frozen=True)
class Upload:
    """A file that the object store expects. `send` it; then its name can be used once."""

    name: str
    """Format: uploads/{upload}."""

    path: Path
    """The local file."""

    size_bytes: int
    """Its size."""

    put_url: str = field(repr=False)
    """Presigned URL that takes the bytes."""

    def send(self) -> AsyncGenerator[Transfer, None]:
        """Send the file, yielding progress after each chunk. Raises TransferFailed when the store does not take it."""
        return put_file(self.path, self.put_url, self.size_bytes)

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

    async def create_upload(self, size_bytes: int, sha256: str, file_name: str = "") -> CreateUploadResponse:
        """Announce a file of this size and sha256 (lowercase hex); reports refer to a single video by `file_name`."""
        request = CreateUploadRequest(size_bytes=size_bytes, sha256=sha256, file_name=file_name)
        return await self._call(self._stub.CreateUpload, request)

    async def prepare_upload(self, path: Path) -> Upload:
        """Hash a file and announce it to the store. Raises OSError when it cannot be read."""
        digest = await digest_file(path)
        created = await self.create_upload(digest.size_bytes, digest.sha256, path.name)
        return Upload(created.upload, path, digest.size_bytes, created.put_url)

    async def upload(self, path: Path) -> Upload:
        """Upload a file of at most 5 GiB.

        Raises TransferFailed when the store does not take it, OSError when the file cannot be read.
        """
        upload = await self.prepare_upload(path)
        async for _ in upload.send():
            pass
        return upload

    async def create_dataset(
        self,
        *,
        archive_url: str | None = None,
        upload: str | None = None,
        videos: Sequence[str] | None = None,
        request_id: str | None = None,
    ) -> Dataset:
        """Start ingesting one source: the URL of an archive, an upload, or URLs of loose videos."""
        request = CreateDatasetRequest(
            request_id=request_id or new_request_id(),
            archive_url=archive_url,
            upload=upload,
            videos=VideoUrls(urls=videos) if videos is not None else None,
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
