"""Local files in place of the URLs of a sheet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec

from ltxtrain_client.errors import SHEET_PATH
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.local_data import LocalData
from ltxtrain_client.sheet import Problem, SheetInvalid
from ltxtrain_client.upload_source import FileSource, Source
from ltxtrain_client.view import View

# Placeholder for a file that is not uploaded yet, while the rest of the spec is checked.
PENDING_UPLOAD = "upload:uploads/" + "0" * 32


@dataclass(frozen=True)
class SheetFiles:
    """Files that are uploaded for a sheet: the training data, and a clip for each validation entry in order."""

    data: LocalData | None = None
    validation: Sequence[Path] = ()

    @property
    def fields(self) -> frozenset[str]:
        """Fields that the files fill, as violations name them."""
        clips = {f"{SHEET_PATH}validation[{index}].video_url" for index in range(len(self.validation))}
        return frozenset(clips | ({f"{SHEET_PATH}training_data_url"} if self.data is not None else set()))

    def announce(self, spec: ExtendPrefixSpec) -> None:
        """Put PENDING_UPLOAD wherever a file will be. Raises SheetInvalid when the spec names a dataset too."""
        if self.data is not None:
            if spec.dataset:
                raise SheetInvalid([Problem("dataset", "cannot be given together with --data")])
            spec.training_data_url = PENDING_UPLOAD
        for index, _ in enumerate(self.validation):
            if index == len(spec.validation):
                spec.validation.add()
            spec.validation[index].video_url = PENDING_UPLOAD

    async def upload(self, ingest: IngestClient, spec: ExtendPrefixSpec, view: View) -> None:
        """Upload all files and put their references into the spec.

        Raises TransferFailed when the store does not take one, OSError when one cannot be read.
        """
        if self.data is not None:
            spec.training_data_url = await upload_source(ingest, self.data.source, view)
        for entry, path in zip(spec.validation, self.validation, strict=False):
            entry.video_url = await upload_source(ingest, FileSource(path), view)


NO_FILES = SheetFiles()


def stand_in(spec: ExtendPrefixSpec) -> None:
    """Put PENDING_UPLOAD wherever a URL is missing, for calls that do not read the files."""
    if not spec.dataset and not spec.training_data_url:
        spec.training_data_url = PENDING_UPLOAD
    for entry in spec.validation:
        entry.video_url = entry.video_url or PENDING_UPLOAD


async def upload_source(ingest: IngestClient, source: Source, view: View) -> str:
    """Upload with progress; what stands for it in place of a URL."""
    large = source.size_bytes > _SHOW_HASHING_ABOVE
    label = f"reading {source.name}"
    upload = await ingest.prepare_upload(source, (lambda step: view.show_transfer(label, step)) if large else None)
    async for step in upload.send():
        view.show_transfer(source.name, step)
    return upload.url


# About a second.
_SHOW_HASHING_ABOVE = 300 << 20
