"""IngestService: archives and videos become datasets of probed clips."""

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
    """A file that the store is ready to take. `send` it; then its name can be used once."""

    # Format: uploads/{upload}.
    name: str
    path: Path
    size_bytes: int
    put_url: str = field(repr=False)

    def send(self) -> AsyncGenerator[Transfer, None]:
        """Send the file, saying after each chunk how far it is. Raises TransferFailed."""
        return put_file(self.path, self.put_url, self.size_bytes)

    @property
    def url(self) -> str:
        """What names this upload where a sheet wants a URL."""
        return f"upload:{self.name}"


class IngestClient(Client):
    """One method for each call of IngestService, and `upload` for files. Every method raises CallError."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._stub = IngestServiceStub(channel.aio)

    async def create_upload(self, size_bytes: int, sha256: str, file_name: str = "") -> CreateUploadResponse:
        """A URL that takes a file of this size and digest (lowercase hex) by PUT; reports call a video by its name."""
        request = CreateUploadRequest(size_bytes=size_bytes, sha256=sha256, file_name=file_name)
        return await self._call(self._stub.CreateUpload, request)

    async def prepare_upload(self, path: Path) -> Upload:
        """Hash a file and have the store expect it. Raises OSError for one that cannot be read."""
        digest = await digest_file(path)
        created = await self.create_upload(digest.size_bytes, digest.sha256, path.name)
        return Upload(created.upload, path, digest.size_bytes, created.put_url)

    async def upload(self, path: Path) -> Upload:
        """Upload a file of at most 5 GiB. Raises TransferFailed, and OSError for one that cannot be read."""
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
        """Every dataset of yours; pages are fetched as they are needed."""
        request = ListDatasetsRequest(page_size=page_size)
        return self._pages(self._stub.ListDatasets, request, lambda response: response.datasets)

    async def cancel_dataset(self, name: str) -> Dataset:
        """Stop ingesting. One that has ended is returned unchanged."""
        return (await self._call(self._stub.CancelDataset, CancelDatasetRequest(name=name))).dataset

    async def delete_dataset(self, name: str) -> None:
        """Delete the record and what nothing else refers to. Raises FailedPrecondition before it has ended."""
        await self._call(self._stub.DeleteDataset, DeleteDatasetRequest(name=name))

    def list_clips(self, dataset: str, page_size: int = 0) -> AsyncGenerator[Clip, None]:
        request = ListClipsRequest(parent=dataset, page_size=page_size)
        return self._pages(self._stub.ListClips, request, lambda response: response.clips)

    def list_dataset_report(self, dataset: str, page_size: int = 0) -> AsyncGenerator[ReportLine, None]:
        """One line for every file of the archive: what became of it, and why."""
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
