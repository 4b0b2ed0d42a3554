"""Many open pages of one job: does each get every event, in order, and how soon?

The service, the gateway and the pages are processes of their own; a page is a connection that reads server-sent events,
as a browser does. A delay is the time from an event's own timestamp, which it gets before its transaction, to the
moment when a page holds the drawn parts. Prints one line of JSON:

delivered_fraction   events that arrived once and in order, over all that should have
median_ms, p99_ms    delay at the steady rate
drawn_kb             size of one message: what changed, as HTML
server_mb            peak resident memory of the gateway
"""

import argparse
import asyncio
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import aiohttp
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Stage, State, TrainMetrics
from ltxtrain_client.channel import connect
from ltxtrain_client.train import TrainClient

from bench import watch
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.tables import Database

JOB = f"jobs/{'0' * 32}"
RATE = 2.0
LIMIT_SECONDS = 300.0
# What a page waits for before the job begins.
FIRST_EVENTS = 1


class Book(watch.Book):
    """The calls that a page of a job makes."""

    async def GetJob(self, request: train_pb2.GetJobRequest, context: Any) -> train_pb2.GetJobResponse:
        return train_pb2.GetJobResponse(job=await self.jobs.get(JOB))

    async def train(self, step: int) -> None:
        numbers = TrainMetrics(
            step=step, loss=1 / step, video_loss=1 / step + 0.1 * math.sin(step), learning_rate=1e-4,
            seconds_per_step=0.5, gradient_norm=1.0,
        )  # fmt: skip
        async with self.jobs.edit(JOB) as edit:
            edit.add_event(Event(stage=Stage.STAGE_TRAIN, train_metrics=numbers))


async def serve(pages: int, events: int, state_dir: Path) -> None:
    """Serve until the job has ended and every page has its end."""
    settings = Settings(max_watches=pages + 1, state_dir=state_dir)
    database = await Database.open(settings.database, state_dir)
    # All pages but the one that is asked for the times afterwards.
    book = Book(database, Settings(max_watches=pages))
    server = Server(settings, ["ltxtrain.v1.TrainService"])
    train_pb2_grpc.add_TrainServiceServicer_to_server(book, server.grpc)
    await server.start()
    made = Job(name=JOB, effective_spec=TaskSpec(extend_prefix=ExtendPrefixSpec(number_of_steps=events)))
    await book.jobs.create(made, owner="local", request_id="", digest=b"")
    print(server.address, flush=True)
    await book.all_came.wait()
    began = time.monotonic()
    for number in range(events):
        await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
        await book.train(number + 1)
    async with book.jobs.edit(JOB) as edit:
        edit.enter(State.STATE_SUCCEEDED)
    await asyncio.to_thread(sys.stdin.read)
    await server.grpc.stop(5.0)
    await database.close()


async def read(url: str, pages: int) -> None:
    """Keep so many pages open; prints for each the ids that came, when, and the mean size of a message."""

    async def page(session: aiohttp.ClientSession) -> tuple[list[tuple[int, float]], int]:
        seen, size = [], 0
        async with session.get(f"{url}/{JOB}/events") as answer:
            async for line in answer.content:
                if line.startswith(b"id: "):
                    sequence = int(line[4:])
                elif line.startswith(b"data: ") and len(line) > 10:
                    seen.append((sequence, time.time()))
                    size += len(line)
        return seen, size

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, read_bufsize=2**20) as session:
        print(json.dumps(await asyncio.gather(*[page(session) for _ in range(pages)])), flush=True)


@asynccontextmanager
async def gateway(train: str) -> AsyncIterator[tuple[str, int]]:
    """The URL and the process id of a gateway as it is installed."""
    environ = os.environ | {"LTXTRAIN_TRAIN": train, "LTXTRAIN_BIND": "127.0.0.1:0", "LTXTRAIN_LOG_LEVEL": "INFO"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ltxtrain_services.gateway", env=environ, stderr=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        while (
            found := re.search(r"listening on (http://[\d.:]+)", (await process.stderr.readline()).decode())
        ) is None:
            assert process.returncode is None
        yield found[1], process.pid
    finally:
        process.terminate()
        await process.communicate()


async def measure(pages: int, events: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        server = await _start("serve", pages, events, folder)
        try:
            assert server.stdout is not None and server.stdin is not None
            address = (await server.stdout.readline()).decode().strip()
            async with gateway(address) as (url, pid):
                reader = await _start("read", url, pages)
                told, _ = await reader.communicate()
                if reader.returncode:
                    raise SystemExit(f"The pages ended with status {reader.returncode}.")
                peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                assert peak is not None
            async with connect(address) as channel:
                watched = TrainClient(channel).watch_job(JOB)
                made = {sequence: event.time.ToNanoseconds() / 1e9 async for sequence, event in watched}
        finally:
            server.kill()
            await server.wait()
    streams = json.loads(told)
    expected = list(range(FIRST_EVENTS, events + FIRST_EVENTS + 2))[-(events + 1) :]
    delivered = sum(_delivered([sequence for sequence, _ in seen], expected) for seen, _ in streams)
    steady = [(came - made[sequence]) * 1e3 for seen, _ in streams for sequence, came in seen if sequence in expected]
    messages = sum(len(seen) for seen, _ in streams)
    return {
        "delivered_fraction": delivered / (len(expected) * pages),
        "median_ms": round(statistics.median(steady), 1),
        "p99_ms": round(statistics.quantiles(steady, n=100)[-1], 1),
        "drawn_kb": round(sum(size for _, size in streams) / messages / 1e3, 1),
        "server_mb": round(int(peak[1]) / 1024, 1),
    }


def _delivered(got: list[int], expected: list[int]) -> int:
    """How many events came once and in order, after what a page is first drawn from."""
    got = [sequence for sequence in got if sequence in expected]
    return len(expected) if got == expected else sum(a == b for a, b in zip(got, expected, strict=False))


async def _start(role: str, *arguments: object) -> asyncio.subprocess.Process:
    command = [sys.executable, __file__, "--role", role, *map(str, arguments)]
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, limit=2**26)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="ten seconds at the steady rate in place of a minute")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--role", choices=["serve", "read"], help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "serve":
        pages, events, folder = options.arguments
        asyncio.run(asyncio.wait_for(serve(int(pages), int(events), Path(folder)), LIMIT_SECONDS))
    elif options.role == "read":
        url, pages = options.arguments
        asyncio.run(asyncio.wait_for(read(url, int(pages)), LIMIT_SECONDS))
    else:
        print(json.dumps(asyncio.run(measure(options.pages, 20 if options.quick else 120))))


if __name__ == "__main__":
    main()
