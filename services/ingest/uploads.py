"""Uploads: files of callers who have no URL of their own, PUT to the object store and read from there."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import CreateUploadRequest, CreateUploadResponse, Dataset, Upload
from ltxtrain.v1.work_pb2 import State

from services.ingest.names import printable
from services.runtime.addresses import UPLOAD
from services.runtime.errors import FailedPrecondition, InvalidSpec, Violation
from services.runtime.objects import ObjectStore
from services.runtime.requests import new_name
from services.runtime.store import Store

# One PUT of S3 holds no more.
MAX_UPLOAD_BYTES = 5 << 30
PUT_SECONDS = 3600
MAX_FILE_NAME = 255
PREFIX = "ingest/uploads/"
# An upload that no unfinished dataset reads is kept for this long.
KEEP_SECONDS = 24 * 3600
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Uploads:
    """The uploads of all callers."""

    def __init__(self, store: Store[Upload], objects: ObjectStore) -> None:
        self._store = store
        self._objects = objects
        # Between the check of a dataset's uploads and its row, no sweep may take them.
        self._held = asyncio.Lock()

    async def create(self, request: CreateUploadRequest, owner: str) -> CreateUploadResponse:
        """Raises InvalidSpec."""
        if violations := _violations(request):
            raise InvalidSpec(violations)
        file_name = printable(request.file_name.replace("\\", "/").rpartition("/")[2])[:MAX_FILE_NAME]
        upload = Upload(
            name=new_name("uploads"), size_bytes=request.size_bytes, sha256=request.sha256, file_name=file_name
        )
        await self._store.create(upload, owner=owner, request_id="", digest=b"")
        url = await self._objects.presign_put(_key(upload.name), timedelta(seconds=PUT_SECONDS))
        expires = Timestamp()
        expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=PUT_SECONDS))
        return CreateUploadResponse(upload=upload.name, put_url=url, expire_time=expires)

    @asynccontextmanager
    async def held(self, names: Sequence[str], owner: str | None) -> AsyncIterator[None]:
        """Keep uploads while the block makes the dataset that reads them. Raises NotFound for one of another owner."""
        async with self._held if names else nullcontext():
            for name in names:
                await self._store.get(name, owner)
            yield

    async def shown(self, name: str) -> str:
        """The name of the video in reports: the upload, and the file that it was. Raises NotFound."""
        upload = await self._store.get(name)
        return f"upload:{name}/{upload.file_name}" if upload.file_name else f"upload:{name}"

    async def arrived(self, name: str) -> str:
        """Key of the object that was PUT. Raises FailedPrecondition (UPLOAD_MISMATCH) when it has another size."""
        upload = await self._store.get(name)
        found = await self._objects.stat(_key(name))
        if found is None:
            raise _mismatch(upload, "Nothing was PUT to its URL yet. PUT the file, then create the dataset.")
        if found.size_bytes != upload.size_bytes:
            raise _mismatch(upload, f"{upload.size_bytes} bytes were announced, {found.size_bytes} came.")
        return _key(name)

    async def verify(self, name: str, sha256: str) -> None:
        """Raises FailedPrecondition (UPLOAD_MISMATCH) when the bytes are not those that were announced."""
        upload = await self._store.get(name)
        if sha256 != upload.sha256:
            raise _mismatch(upload, f"The sha256 {upload.sha256} was announced, the bytes have {sha256}.")

    async def sweep(self, unfinished: Callable[[], Awaitable[Sequence[Dataset]]]) -> None:
        """Delete uploads of yesterday that no unfinished dataset reads, and objects whose upload is gone."""
        before = datetime.fromtimestamp(time.time() - KEEP_SECONDS, UTC)
        # Objects first: an upload has its row before its object, so that what has none later has been deleted.
        keys = await self._objects.keys_before(PREFIX, before)
        async with self._held:
            wanted = {name for dataset in await unfinished() for name in uploads_of(dataset)}
            for upload in await self._store.unfinished():
                if upload.name not in wanted and upload.lifecycle.create_time.ToDatetime(UTC) < before:
                    await self._forget(upload.name)
                    keys.append(_key(upload.name))
        known = {_key(upload.name) for upload in await self._store.unfinished()}
        for key in dict.fromkeys(keys):
            if key not in known:
                await self._objects.delete(key)

    async def _forget(self, name: str) -> None:
        async with self._store.edit(name) as edit:
            edit.enter(State.STATE_CANCELLED)
        await self._store.delete(name)


def uploads_of(dataset: Dataset) -> list[str]:
    """Names of the uploads that a dataset is made of."""
    found = [UPLOAD.fullmatch(url) for url in (dataset.archive_url, *dataset.videos.urls)]
    return [match[1] for match in found if match] + ([dataset.upload] if dataset.upload else [])


def _violations(request: CreateUploadRequest) -> list[Violation]:
    violations = []
    if not 0 < request.size_bytes <= MAX_UPLOAD_BYTES:
        text = f"{request.size_bytes} bytes; an upload has 1 to {MAX_UPLOAD_BYTES}. Larger archives come by URL."
        violations.append(Violation("size_bytes", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text))
    if not _SHA256.fullmatch(request.sha256):
        text = "The sha256 of the file in 64 lowercase hexadecimal digits."
        violations.append(Violation("sha256", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text))
    return violations


def _key(name: str) -> str:
    return f"ingest/{name}"


def _mismatch(upload: Upload, text: str) -> FailedPrecondition:
    metadata = {"upload": upload.name, "sizeBytes": upload.size_bytes, "sha256": upload.sha256}
    return FailedPrecondition(ErrorReason.ERROR_REASON_UPLOAD_MISMATCH, f"{upload.name}: {text}", metadata=metadata)
