"""Races in an order that the test decides: cancellations at every await and statement, sweeps beside reuses, and reads.

A task is driven turn by turn of the event loop, so each run stops it one turn later than the last, until it is done.
"""

import asyncio
import gc
import itertools
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, TypeVar

import pytest
import sqlalchemy
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, State

from ltxtrain_services.preprocess.cache import Cache, Entry, as_blob
from ltxtrain_services.runtime.blobs import Blobs, release
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.errors import NotFound, NotReady
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.store import StaleAttempt, Store
from ltxtrain_services.runtime.work import Attempt, Ending, Retryable, WorkRunner

R = TypeVar("R")

# Turns of the loop until everything here is done, or more on a busy machine. The first are quick; the later ones give
# threads a moment each.
TURNS = 24
QUICK_TURNS = 12
PATIENCE_SECONDS = 60.0
# With what their tracebacks hold.
cancellations: list[BaseException] = []


@pytest.fixture(autouse=True)
def nothing_collected() -> Iterator[None]:
    """Remains of a cancellation stay for the whole of a test, as in a service they may for long."""
    gc.disable()
    yield
    cancellations.clear()
    gc.enable()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    database = await Database.open(f"sqlite+aiosqlite:///{tmp_path / 'state.db'}", tmp_path)
    yield database
    await database.close()


@pytest.fixture
def jobs(database: Database) -> Store[Job]:
    return Store(database, EventLog(database), "jobs", Job)


async def turn(number: int) -> None:
    await asyncio.sleep(0.0 if number < QUICK_TURNS else 0.001)


# Whether work was done before its cancellation, which comes at the place of that number.
Cancelled = Callable[[int, Coroutine[Any, Any, Any]], Awaitable[bool]]


@pytest.fixture(params=["turn", "statement"])
def cancelled(request: pytest.FixtureRequest, database: Database) -> Cancelled:
    """Cancellation after so many turns of the loop, or while the statement of that number is computed."""

    async def after_turns(turns: int, work: Coroutine[Any, Any, Any]) -> bool:
        task = asyncio.ensure_future(work)
        for number in range(turns):
            if task.done():
                break
            await turn(number)
        task.cancel()
        return await is_done(task)

    async def at_statement(number: int, work: Coroutine[Any, Any, Any]) -> bool:
        task = asyncio.ensure_future(work)
        statements = itertools.count()

        def cancel(*_: object) -> None:
            # The statement's own answer comes later in the same turn, or in another.
            if next(statements) == number:
                asyncio.get_running_loop().call_soon(task.cancel)

        engine = database._engine.sync_engine
        sqlalchemy.event.listen(engine, "before_cursor_execute", cancel)
        try:
            return await is_done(task)
        finally:
            sqlalchemy.event.remove(engine, "before_cursor_execute", cancel)

    async def is_done(task: "asyncio.Future[Any]") -> bool:
        async with asyncio.timeout(PATIENCE_SECONDS):
            outcome: Any = (await asyncio.gather(task, return_exceptions=True))[0]
        assert outcome is None or isinstance(outcome, Job | asyncio.CancelledError), outcome
        if isinstance(outcome, asyncio.CancelledError):
            cancellations.append(outcome)
            return False
        return True

    return after_turns if request.param == "turn" else at_statement


async def make(jobs: Store[Job], name: str) -> Job | None:
    return await jobs.create(Job(name=name), owner="ann", request_id="", digest=b"")


async def events_of(jobs: Store[Job], name: str, last: int) -> list[int]:
    """The sequences that a follower gets."""
    found = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for sequence, event in jobs.log.follow(name, 0):
            if event is not None:
                found.append(sequence)
            if sequence == last:
                return found
    return found


async def test_a_creation_cancelled_anywhere_is_whole_or_nothing(jobs: Store[Job], cancelled: Cancelled) -> None:
    outcomes: list[bool] = []
    while len(outcomes) < TURNS or True not in outcomes:
        turns = len(outcomes)
        name = f"jobs/{turns}"
        outcomes.append(await cancelled(turns, make(jobs, name)))
        try:
            made = await jobs.get(name)
        except NotFound:
            continue
        assert (made.lifecycle.state, await events_of(jobs, name, 1)) == (State.STATE_PENDING, [1])
    assert False in outcomes
    # No lock is left behind.
    async with asyncio.timeout(PATIENCE_SECONDS):
        await make(jobs, "jobs/last")


