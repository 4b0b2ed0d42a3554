"""Durable work: one coroutine for each unfinished resource, started again after any death.

Every step of a workflow can run twice, so a restart is a repeat. Each start has an attempt number that every write
of a result checks, so that what is left of an older attempt cannot write.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event, State

from services.runtime import errors, metrics, telemetry, tracing
from services.runtime.cluster import ClusterLost
from services.runtime.events import TERMINAL
from services.runtime.object_types import ObjectStoreUnavailable
from services.runtime.store import Edit, Resource, StaleAttempt, Store
from services.runtime.tables import DatabaseUnavailable

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Resource)
T = TypeVar("T")

# Seconds between tries when another party does not answer: 1, 2, 4 … 60, for about eight minutes together.
RETRY_FIRST_SECONDS = 1.0
RETRY_MAX_SECONDS = 60.0
RUN_TRIES = 14
# Giving back is tried for half a minute.
GIVE_BACK_TRIES = 6
# After work that went well for so long, an outage is a new one.
STEADY_SECONDS = 600.0


class Retryable(Exception):
    """Another party does not answer now; the attempt is made again later."""


# The resource stays as it is: another attempt, or the next start of the process, goes on with it.
LEFT_UNFINISHED = (StaleAttempt, ClusterLost, DatabaseUnavailable)


class Workflow(Protocol[M]):
    """What a service does with one resource."""

    async def run(self, name: str, attempt: int) -> Callable[[Edit[M]], None]:
        """Do all of it. What is returned is applied in the transaction that ends the resource as SUCCEEDED."""

    async def give_back(self, name: str, attempt: int) -> Callable[[Edit[M]], None]:
        """After a cancellation: stop upstream work; what is returned is applied in the transaction of CANCELLED."""


class WorkRunner(Generic[M]):
    """Runs the workflows of one service."""

    def __init__(self, store: Store[M], workflow: Workflow[M]) -> None:
        self._store = store
        self._workflow = workflow
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False

    async def resume(self) -> None:
        """Start everything that is not finished, oldest first."""
        for resource in await self._store.unfinished():
            self.start(resource.name)

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

    async def count(self) -> None:
        """Tell the metrics how many resources are in each state."""
        metrics.count_resources(self._store.kind, await self._store.count_by_state())

    async def _work(self, name: str) -> None:
        """One start after another until the resource has ended, or this process cannot go on with it."""
        pause = 0.0
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
                pause = min(max(2 * pause, RETRY_FIRST_SECONDS), RETRY_MAX_SECONDS)
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
            attempt, cancelling = edit.attempt, edit.body.lifecycle.state == State.STATE_CANCELLING
        metrics.work_starts.labels(self._store.kind).inc()
        if cancelling:
            await self._end_cancelled(name, attempt)
        else:
            await self._run(name, attempt)

    async def _run(self, name: str, attempt: int) -> None:
        try:
            outcome = await _tried(lambda: self._workflow.run(name, attempt), RUN_TRIES)
            await self._end(name, attempt, State.STATE_SUCCEEDED, outcome)
        except LEFT_UNFINISHED:
            raise
        except errors.ApiError as error:
            log.info("failed: %s: %s", errors.reason_name(error.reason), error)
            await self._fail(name, attempt, error)
        except Exception:
            log.exception("unforeseen")
            await self._fail(name, attempt, errors.internal(telemetry.trace_id()))

    async def _fail(self, name: str, attempt: int, error: errors.ApiError) -> None:
        if _is_stopped():
            # What fails while it is being stopped may have failed because of it.
            raise asyncio.CancelledError from error

        def set_error(edit: Edit[M]) -> None:
            edit.body.lifecycle.error.CopyFrom(error.status())

        await self._end(name, attempt, State.STATE_FAILED, set_error)

    async def _end(self, name: str, attempt: int, state: "State", outcome: Callable[[Edit[M]], None]) -> None:
        async with self._store.edit(name, attempt=attempt) as edit:
            cancelled = edit.body.lifecycle.state == State.STATE_CANCELLING
            if not cancelled:
                outcome(edit)
                edit.enter(state)
        if cancelled:
            await self._end_cancelled(name, attempt)
        else:
            metrics.count_end(self._store.kind, state)

    async def _end_cancelled(self, name: str, attempt: int) -> None:
        outcome = await self._given_back(name, attempt)
        async with self._store.edit(name, attempt=attempt) as edit:
            outcome(edit)
            edit.enter(State.STATE_CANCELLED)
        metrics.count_end(self._store.kind, State.STATE_CANCELLED)

    async def _given_back(self, name: str, attempt: int) -> Callable[[Edit[M]], None]:
        """What the workflow gives back; a warning in its place when it cannot, for a cancellation always ends."""
        try:
            return await _tried(lambda: self._workflow.give_back(name, attempt), GIVE_BACK_TRIES)
        except LEFT_UNFINISHED:
            raise
        except errors.ApiError as error:
            log.warning("nothing given back: %s", error)
            warning = error.status()
        except Exception:
            log.exception("nothing given back")
            warning = errors.internal(telemetry.trace_id()).status()
        return lambda edit: edit.add_event(Event(warning=warning))


async def _tried(call: Callable[[], Awaitable[T]], tries: int) -> T:
    """The result of a call that is made again while another party does not answer. Raises Unavailable in the end."""
    delay, remaining = RETRY_FIRST_SECONDS, tries
    while True:
        began = time.monotonic()
        try:
            return await call()
        except asyncio.CancelledError:
            if _is_stopped():
                raise
            reason = "the other side cancelled a call"
        except (Retryable, ObjectStoreUnavailable) as error:
            reason = str(error)
        if time.monotonic() - began > STEADY_SECONDS:
            delay, remaining = RETRY_FIRST_SECONDS, tries
        remaining -= 1
        if not remaining:
            text = "The object store or another service did not answer, however often it was tried."
            raise errors.Unavailable(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, text)
        log.warning("trying again in %.0f s: %s", delay, reason)
        await asyncio.sleep(delay)
        delay = min(2 * delay, RETRY_MAX_SECONDS)


def _is_stopped() -> bool:
    """Whether somebody cancelled the present task, and not only something that it waits for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
