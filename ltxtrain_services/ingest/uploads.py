"""Uploads: files of callers who have no URL of their own, PUT to the object store and read from there.

An upload is addressed by its content: the same bytes and file name are the same upload as long as it is kept, so that
a client which starts again sends only what the store lacks.
"""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import (
    CreateUploadRequest,
    CreateUploadResponse,
    Dataset,
    ListUploadPartsRequest,
    ListUploadPartsResponse,
    Upload,
    UploadPart,
)
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.ingest.names import printable
from ltxtrain_services.runtime.addresses import UPLOAD
from ltxtrain_services.runtime.errors import FailedPrecondition, InvalidSpec, NotFound, PageTokenInvalid, Violation
from ltxtrain_services.runtime.objects import ObjectMissing, ObjectStore
from ltxtrain_services.runtime.paging import page_size
from ltxtrain_services.runtime.requests import new_name
from ltxtrain_services.runtime.rules import line
from ltxtrain_services.runtime.store import Store

# One PUT of S3 holds no more.
MAX_PUT_BYTES = 5 << 30
MIN_PART_BYTES = 16 << 20
# S3 allows 10,000.
MAX_PARTS = 9_000
# About 500 bytes for each URL.
DEFAULT_PAGE, MAX_PAGE = 50, 100
PUT_SECONDS = 3600
MAX_FILE_NAME = 255
PREFIX = "ingest/uploads/"
# An upload that no unfinished dataset reads is kept for this long after its last CreateUpload.
KEEP_SECONDS = 24 * 3600
SHA256 = line(CreateUploadRequest, "sha256")