async def test_a_change_cancelled_anywhere_is_whole_or_nothing(jobs: Store[Job], cancelled: Cancelled) -> None:
    await make(jobs, "jobs/1")

    async def change() -> None:
        async with jobs.edit("jobs/1") as edit:
            edit.body.checkpoint_step += 1
            edit.add_event(Event(progress=Progress(completed=edit.body.checkpoint_step)))
            edit.put_child("report", str(edit.body.checkpoint_step), Job())

    outcomes: list[bool] = []
    while len(outcomes) < TURNS or True not in outcomes:
        outcomes.append(await cancelled(len(outcomes), change()))
        job = await jobs.get("jobs/1")
        assert job.lifecycle.last_sequence == 1 + job.checkpoint_step
        assert len(await jobs.all_children("jobs/1", "report", Job)) == job.checkpoint_step
    assert sum(outcomes) <= job.checkpoint_step
    assert await events_of(jobs, "jobs/1", job.lifecycle.last_sequence) == list(range(1, 2 + job.checkpoint_step))


class Endless:
    """Work that a test lets go on; nothing is given back."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def run(self, attempt: Attempt[Job]) -> Ending[Job]:
        await self.go_on.wait()
        return lambda edit: None

    async def salvage(self, attempt: Attempt[Job]) -> Ending[Job]:
        return lambda edit: None


async def test_two_starts_and_a_cancellation_at_any_turn_end_a_job_once(jobs: Store[Job]) -> None:
    """A cancellation beats at every stage of a start, and of an end; whichever wins, there is one last event."""
    for turns in range(0, TURNS, 3):
        name = f"jobs/{turns}"
        await make(jobs, name)
        workflow = Endless()
        if turns % 2:
            workflow.go_on.set()
        runner: WorkRunner[Job] = WorkRunner(jobs, workflow)
        runner.start(name)
        runner.start(name)
        for number in range(turns):
            await turn(number)
        await asyncio.gather(runner.cancel(name, "ann"), runner.cancel(name, "ann"))
        runner.start(name)
        states = [
            event.lifecycle.state
            async for _, event in jobs.log.follow(name, 0)
            if event is not None and event.WhichOneof("detail") == "lifecycle"
        ]
        assert states[-1] in (State.STATE_CANCELLED, State.STATE_SUCCEEDED)
        assert states.count(states[-1]) == 1 and states.count(State.STATE_CANCELLING) <= 1
        await runner.drain()


Step = Callable[[], Coroutine[Any, Any, Any]]


def interleavings(one: list[Step], other: list[Step]) -> list[list[Step]]:
    """Every order of the steps of both that keeps each one's own."""
    found = []
    for places in combinations(range(len(one) + len(other)), len(one)):
        rest, mine = iter(other), iter(one)
        found.append([next(mine) if index in places else next(rest) for index in range(len(one) + len(other))])
    return found


async def test_a_sweep_beside_a_reuse_takes_nothing_that_is_used(database: Database, jobs: Store[Job]) -> None:
    """A forgotten row is not found, and a found one is not forgotten: in every order of their steps."""
    blobs, key = Blobs(database), "train/sha256/1"
    await make(jobs, "jobs/1")

    for number in range(len(interleavings([None] * 2, [None] * 2))):  # type: ignore[list-item]
        said: dict[str, Any] = {}

        async def list_unused(said: dict[str, Any] = said) -> None:
            said["unused"] = await blobs.unused(keep_seconds=0.0)

        async def forget(said: dict[str, Any] = said) -> None:
            said["forgotten"] = key in said["unused"] and await blobs.forget(key)

        async def find(said: dict[str, Any] = said) -> None:
            said["found"] = await blobs.find(key, "jobs/1")

        async def add(said: dict[str, Any] = said) -> None:
            if said["found"] is None:
                await blobs.add(key, 1, b"", "jobs/1")

        name = f"jobs/{100 + number}"
        await make(jobs, name)
        await blobs.add(key, 1, b"", name)
        await _finish_and_delete(jobs, name)
        for step in interleavings([list_unused, forget], [find, add])[number]:
            await step()
        # A row that `jobs/1` refers to, whatever came first.
        assert await blobs.find(key, "jobs/1") is not None and await blobs.unused(keep_seconds=0.0) == []
        assert not (said["forgotten"] and said["found"] is not None)
        await _finish_and_delete(jobs, "jobs/1")
        await make(jobs, "jobs/1")


