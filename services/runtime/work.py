"""Durable work: one coroutine for each unfinished resource, started again after any death.

Every step of a workflow can run twice, so a restart is a repeat. Each start has an attempt number that every write
of a result checks, so that what is left of an older attempt cannot write.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.work_pb2 import Event, State

from services.runtime import errors
from services.runtime.cluster import ClusterLost
from services.runtime.events import TERMINAL
from services.runtime.objects import ObjectStoreUnavailable
from services.runtime.store import Edit, Resource, StaleAttempt, Store

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Resource)

# Seconds between attempts when another party does not answer: 1, 2, 4 … 60, for about ten minutes together.
RETRY_FIRST_SECONDS = 1.0
RETRY_MAX_SECONDS = 60.0
RETRIES = 14


class Retryable(Exception):
    """Another party does not answer now; the attempt is made again later."""


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
        if name in self._tasks or self._draining:
            return
        task = asyncio.create_task(self._work(name), name=name)
        self._tasks[name] = task
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def cancel(self, name: str, owner: str | None) -> M:
        """Make the cancellation durable and stop the work. A finished resource is returned unchanged."""
        resource = await self._store.get(name, owner)
        if resource.lifecycle.state in TERMINAL or resource.lifecycle.state == State.STATE_CANCELLING:
            return resource
        try:
            async with self._store.edit(name) as edit:
                if edit.body.lifecycle.state != State.STATE_CANCELLING:
                    edit.enter(State.STATE_CANCELLING)
        except StaleAttempt:
            return await self._store.get(name, owner)
        if (task := self._tasks.get(name)) is not None:
            task.cancel()
        else:
            self.start(name)
        return await self._store.get(name, owner)

    async def drain(self) -> None:
        """Stop all work without ending any resource: the next start goes on."""
        self._draining = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, name: str) -> None:
        try:
            attempt, cancelling = await self._begin(name)
            if not cancelling:
                try:
                    await self._attempts(name, attempt)
                    return
                except asyncio.CancelledError:
                    if self._draining:
                        raise
            await self._end_cancelled(name, attempt)
        except (StaleAttempt, errors.NotFound):
            log.info("another attempt took over, or the resource is gone", extra={"resource": name})
        except ClusterLost:
            # The process exits and is started again; the resource stays unfinished.
            log.error("the Ray cluster is lost", extra={"resource": name})

    async def _begin(self, name: str) -> tuple[int, bool]:
        async with self._store.edit(name) as edit:
            edit.attempt += 1
            if edit.body.lifecycle.state == State.STATE_PENDING:
                edit.enter(State.STATE_RUNNING)
            return edit.attempt, edit.body.lifecycle.state == State.STATE_CANCELLING

    async def _attempts(self, name: str, attempt: int) -> None:
        delay = RETRY_FIRST_SECONDS
        for remaining in reversed(range(RETRIES)):
            try:
                outcome = await self._workflow.run(name, attempt)
                await self._end(name, attempt, State.STATE_SUCCEEDED, outcome)
                return
            except (Retryable, ObjectStoreUnavailable) as error:
                if not remaining:
                    text = "The object store or another service has not answered for ten minutes."
                    unavailable = errors.Unavailable(ErrorReason.ERROR_REASON_STORE_UNAVAILABLE, text)
                    await self._fail(name, attempt, unavailable)
                    return
                log.warning("trying again in %.0f s: %s", delay, error, extra={"resource": name})
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX_SECONDS)
            except (StaleAttempt, ClusterLost):
                raise
            except errors.ApiError as error:
                await self._fail(name, attempt, error)
                return
            except Exception:
                trace_id = secrets.token_hex(16)
                log.exception("unforeseen", extra={"resource": name, "trace_id": trace_id})
                await self._fail(name, attempt, errors.internal(trace_id))
                return

    async def _fail(self, name: str, attempt: int, error: errors.ApiError) -> None:
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

    async def _end_cancelled(self, name: str, attempt: int) -> None:
        outcome: Callable[[Edit[M]], None]
        try:
            outcome = await self._workflow.give_back(name, attempt)
        except (errors.ApiError, Retryable, ObjectStoreUnavailable) as error:
            log.warning("nothing given back: %s", error, extra={"resource": name})
            warning = error if isinstance(error, errors.ApiError) else errors.internal()
            status = warning.status()

            def outcome(edit: Edit[M]) -> None:
                edit.add_event(Event(warning=status))

        async with self._store.edit(name, attempt=attempt) as edit:
            outcome(edit)
            edit.enter(State.STATE_CANCELLED)
