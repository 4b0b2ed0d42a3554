"""Many watchers of one job: does each get every event once, in order, and how soon?

The server runs in a process of its own, with a real database on disk; the watchers are plain generated clients in
other processes. A delay is the time from an event's own timestamp, which it gets before its transaction, to the moment
when a watcher holds the parsed message. Prints one line of JSON:

delivered_fraction   events that arrived once and in order, over all that should have
median_ms, p99_ms    delay at the steady rate
burst_events_per_s   messages to watchers a second during the burst: watchers × events over the time to the last one
server_mb            peak resident memory of the server process
"""

import argparse
import asyncio
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import grpc.aio
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, Stage, State

from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.requests import Watches
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.tables import Database

JOB = "jobs/bench"
RATE = 2.0
BURST = 50
CLIENTS = 2
# Of one client process.
CHANNELS = 4
# After which a process that its parent left behind ends.
LIMIT_SECONDS = 300.0


class Book(train_pb2_grpc.TrainServiceServicer):
    """WatchJob as the services serve it, over one job."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._expected = settings.max_watches
        self._came = self._left = 0
        self.all_came, self.all_left = asyncio.Event(), asyncio.Event()
        self.log = EventLog(database)
        self.jobs: Store[Job] = Store(database, self.log, "jobs", Job, fed=True)
        self._watches = Watches(self.log)

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        kind = train_pb2.WatchJobResponse
        try:
            async for response in self._watches.responses(request.name, request.after_sequence, kind):
                yield response
                if response.sequence == 1:
                    self._came += 1
                    if self._came == self._expected:
                        self.all_came.set()
        finally:
            self._left += 1
            if self._left == self._expected:
                self.all_left.set()

    async def WatchJobs(
        self, request: train_pb2.WatchJobsRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobsResponse]:
        try:
            async for response in self._watches.of_owner("local", request.after_cursor):
                yield response
                if response.cursor == 1:
                    self._came += 1
                    if self._came == self._expected:
                        self.all_came.set()
        finally:
            self._left += 1
            if self._left == self._expected:
                self.all_left.set()

    async def add(self, completed: int) -> None:
        progress = Progress(completed=completed, total=1000, eta_seconds=12.5)
        async with self.jobs.edit(JOB) as edit:
            edit.add_event(Event(stage=Stage.STAGE_TRAIN, progress=progress))


async def serve(watchers: int, steady_events: int, state_dir: Path) -> None:
    """Serve until the job has ended and everybody has left."""
    settings = Settings(max_watches=watchers, state_dir=state_dir)
    database = await Database.open(settings.database, state_dir)
    book = Book(database, settings)
    server = Server(settings, ["ltxtrain.v1.TrainService"])
    train_pb2_grpc.add_TrainServiceServicer_to_server(book, server.grpc)
    await server.start()
    await book.jobs.create(Job(name=JOB), owner="local", request_id="", digest=b"")
    print(server.address, flush=True)
    await book.all_came.wait()
    began = time.monotonic()
    for number in range(steady_events):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        await book.add(number)
    await asyncio.sleep(2.0)
    for number in range(BURST):
        await book.add(steady_events + number)
    async with book.jobs.edit(JOB) as edit:
        edit.enter(State.STATE_SUCCEEDED)
    await book.all_left.wait()
    await server.grpc.stop(5.0)
    await database.close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


async def watch(address: str, watchers: int, feed: bool) -> None:
    """Watch the job, or all jobs, with many streams; prints the sequences of each, when events were made and came."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    stubs = [train_pb2_grpc.TrainServiceStub(grpc.aio.insecure_channel(address, options=own)) for _ in range(CHANNELS)]

    async def follow(stub: Any) -> list[tuple[int, float, float]]:
        seen = []
        one, all_jobs = train_pb2.WatchJobRequest(name=JOB), train_pb2.WatchJobsRequest()
        async for response in stub.WatchJobs(all_jobs) if feed else stub.WatchJob(one):
            if response.HasField("event"):
                seen.append((response.sequence, response.event.time.ToNanoseconds() / 1e9, time.time()))
                if response.event.lifecycle.state == State.STATE_SUCCEEDED:
                    break
        return seen

    streams = await asyncio.gather(*[follow(stubs[index % CHANNELS]) for index in range(watchers)])
    print(json.dumps(streams), flush=True)


async def measure(watchers: int, steady_events: int, feed: bool) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = await _start("serve", watchers, steady_events, folder)
        try:
            assert server.stdout is not None
            address = (await server.stdout.readline()).decode().strip()
            each = watchers // CLIENTS
            told = await asyncio.gather(
                *[_output(await _start("watch", address, each, int(feed))) for _ in range(CLIENTS)]
            )
            server_mb = float(await _output(server))
        finally:
            if server.returncode is None:
                server.kill()
                await server.wait()
    streams = [stream for output in told for stream in json.loads(output)]
    # The creation comes first, the end last.
    expected = list(range(1, steady_events + BURST + 3))
    delivered = sum(_delivered([item[0] for item in stream], expected) for stream in streams)
    steady = [(came - made) * 1e3 for stream in streams for _, made, came in stream[1 : 1 + steady_events]]
    burst = [item for stream in streams for item in stream[1 + steady_events : -1]]
    seconds = max(came for *_, came in burst) - min(made for _, made, _ in burst)
    return {
        "delivered_fraction": delivered / (len(expected) * each * CLIENTS),
        "median_ms": round(statistics.median(steady), 1),
        "p99_ms": round(statistics.quantiles(steady, n=100)[-1], 1),
        "burst_events_per_s": round(len(burst) / seconds),
        "server_mb": round(server_mb, 1),
    }


async def _output(process: asyncio.subprocess.Process) -> bytes:
    output, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"A process of the benchmark ended with status {process.returncode}.")
    return output


def _delivered(got: list[int], expected: list[int]) -> int:
    """How many events came once and in order; one out of place counts as lost."""
    return len(expected) if got == expected else sum(a == b for a, b in zip(got, expected, strict=False))


async def _start(role: str, *arguments: object) -> asyncio.subprocess.Process:
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**26)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten seconds at the steady rate in place of a minute")
    parser.add_argument("--watchers", type=int, default=500)
    parser.add_argument("--feed", action="store_true", help="WatchJobs in place of WatchJob")
    parser.add_argument("--role", choices=["serve", "watch"], help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "serve":
        watchers, steady_events, folder = options.arguments
        asyncio.run(asyncio.wait_for(serve(int(watchers), int(steady_events), Path(folder)), LIMIT_SECONDS))
    elif options.role == "watch":
        address, watchers, feed = options.arguments
        asyncio.run(asyncio.wait_for(watch(address, int(watchers), feed == "1"), LIMIT_SECONDS))
    else:
        print(json.dumps(asyncio.run(measure(options.watchers, 20 if options.quick else 120, options.feed))))


if __name__ == "__main__":
    main()