class Stepped(ObjectStore):
    """The object store, each of whose calls waits until the test lets its caller go on."""

    def __init__(self, store: ObjectStore) -> None:
        super().__init__(store.objects.address)
        self.at_the_gate: dict[str, asyncio.Future[None]] = {}

    async def run(self, call: Callable[[], R]) -> R:
        task = asyncio.current_task()
        assert task is not None
        self.at_the_gate[task.get_name()] = gate = asyncio.get_running_loop().create_future()
        await gate
        return await super().run(call)

    async def let_go(self, order: Sequence[str], tasks: Sequence["asyncio.Task[Any]"], lock: asyncio.Lock) -> None:
        """Let the tasks go on in this order of their calls as far as each has any, and then all to their ends."""
        wanted = list(order)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not all(task.done() for task in tasks):
                blocked = len(lock._waiters or ())
                here = len(self.at_the_gate)
                if not here or here + blocked + sum(task.done() for task in tasks) < len(tasks):
                    await asyncio.sleep(0.0005)
                    continue
                name = next((name for name in wanted if name in self.at_the_gate), next(iter(self.at_the_gate)))
                if name in wanted:
                    wanted.remove(name)
                self.at_the_gate.pop(name).set_result(None)
                await asyncio.sleep(0)


ORDERS = sorted(set(permutations(["sweep"] * 3 + ["make"] * 2)))


@pytest.mark.parametrize("row", [True, False])
async def test_content_that_is_found_while_it_is_swept_is_kept_or_made_again(
    database: Database, object_store: StoreAddress, row: bool
) -> None:
    """In every order of their calls of the store: what is recorded is there, whoever looks for it, and at any time."""
    plain = ObjectStore(replace(object_store, bucket=f"races{secrets.token_hex(6)}"))
    await plain.ensure_bucket()
    store, blobs = Stepped(plain), Blobs(database)
    cache = Cache(blobs, store)
    outcomes = set()
    for number, order in enumerate(ORDERS):
        content = f"{number}".encode()

        async def make(content: bytes = content, number: int = number) -> None:
            stored = await store.put_content("preprocess", content, "text/plain")
            await cache.keep({f"entry{number}": Entry(as_blob(stored))}, "trainingSets/1")

        # Stored by a set that is gone; without a row, by a worker that died.
        stored = await plain.put_content("preprocess", content, "text/plain")
        if row:
            await blobs.add(stored.key, 1, b"", "trainingSets/0")
            async with database.write() as connection:
                await release(connection, "trainingSets/0")
        tasks = [
            asyncio.create_task(cache.sweep(keep_seconds=-60), name="sweep"),
            asyncio.create_task(make(), name="make"),
        ]
        await store.let_go(order, tasks, cache._sweeping)
        swept, made = await asyncio.gather(*tasks, return_exceptions=True)
        assert swept is None and (made is None or isinstance(made, Retryable)), (swept, made)
        outcomes.add(type(made))
        # A row says that the bytes are there.
        assert await blobs.find(stored.key, "trainingSets/2") is None or await plain.exists(stored.key)
        if made is not None:
            await Cache(blobs, plain).keep(
                {f"entry{number}": Entry(as_blob(await plain.put_content("preprocess", content, "text/plain")))},
                "trainingSets/1",
            )
        assert await cache.find([f"entry{number}"], "trainingSets/1") and await plain.exists(stored.key)
    # Both happen: orders in which the sweep takes what was found, and such in which it comes too late.
    assert outcomes == {type(None), Retryable}


async def _finish_and_delete(jobs: Store[Job], name: str) -> None:
    async with jobs.edit(name) as edit:
        edit.enter(State.STATE_SUCCEEDED)
    await jobs.delete(name)


async def test_a_deletion_beside_a_watch_and_reads_ends_them_in_good_order(jobs: Store[Job]) -> None:
    for turns in range(0, TURNS, 2):
        name = f"jobs/{turns}"
        await make(jobs, name)

        async def watch(name: str = name) -> list[int]:
            return [sequence async for sequence, event in jobs.log.follow(name, 0) if event is not None]

        async def read(name: str = name) -> None:
            for _ in range(5):
                await jobs.get(name, "ann")
                await jobs.children(name, "report", Job, 10, "")
                await jobs.page("ann", 10, "")

        async def end(name: str = name) -> None:
            with pytest.raises(NotReady):
                await jobs.delete(name, "ann")
            await _finish_and_delete(jobs, name)

        watching, reading = asyncio.create_task(watch()), asyncio.create_task(read())
        for _ in range(turns):
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_SECONDS):
            outcomes = await asyncio.gather(watching, reading, end(), return_exceptions=True)
        assert outcomes[2] is None
        for outcome in outcomes[:2]:
            assert isinstance(outcome, NotFound) or outcome in (None, [1, 2]), outcome
        with pytest.raises(NotFound):
            await jobs.get(name)
        with pytest.raises((NotFound, StaleAttempt)):
            async with jobs.edit(name):
                pass
