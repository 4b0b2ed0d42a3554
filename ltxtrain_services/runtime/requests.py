"""Checks and helpers that the RPCs of the services share: names, labels, request ids, lengths of texts, watches."""

import asyncio
import contextvars
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2 import ListDatasetsRequest
from ltxtrain.v1.preprocess_pb2 import ListTrainingSetsRequest
from ltxtrain.v1.train_pb2 import CreateJobRequest, ListJobsRequest, WatchJobsResponse
from ltxtrain.v1.work_pb2 import Event
from ltxtrain_client.watch import is_terminal

from ltxtrain_services.runtime import metrics
from ltxtrain_services.runtime.auth import SERVICE, caller
from ltxtrain_services.runtime.edit import M
from ltxtrain_services.runtime.errors import InvalidSpec, Violation
from ltxtrain_services.runtime.events import Entry, EventLog, event_kind
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.rules import labels, line, max_bytes, max_items
from ltxtrain_services.runtime.store import Store

R = TypeVar("R")
T = TypeVar("T")

# A request of as many bytes may hold so much that a look at all of it takes more than a millisecond.
LARGE_BYTES = 16 * 2**10
# Of their own: those of the loop's pool may all be busy with archives for minutes.
_THREADS = ThreadPoolExecutor(2, thread_name_prefix="requests")

# Of a caption, a prompt or a phrase: far beyond what a text encoder reads.
MAX_TEXT_BYTES = max_bytes(ExtendPrefixSpec, "trigger_phrase")
DOWNLOAD_SECONDS = 15 * 60
# Of a list of states or kinds to filter by, of which there are a dozen.
MAX_FILTERS = max_items(ListJobsRequest, "states")
MAX_LABELS = max_items(CreateJobRequest, "labels")
REQUEST_ID = line(CreateJobRequest, "request_id")
DISPLAY_NAME = line(CreateJobRequest, "display_name")
LABEL_KEY, LABEL_VALUE = labels(CreateJobRequest, "labels")


def new_name(kind: str) -> str:
    """A fresh resource name of a collection, e.g. jobs/6f1c…"""
    return f"{kind}/{uuid.uuid4().hex}"


def visible_owner() -> str | None:
    """The owner whose resources the present caller may see; None: all."""
    owner = caller.get()
    return None if owner == SERVICE else owner


def check_request_id(request_id: str) -> list[Violation]:
    """The violation of a request id that is neither a UUID nor absent."""
    if not request_id or REQUEST_ID.fits(request_id):
        return []
    text = "Not a UUID. Send a fresh UUID for every new request and the same one for a repeat."
    return [Violation("request_id", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)]


def check_names(display_name: str, labels: Mapping[str, str]) -> list[Violation]:
    """Violations of a display name and of labels, one a field."""
    violations = []

    def check(field: str, wrong: bool, text: str) -> None:
        if wrong:
            violations.append(Violation(field, ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text))

    text = f"A display name is one line of at most {DISPLAY_NAME.max_characters} characters."
    check("display_name", not DISPLAY_NAME.fits(display_name), text)
    check("labels", len(labels) > MAX_LABELS, f"{len(labels)} labels, at most {MAX_LABELS} are allowed.")
    for key, value in sorted(labels.items())[: MAX_LABELS + 1]:
        field = f"labels[{json.dumps(key, ensure_ascii=False)}]"
        if not LABEL_KEY.fits(key):
            text = 'A key is 1 to 63 of a-z, 0-9, "_", "-", "." and "/", a letter first.'
        else:
            text = f"A value is one line of at most {LABEL_VALUE.max_characters} characters."
        check(field, not LABEL_KEY.fits(key) or not LABEL_VALUE.fits(value), text)
    return violations


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


async def listed(
    store: Store[M], request: ListDatasetsRequest | ListTrainingSetsRequest | ListJobsRequest
) -> tuple[list[M], str]:
    """The page that a list call asks for, of what its caller may see. Raises InvalidSpec and PageTokenInvalid."""
    check_count("states", request.states, MAX_FILTERS)
    check_count("labels", request.labels, MAX_LABELS)
    return await store.page(
        visible_owner(),
        request.page_size,
        request.page_token,
        request.states,
        labels=request.labels,
        text=request.text,
        order=request.order_by,
    )


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

    async def responses(
        self, name: str, after: int, response: Callable[..., R], kinds: Collection[int] = ()
    ) -> AsyncGenerator[R, None]:
        """Responses of a Watch RPC: each event with its sequence, heartbeats, until the terminal event.

        Only events of these EventKinds and the terminal one; what is left out moves the cursor of the heartbeats.
        """

        check_count("kinds", kinds, MAX_FILTERS)

        def wanted(event: Event) -> bool:
            return not kinds or event_kind(event) in kinds or is_terminal(event)

        async with aclosing(self._followed(self._log.follow(name, after), wanted)) as events:
            async for sequence, event in events:
                yield response(sequence=sequence, event=event)

    async def of_owner(
        self, owner: str, after: int, kinds: Collection[int] = ()
    ) -> AsyncGenerator[WatchJobsResponse, None]:
        """Responses of WatchJobs: what happens to an owner's jobs, only events of these EventKinds, and deletions."""

        check_count("kinds", kinds, MAX_FILTERS)

        def wanted(entry: Entry) -> bool:
            return not kinds or entry.event is None or event_kind(entry.event) in kinds

        async with aclosing(self._followed(self._log.follow_feed(owner, after, kinds), wanted)) as entries:
            async for cursor, entry in entries:
                if entry is None:
                    yield WatchJobsResponse(cursor=cursor)
                else:
                    yield WatchJobsResponse(
                        cursor=cursor,
                        job=entry.resource,
                        sequence=entry.sequence,
                        event=entry.event,
                        deleted=entry.event is None,
                    )

    async def _followed(
        self, entries: AsyncGenerator[tuple[int, T | None], None], wanted: Callable[[Any], bool]
    ) -> AsyncGenerator[tuple[int, T | None], None]:
        """The entries that are wanted, and a heartbeat where a client would hear nothing for too long."""
        clock = asyncio.get_running_loop().time
        heard = clock()
        with metrics.open_watches.track_inprogress():
            # Closed with this generator, not when it is collected: a watch that was left counts no more.
            async with aclosing(entries):
                async for number, entry in entries:
                    if entry is not None and not wanted(entry):
                        if clock() - heard < self._log.heartbeat_seconds:
                            continue
                        entry = None
                    heard = clock()
                    yield number, entry
