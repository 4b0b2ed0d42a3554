"""Durable work: one coroutine for each unfinished resource, started again after any death.

Every step of a workflow can run twice, so a restart is a repeat. Each start has an attempt number that every write
of a result checks, so that what is left of an older attempt cannot write.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event, State
from ltxtrain_client.backoff import Backoff
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.runtime import errors, metrics, telemetry, tracing
from ltxtrain_services.runtime.cluster import ClusterLost
from ltxtrain_services.runtime.database import DatabaseUnavailable
from ltxtrain_services.runtime.disk import DiskFull
from ltxtrain_services.runtime.object_types import ObjectStoreFull, ObjectStoreUnavailable
from ltxtrain_services.runtime.store import Edit, Resource, StaleAttempt, Store

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Resource)
C = TypeVar("C", bound=Message)
T = TypeVar("T")

# Applied in the transaction that ends a resource.
Ending = Callable[[Edit[M]], None]

# Between tries when another party does not answer: 1, 2, 4 … 60 seconds, for some eight minutes together.
BACKOFF = Backoff(first_seconds=1.0, last_seconds=60.0)
RUN_TRIES = 14
# For about half a minute.
SALVAGE_TRIES = 6
# Of what another party said last, in the error that callers see.
MAX_REASON_CHARS = 500
# After work that went well for so long, an outage is a new one.
STEADY_SECONDS = 600.0


class Retryable(Exception):
    """Another party does not answer now; the attempt is made again later."""


# The resource stays as it is: another attempt, or the next start of the process, goes on with it.
LEFT_UNFINISHED = (StaleAttempt, ClusterLost, DatabaseUnavailable)


@dataclass(frozen=True)
class Attempt(Generic[M]):
    """One start of the work on one resource: everything that a workflow reads and writes of it goes through here."""

    store: Store[M]
    name: str
    number: int
    owner: str

    async def get(self) -> M:
        return await self.store.get(self.name)

    def edit(self) -> AbstractAsyncContextManager[Edit[M]]:
        """Change the resource. Raises StaleAttempt once another attempt runs or the resource has ended."""
        return self.store.edit(self.name, attempt=self.number)

    async def cursor(self, upstream: str) -> int:
        """Sequence of the last event of an upstream resource that was relayed; 0 for none."""
        return await self.store.cursor(self.name, upstream)

    async def children(self, collection: str, kind: type[C]) -> list[C]:
        return await self.store.all_children(self.name, collection, kind)

    async def named_children(self, collection: str, kind: type[C]) -> list[tuple[str, C]]:
        return await self.store.named_children(self.name, collection, kind)


class Workflow(Protocol[M]):
    """The work of a service on one resource."""

    async def run(self, attempt: Attempt[M]) -> Ending[M]:
        """Do all of it. The ending is applied as the resource ends as SUCCEEDED."""

    async def salvage(self, attempt: Attempt[M]) -> Ending[M]:
        """Stop upstream work and keep what can be kept of a run that was cancelled or failed.

        The ending is applied as the resource ends as CANCELLED or FAILED.
        """


class Aftermath(Protocol):
    """Work that follows the end of a resource, in whatever state, and is taken up again like it."""

    async def resume(self) -> None: ...

    def start(self, name: str) -> None: ...

    async def drain(self) -> None: ...


class WorkRunner(Generic[M]):
    """Runs the workflows of one service."""

    def __init__(self, store: Store[M], workflow: Workflow[M], aftermath: Aftermath | None = None) -> None:
        self._store = store
        self._workflow = workflow
        self._aftermath = aftermath
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False

    async def resume(self) -> None:
        """Start everything that is not finished, oldest first."""
        for resource in await self._store.unfinished():
            self.start(resource.name)
        if self._aftermath is not None:
            await self._aftermath.resume()

    def start(self, name: str) -> None:
        """Start the work of a resource; nothing happens when it runs already."""
        if self._draining or ((task := self._tasks.get(name)) is not None and not task.done()):
            return
        self._tasks[name] = task = asyncio.create_task(self._work(name), name=name)
        task.add_done_callback(lambda done: self._tasks.pop(name) if self._tasks.get(name) is done else None)

    async def cancel(self, name: str, owner: str | None) -> M:
        """Make the cancellation durable and stop the work. A finished resource is returned unchanged."""
        resource = await self._store.get(name, owner)
        if resource.lifecycle.state in TERMINAL or resource.lifecycle.state == State.STATE_CANCELLING:
            return resource
        try:
            async with self._store.edit(name) as edit:
                first = edit.body.lifecycle.state != State.STATE_CANCELLING
                if first:
                    edit.enter(State.STATE_CANCELLING)
        except StaleAttempt:
            return await self._store.get(name, owner)
        if first and (task := self._tasks.get(name)) is not None:
            task.cancel()
        self.start(name)
        return await self._store.get(name, owner)

    async def drain(self) -> None:
        """Stop all work without ending any resource: the next start goes on."""
        self._draining = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._aftermath is not None:
            await self._aftermath.drain()

    async def count(self) -> None:
        """Tell the metrics how many resources are in each state."""
        metrics.count_resources(self._store.kind, await self._store.count_by_state())

    async def _work(self, name: str) -> None:
        """One start after another until the resource has ended, or this process cannot go on with it."""
        pause, outages = 0.0, 0
        while True:
            try:
                await asyncio.sleep(pause)
                # Started by a call, whose trace goes on while the call itself is over.
                fields = {"resource": name, "method": "", "peer": ""}
                with telemetry.bound(**fields), tracing.span(f"work {self._store.kind}", resource=name):
                    await self._start_once(name)
                return
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._draining or task is None:
                    raise
                # A caller's cancellation is durable by now: the next start finds it and ends the resource.
                task.uncancel()
                pause = 0.0
            except DatabaseUnavailable as error:
                outages += 1
                pause = BACKOFF.seconds(outages)
                log.warning("starting again in %.0f s: %s", pause, error, extra={"resource": name})
            except (StaleAttempt, errors.NotFound):
                log.info("another attempt took over, or the resource is gone", extra={"resource": name})
                return
            except ClusterLost:
                # The process exits and is started again.
                log.error("the Ray cluster is lost", extra={"resource": name})
                return
            except Exception:
                log.exception("work ended without an outcome; the next start goes on", extra={"resource": name})
                return

    async def _start_once(self, name: str) -> None:
        async with self._store.edit(name) as edit:
            edit.attempt += 1
            if edit.body.lifecycle.state == State.STATE_PENDING:
                edit.enter(State.STATE_RUNNING)
            attempt = Attempt(self._store, name, edit.attempt, edit.owner)
            cancelling = edit.body.lifecycle.state == State.STATE_CANCELLING
        metrics.work_starts.labels(self._store.kind).inc()
        if cancelling:
            await self._end_cancelled(attempt)
        else:
            await self._run(attempt)

    async def _run(self, attempt: Attempt[M]) -> None:
        try:
            ending = await _tried(lambda: self._workflow.run(attempt), RUN_TRIES)
            await self._end(attempt, State.STATE_SUCCEEDED, ending)
        except LEFT_UNFINISHED:
            raise
        except errors.ApiError as error:
            log.info("failed: %s: %s", errors.reason_name(error.reason), error)
            await self._fail(attempt, error)
        except Exception:
            log.exception("unforeseen")
            await self._fail(attempt, errors.internal(telemetry.trace_id()))

    async def _fail(self, attempt: Attempt[M], error: errors.ApiError) -> None:
        if _is_stopped():
            # What fails while it is being stopped may have failed because of it.
            raise asyncio.CancelledError from error
        salvaged = await self._salvaged(attempt)

        def ending(edit: Edit[M]) -> None:
            salvaged(edit)
            edit.body.lifecycle.error.CopyFrom(error.status())
            edit.body.lifecycle.error_reason = error.reason

        await self._end(attempt, State.STATE_FAILED, ending)

    async def _end(self, attempt: Attempt[M], state: "State", ending: Ending[M]) -> None:
        async with attempt.edit() as edit:
            cancelled = edit.body.lifecycle.state == State.STATE_CANCELLING
            if not cancelled:
                ending(edit)
                edit.enter(state)
        if cancelled:
            await self._end_cancelled(attempt)
        else:
            self._ended(attempt, state)

    async def _end_cancelled(self, attempt: Attempt[M]) -> None:
        ending = await self._salvaged(attempt)
        async with attempt.edit() as edit:
            ending(edit)
            edit.enter(State.STATE_CANCELLED)
        self._ended(attempt, State.STATE_CANCELLED)

    def _ended(self, attempt: Attempt[M], state: "State") -> None:
        metrics.count_end(self._store.kind, state)
        if self._aftermath is not None:
            self._aftermath.start(attempt.name)

    async def _salvaged(self, attempt: Attempt[M]) -> Ending[M]:
        """The workflow's salvage, or a warning where it fails: a cancellation and a failure always end."""
        try:
            return await _tried(lambda: self._workflow.salvage(attempt), SALVAGE_TRIES)
        except LEFT_UNFINISHED:
            raise
        except errors.ApiError as error:
            log.warning("nothing salvaged: %s", error)
            warning = error.status()
        except Exception:
            log.exception("nothing salvaged")
            warning = errors.internal(telemetry.trace_id()).status()
        return lambda edit: edit.add_event(Event(warning=warning))


async def _tried(call: Callable[[], Awaitable[T]], tries: int) -> T:
    """Return the result of a call, retried while another party does not answer. Raises Unavailable after all tries."""
    failures = 0
    while True:
        began = time.monotonic()
        try:
            return await call()
        except asyncio.CancelledError:
            if _is_stopped():
                raise
            reason, full = "the other side cancelled a call", False
        except (Retryable, ObjectStoreUnavailable, DiskFull) as error:
            reason = str(error)
            full = isinstance(error, DiskFull | ObjectStoreFull)
        if time.monotonic() - began > STEADY_SECONDS:
            failures = 0
        failures += 1
        if failures == tries:
            said = telemetry.without_secrets(reason[:MAX_REASON_CHARS])
            text = f"Given up after {tries} tries in a row. The last one ended with: {said}"
            kind = ErrorReason.ERROR_REASON_DISK_FULL if full else ErrorReason.ERROR_REASON_STORE_UNAVAILABLE
            raise errors.Unavailable(kind, text)
        pause = BACKOFF.seconds(failures)
        log.warning("trying again in %.0f s: %s", pause, reason)
        await asyncio.sleep(pause)


def _is_stopped() -> bool:
    """Whether somebody cancelled the present task, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
