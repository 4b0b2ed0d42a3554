"""Clients of the three services together, and the files behind any resource name."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from ltxtrain.v1.artifact_pb2 import Blob

from ltxtrain_client.channel import ClientSettings, connect
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.train import TrainClient
from ltxtrain_client.transfer import FileDigest, Transfer

# File names of fields that hold a Blob.
_FIELD_FILES = {
    "contact_sheet": "contact-sheet.html",
    "archive": "debug-dataset.zip",
    "negative_prompt": "negative-prompt.safetensors",
    "latents": "latents.safetensors",
    "prompt": "prompt.safetensors",
    "clip_preview": "clip.mkv",
    "prefix_frames": "prefix.mkv",
}


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a job, dataset or training set with a URL that serves it."""

    name: str
    """Resource name, as in "jobs/1/artifacts/lora.safetensors"."""

    file_name: str
    """Name for a local copy."""

    blob: Blob
    """Size and sha256."""

    download_url: str = field(repr=False)
    """Presigned URL that anybody may GET for 15 minutes."""


@dataclass(frozen=True)
class Suite:
    """Clients of the three services."""

    train: TrainClient
    ingest: IngestClient
    preprocess: PreprocessClient

    async def remote_file(self, name: str) -> RemoteFile:
        """Find a file and sign a URL for it.

        `name`: jobs/J/artifacts/A, datasets/D/clips/C, trainingSets/T/FIELD or trainingSets/T/samples/S/FIELD, where
        FIELD is one that holds a Blob: contact_sheet, archive, clip_preview, ...
        Raises NotFound when there is no such file.
        """
        if name.startswith("datasets/"):
            clip = await self.ingest.get_clip(name)
            file = _safe(PurePosixPath(clip.clip.path).name)
            return RemoteFile(name=name, file_name=file, blob=clip.clip.blob, download_url=clip.download_url)
        if name.startswith("trainingSets/"):
            made = await self.preprocess.get_training_set_file(name)
            file = _FIELD_FILES.get(name.rpartition("/")[2], "file")
            return RemoteFile(name=name, file_name=file, blob=made.blob, download_url=made.download_url)
        found = await self.train.get_artifact(name)
        file = _safe(PurePosixPath(name).name)
        return RemoteFile(name=name, file_name=file, blob=found.artifact.blob, download_url=found.download_url)

    async def download_steps(self, name: str, path: Path) -> AsyncGenerator[Transfer, None]:
        """Download a file to `path`, which appears whole and checked by sha256; yields progress after each chunk.

        Raises NotFound when there is no such file, TransferFailed when the store does not serve the right bytes.
        """
        # With aiohttp, which whoever fetches nothing is spared.
        from ltxtrain_client.presigned import get_file

        blob = (await self.remote_file(name)).blob

        async def fresh_url() -> str:
            return (await self.remote_file(name)).download_url

        digest = FileDigest(blob.size_bytes, blob.sha256)
        async for step in get_file(path, digest, fresh_url, self.train.channel.tls_root):
            yield step


@asynccontextmanager
async def open_suite(settings: ClientSettings) -> AsyncIterator[Suite]:
    """Clients for the addresses in `settings`; nothing is dialled before the first call."""
    async with (
        connect(settings.train, settings.credentials) as train,
        connect(settings.ingest, settings.credentials) as ingest,
        connect(settings.preprocess, settings.credentials) as preprocess,
    ):
        yield Suite(TrainClient(train), IngestClient(ingest), PreprocessClient(preprocess))


def _safe(name: str) -> str:
    # The name is the server's or a caller's; the folder that it is written to is ours.
    return name if name not in ("", ".", "..") and "/" not in name and "\\" not in name else "file"
