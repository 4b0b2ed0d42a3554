"""Checks and helpers that the RPCs of the three services share: names, request ids, lengths of texts, watches."""

import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event

from services.runtime import metrics
from services.runtime.auth import SERVICE, caller
from services.runtime.errors import InvalidSpec, QueueFull, Violation, retry_info
from services.runtime.events import EventLog
from services.runtime.settings import Settings

R = TypeVar("R")

# Of a caption, a prompt or a phrase: far beyond what a text encoder reads.
MAX_TEXT_BYTES = 64 << 10


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
        uuid.UUID(request_id)
    except ValueError:
        text = "Not a UUID. Send a fresh UUID for every new request and the same one for a repeat."
        violation = Violation("request_id", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)
        raise InvalidSpec([violation]) from None


def excess(text: str) -> str | None:
    """The complaint about a caption, prompt or phrase that is too long, or None."""
    size = len(text.encode())
    return None if size <= MAX_TEXT_BYTES else f"{size} bytes; a text has {MAX_TEXT_BYTES} at most."


class Watches:
    """The open watches of a service, bounded for each caller."""

    def __init__(self, log: EventLog, settings: Settings) -> None:
        self._log = log
        self._limit = settings.max_watches
        self._open: dict[str, int] = {}

    async def responses(self, name: str, after: int, response: Callable[..., R]) -> AsyncGenerator[R, None]:
        """Responses of a Watch RPC: each event with its sequence, heartbeats, until the terminal event."""
        with self._counted(caller.get()):
            # Closed with this generator, not when it is collected: a watch that was left counts no more.
            async with aclosing(self._log.follow(name, after)) as events:
                async for sequence, event in events:
                    yield _response(response, sequence, event)

    @contextmanager
    def _counted(self, owner: str) -> Iterator[None]:
        """Raises QueueFull."""
        if self._open.get(owner, 0) >= self._limit:
            text = f"{self._limit} of your watches are open already. Close some."
            raise QueueFull(text, metadata={"limit": self._limit}, details=[retry_info()])
        self._open[owner] = self._open.get(owner, 0) + 1
        metrics.open_watches.inc()
        try:
            yield
        finally:
            metrics.open_watches.dec()
            self._open[owner] -= 1
            if not self._open[owner]:
                del self._open[owner]


def _response(response: Callable[..., R], sequence: int, event: Event | None) -> R:
    return response(sequence=sequence, event=event) if event is not None else response(sequence=sequence)
