"""Checks and helpers that the RPCs of the three services share: names, request ids, lengths of texts, watches."""

import asyncio
import contextvars
import uuid
from collections.abc import AsyncGenerator, Callable, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event

from ltxtrain_services.runtime import metrics
from ltxtrain_services.runtime.auth import SERVICE, caller
from ltxtrain_services.runtime.errors import InvalidSpec, Violation
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore

R = TypeVar("R")

# A request of as many bytes may hold so much that a look at all of it takes more than a millisecond.
LARGE_BYTES = 16 * 2**10
# Of their own: those of the loop's pool may all be busy with archives for minutes.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="requests")

# Of a caption, a prompt or a phrase: far beyond what a text encoder reads.
MAX_TEXT_BYTES = 64 << 10
DOWNLOAD_SECONDS = 15 * 60
# Of a list of states or kinds to filter by, of which there are a dozen.
MAX_FILTERS = 100
# "urn:uuid:" and 36 more. Python's UUID takes any number of braces around, and the id is a key of the database.
MAX_UUID_CHARS = 45


def new_name(kind: str) -> str:
    """A fresh resource name of a collection, e.g. jobs/6f1c…"""
    return f"{kind}/{uuid.uuid4().hex}"


def visible_owner() -> str | None:
    """The owner whose resources the present caller may see; None: all."""
    owner = caller.get()
    return None if owner == SERVICE else owner


def check_request_id(request_id: str) -> None:
    """A request id is a UUID, or absent. Raises InvalidSpec."""
    if not request_id:
        return
    try:
        if len(request_id) > MAX_UUID_CHARS:
            raise ValueError(request_id)
        uuid.UUID(request_id)
    except ValueError:
        text = "Not a UUID. Send a fresh UUID for every new request and the same one for a repeat."
        violation = Violation("request_id", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)
        raise InvalidSpec([violation]) from None


async def beside(size: int, call: Callable[[], R]) -> R:
    """The result of a call about so many bytes: in a thread when they are many, while the event loop goes on."""
    if size < LARGE_BYTES:
        return call()
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_THREADS, context.run, call)


def check_count(field: str, items: Sized, most: int) -> None:
    """Raises InvalidSpec for a list that is longer: looking at each of its items would take longer than a call may."""
    if len(items) > most:
        text = f"{len(items)} entries, at most {most} are taken."
        raise InvalidSpec([Violation(field, ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)])


def excess(text: str) -> str | None:
    """The complaint about a caption, prompt or phrase that is too long, or None."""
    size = len(text.encode())
    return None if size <= MAX_TEXT_BYTES else f"{size} bytes; a text has {MAX_TEXT_BYTES} at most."


async def sign_download(objects: ObjectStore, blob: Blob) -> tuple[str, Timestamp]:
    """A URL that serves a blob to anybody for 15 minutes, and when it expires."""
    expires = Timestamp()
    expires.FromDatetime(datetime.now(UTC) + timedelta(seconds=DOWNLOAD_SECONDS))
    return await objects.presign_get(blob.key, timedelta(seconds=DOWNLOAD_SECONDS)), expires


class Watches:
    """The Watch RPCs of a service."""

    def __init__(self, log: EventLog) -> None:
        self._log = log

    async def responses(self, name: str, after: int, response: Callable[..., R]) -> AsyncGenerator[R, None]:
        """Responses of a Watch RPC: each event with its sequence, heartbeats, until the terminal event."""
        with metrics.open_watches.track_inprogress():
            # Closed with this generator, not when it is collected: a watch that was left counts no more.
            async with aclosing(self._log.follow(name, after)) as events:
                async for sequence, event in events:
                    yield _response(response, sequence, event)


def _response(response: Callable[..., R], sequence: int, event: Event | None) -> R:
    return response(sequence=sequence, event=event) if event is not None else response(sequence=sequence)
