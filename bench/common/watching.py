"""One job and many who watch it: the service, the steady rate, the processes, and the figures of bench/watch.py and
bench/gateway.py.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.requests import Watches
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store

JOB = f"jobs/{'0' * 32}"
RATE = 2.0
# After which a process that its parent left behind ends.
LIMIT_SECONDS = 300.0
QUICK_EVENTS, EVENTS = 20, 120


class Book(train_pb2_grpc.TrainServiceServicer):
    """GetJob and WatchJob as the services serve them, over one job."""

    def __init__(self, database: Database, watchers: int) -> None:
        self._expected = watchers
        self._came = self._left = 0
        self.all_came, self.all_left = asyncio.Event(), asyncio.Event()
        log = EventLog(database)
        self.jobs: Store[Job] = Store(database, log, "jobs", Job, fed=True)
        self._watches = Watches(log)

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Any) -> train_pb2.GetJobResponse:
        return train_pb2.GetJobResponse(job=await self.jobs.get(JOB))

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        kind = train_pb2.WatchJobResponse
        try:
            async for response in self._watches.responses(request.name, request.after_sequence, kind):
                yield response
                self._count(response.sequence)
        finally:
            self._leave()

    async def WatchJobs(
        self, request: train_pb2.WatchJobsRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobsResponse]:
        try:
            async for response in self._watches.of_owner("local", request.after_cursor):
                yield response
                self._count(response.cursor)
        finally:
            self._leave()

    def _count(self, sequence: int) -> None:
        self._came += sequence == 1
        if self._came == self._expected:
            self.all_came.set()

    def _leave(self) -> None:
        self._left += 1
        if self._left == self._expected:
            self.all_left.set()

    async def add(self, event: Event) -> None:
        async with self.jobs.edit(JOB) as edit:
            edit.add_event(event)

    async def steadily(self, count: int, event: Callable[[int], Event]) -> None:
        """So many events at the steady rate, once everybody watches."""
        await self.all_came.wait()
        began = time.monotonic()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            await self.add(event(number))

    async def end(self) -> None:
        async with self.jobs.edit(JOB) as edit:
            edit.enter(State.STATE_SUCCEEDED)


@asynccontextmanager
async def serving(watchers: int, events: int, state_dir: Path, spare_watches: int = 0) -> AsyncIterator[Book]:
    """The job behind a service whose address is printed."""
    settings = Settings(max_watches=watchers + spare_watches, state_dir=state_dir)
    database = await Database.open(settings.database, state_dir)
    book = Book(database, watchers)
    server = Server(settings, ["ltxtrain.v1.TrainService"])
    train_pb2_grpc.add_TrainServiceServicer_to_server(book, server.grpc)
    await server.start()
    made = Job(name=JOB, effective_spec=TaskSpec(extend_prefix=ExtendPrefixSpec(number_of_steps=events)))
    await book.jobs.create(made, owner="local", request_id="", digest=b"")
    print(server.address, flush=True)
    yield book
    await server.grpc.stop(5.0)
    await database.close()


def figures(
    streams: Sequence[Sequence[tuple[int, float]]], made: Mapping[int, float], expected: list[int]
) -> dict[str, float]:
    """delivered_fraction, median_ms and p99_ms of streams of (sequence, when it came); `made`: when each was made."""
    got = [[sequence for sequence, _ in stream if sequence in made] for stream in streams]
    delays = [(came - made[sequence]) * 1e3 for stream in streams for sequence, came in stream if sequence in made]
    return {
        "delivered_fraction": sum(_delivered(item, expected) for item in got) / (len(expected) * len(streams)),
        "median_ms": round(statistics.median(delays), 1),
        "p99_ms": round(statistics.quantiles(delays, n=100)[-1], 1),
    }


def _delivered(got: list[int], expected: list[int]) -> int:
    """How many events came once and in order; one out of place counts as lost."""
    return len(expected) if got == expected else sum(a == b for a, b in zip(got, expected, strict=False))


@asynccontextmanager
async def service(program: str, watchers: int, events: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A process that plays the role `serve`, and the address that it prints."""
    with tempfile.TemporaryDirectory() as folder:
        process = await start(program, "serve", watchers, events, folder)
        try:
            assert process.stdout is not None
            yield process, (await process.stdout.readline()).decode().strip()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def start(program: str, role: str, *arguments: object) -> asyncio.subprocess.Process:
    """A process of a benchmark that plays a role."""
    command = [sys.executable, program, "--role", role, *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26)


async def output(process: asyncio.subprocess.Process) -> bytes:
    told, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"A process of the benchmark ended with status {process.returncode}.")
    return told


def run(
    doc: str | None,
    who: str,
    count: int,
    measure: Callable[[int, int], Awaitable[Mapping[str, float]]],
    roles: Mapping[str, Callable[..., Coroutine[Any, Any, None]]],
) -> None:
    """The command line of a benchmark with `count` watchers, which are called `who`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten seconds at the steady rate in place of a minute")
    parser.add_argument(f"--{who}", dest="count", type=int, default=count)
    parser.add_argument("--role", choices=roles, help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        asyncio.run(asyncio.wait_for(roles[options.role](*options.arguments), LIMIT_SECONDS))
    else:

        async def measured() -> Mapping[str, float]:
            return await measure(options.count, QUICK_EVENTS if options.quick else EVENTS)

        print(json.dumps(asyncio.run(measured())))