class Uploads:
    """The uploads of all callers, of at most `max_bytes` each."""

    def __init__(self, store: Store[Upload], objects: ObjectStore, max_bytes: int) -> None:
        self._store = store
        self._objects = objects
        self._max_bytes = max_bytes
        # Between the check of a dataset's uploads and its row, no sweep may take them.
        self._held = asyncio.Lock()

    async def create(self, request: CreateUploadRequest, owner: str) -> CreateUploadResponse:
        """Expect a file, or find what an equal earlier request began. Raises InvalidSpec when a field is wrong."""
        if violations := self._violations(request):
            raise InvalidSpec(violations)
        upload = await self._created(request, owner)
        async with self._store.edit(upload.name) as edit:
            edit.body.expire_time.CopyFrom(_after_now(KEEP_SECONDS))
        response = CreateUploadResponse(
            upload=upload.name, complete=await self._is_complete(upload), expire_time=_after_now(PUT_SECONDS)
        )
        if not request.multipart:
            response.put_url = await self._objects.presign_put(_key(upload.name), timedelta(seconds=PUT_SECONDS))
        return response

    async def missing_parts(self, request: ListUploadPartsRequest, owner: str | None) -> ListUploadPartsResponse:
        """A page of the parts that the store lacks. Raises NotFound, and FailedPrecondition for a single PUT."""
        size = page_size(request.page_size, DEFAULT_PAGE, MAX_PAGE)
        upload = await self._store.get(request.upload, owner)
        response = ListUploadPartsResponse(expire_time=_after_now(PUT_SECONDS), stored_bytes=upload.size_bytes)
        if await self._is_complete(upload):
            return response
        stored = await self._stored_parts(upload)
        missing = [part for part in _parts(upload) if stored.get(part.number) != part.size_bytes]
        response.stored_bytes -= sum(part.size_bytes for part in missing)
        rest = [part for part in missing if part.number > _after(request.page_token)]
        for part in rest[:size]:
            part.put_url = await self._objects.presign_part(
                _key(upload.name), upload.multipart_id, part.number, timedelta(seconds=PUT_SECONDS)
            )
        response.parts.extend(rest[:size])
        if len(rest) > size:
            response.next_page_token = str(rest[size - 1].number)
        return response

    async def complete(self, name: str, owner: str | None) -> None:
        """Join the parts. Raises NotFound, and FailedPrecondition (UPLOAD_MISMATCH) when one is missing."""
        upload = await self._store.get(name, owner)
        if await self._is_complete(upload):
            return
        stored = await self._stored_parts(upload)
        parts = _parts(upload)
        missing = [part for part in parts if stored.get(part.number) != part.size_bytes]
        if missing:
            text = f"{len(missing)} of {len(parts)} parts are missing, the first is {missing[0].number}."
            raise _mismatch(upload, f"{text} ListUploadParts has their URLs.")
        await self._objects.complete_multipart(_key(name), upload.multipart_id)

    @asynccontextmanager
    async def held(self, names: Sequence[str], owner: str | None) -> AsyncIterator[list[str]]:
        """Keep uploads while the block makes the dataset that reads them; yields the names of their files.

        Raises NotFound for one of another owner.
        """
        async with self._held if names else nullcontext():
            yield [(await self._store.get(name, owner)).file_name for name in names]

    async def shown(self, name: str) -> str:
        """The name of the video in reports: the upload, and the file that it was. Raises NotFound."""
        upload = await self._store.get(name)
        return f"upload:{name}/{upload.file_name}" if upload.file_name else f"upload:{name}"

    async def arrived(self, name: str) -> str:
        """Key of the object that was PUT. Raises FailedPrecondition (UPLOAD_MISMATCH) when it has another size."""
        upload = await self._store.get(name)
        found = await self._objects.stat(_key(name))
        if found is None:
            how = "CompleteUpload was not called" if upload.multipart_id else "Nothing was PUT to its URL"
            raise _mismatch(upload, f"{how} yet. Send the file, then create the dataset.")
        if found.size_bytes != upload.size_bytes:
            raise _mismatch(upload, f"{upload.size_bytes} bytes were announced, {found.size_bytes} came.")
        return _key(name)

    async def verify(self, name: str, sha256: str) -> None:
        """Raises FailedPrecondition (UPLOAD_MISMATCH) when the bytes are not those that were announced.

        They are deleted then: the next CreateUpload for the file asks for it anew.
        """
        upload = await self._store.get(name)
        if sha256 != upload.sha256:
            await self._objects.delete(_key(name))
            async with self._store.edit(name) as edit:
                edit.body.multipart_id = ""
            raise _mismatch(upload, f"The sha256 {upload.sha256} was announced, the bytes have {sha256}.")

    async def sweep(self, unfinished: Callable[[], Awaitable[Sequence[Dataset]]]) -> None:
        """Delete uploads that have expired and that no unfinished dataset reads, and objects whose upload is gone."""
        # By the store's clock and by ours, which may be a day apart: the earlier one decides.
        now = min(time.time(), (await self._objects.now()).timestamp())
        # Objects first: an upload has its row before its object, so that what has none later has been deleted.
        keys = await self._objects.keys_before(PREFIX, datetime.fromtimestamp(now - KEEP_SECONDS, UTC))
        async with self._held:
            wanted = {name for dataset in await unfinished() for name in uploads_of(dataset)}
            for upload in await self._store.unfinished():
                if upload.name not in wanted and _expires(upload) < now:
                    await self._forget(upload.name)
                    if upload.multipart_id:
                        await self._objects.abort_multipart(_key(upload.name), upload.multipart_id)
                    keys.append(_key(upload.name))
        known = {_key(upload.name) for upload in await self._store.unfinished()}
        for key in dict.fromkeys(keys):
            if key not in known:
                await self._objects.delete(key)

    async def _forget(self, name: str) -> None:
        async with self._store.edit(name) as edit:
            edit.enter(State.STATE_CANCELLED)
        await self._store.delete(name)

    async def _created(self, request: CreateUploadRequest, owner: str) -> Upload:
        file_name = printable(request.file_name.replace("\\", "/").rpartition("/")[2])[:MAX_FILE_NAME]
        upload = Upload(
            name=new_name("uploads"), size_bytes=request.size_bytes, sha256=request.sha256, file_name=file_name
        )
        if request.multipart:
            upload.part_size_bytes = max(MIN_PART_BYTES, -(-request.size_bytes // MAX_PARTS))
        content = f"{request.sha256}/{request.size_bytes}/{request.multipart}/{file_name}"
        request_id = str(uuid.uuid5(uuid.NAMESPACE_OID, content))
        while True:
            made = await self._store.create(upload, owner=owner, request_id=request_id, digest=b"")
            assert made is not None  # there is no limit
            if made.lifecycle.state == State.STATE_PENDING:
                return made
            with contextlib.suppress(NotFound):  # a sweep ended it and is about to delete it, or was killed before
                await self._store.delete(made.name)

    async def _is_complete(self, upload: Upload) -> bool:
        found = await self._objects.stat(_key(upload.name))
        return found is not None and found.size_bytes == upload.size_bytes

    async def _stored_parts(self, upload: Upload) -> dict[int, int]:
        """Sizes of the parts in the store by their numbers. Begins a multipart upload where the store has none."""
        if not upload.part_size_bytes:
            raise _mismatch(upload, "It was not created with multipart: it takes a single PUT.")
        if upload.multipart_id:
            with contextlib.suppress(ObjectMissing):
                return await self._objects.list_parts(_key(upload.name), upload.multipart_id)
        begun = await self._objects.start_multipart(_key(upload.name))
        async with self._store.edit(upload.name) as edit:
            if edit.body.multipart_id == upload.multipart_id:
                edit.body.multipart_id = begun
            upload.multipart_id = edit.body.multipart_id
        if upload.multipart_id != begun:  # another call was first
            await self._objects.abort_multipart(_key(upload.name), begun)
        return {}

    def _violations(self, request: CreateUploadRequest) -> list[Violation]:
        violations = []
        limit = self._max_bytes if request.multipart else min(MAX_PUT_BYTES, self._max_bytes)
        if not 0 < request.size_bytes <= limit:
            more = "" if request.multipart or limit == self._max_bytes else " Larger ones are sent with multipart."
            text = f"{request.size_bytes} bytes; an upload has 1 to {limit}.{more}"
            violations.append(Violation("size_bytes", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text))
        if not SHA256.fits(request.sha256):
            text = "The sha256 of the file in 64 lowercase hexadecimal digits."
            violations.append(Violation("sha256", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text))
        return violations


def uploads_of(dataset: Dataset) -> list[str]:
    """Names of the uploads that a dataset is made of."""
    found = [UPLOAD.fullmatch(url) for url in (dataset.archive_url, *dataset.videos.urls)]
    return [match[1] for match in found if match] + ([dataset.upload] if dataset.upload else [])


def _parts(upload: Upload) -> list[UploadPart]:
    """All parts without their URLs."""
    size = upload.part_size_bytes
    return [
        UploadPart(number=index + 1, offset_bytes=start, size_bytes=min(size, upload.size_bytes - start))
        for index, start in enumerate(range(0, upload.size_bytes, size))
    ]


def _after(token: str) -> int:
    if token and not (token.isascii() and token.isdecimal() and len(token) < 10):
        raise PageTokenInvalid("The page token is not one of ListUploadParts.")
    return int(token or 0)


def _expires(upload: Upload) -> float:
    if upload.HasField("expire_time"):
        return float(upload.expire_time.ToSeconds())
    return float(upload.lifecycle.create_time.ToSeconds() + KEEP_SECONDS)


def _after_now(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromDatetime(datetime.now(UTC) + timedelta(seconds=seconds))
    return time


def _key(name: str) -> str:
    return f"ingest/{name}"


def _mismatch(upload: Upload, text: str) -> FailedPrecondition:
    metadata = {"upload": upload.name, "sizeBytes": upload.size_bytes, "sha256": upload.sha256}
    return FailedPrecondition(ErrorReason.ERROR_REASON_UPLOAD_MISMATCH, f"{upload.name}: {text}", metadata=metadata)
