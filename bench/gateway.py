"""Many open pages of one job: does each get every event, in order, and how soon?

The service, the gateway and the pages are processes of their own; a page is a connection that reads server-sent events,
as a browser does. A delay is the time from an event's own timestamp, which it gets before its transaction, to the
moment when a page holds the drawn parts. Prints one line of JSON:

delivered_fraction   events that arrived once and in order, over all that should have
median_ms, p99_ms    delay at the steady rate
drawn_kb             size of one message: what changed, as HTML
server_mb            peak resident memory of the gateway
"""

import asyncio
import json
import math
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import aiohttp
from ltxtrain.v1.work_pb2 import Event, Stage, TrainMetrics
from ltxtrain_client.channel import connect
from ltxtrain_client.train import TrainClient

from bench.common.watching import JOB, figures, output, run, service, serving, start


def step(number: int) -> Event:
    numbers = TrainMetrics(
        step=number + 1, loss=1 / (number + 1), video_loss=1 / (number + 1) + 0.1 * math.sin(number),
        learning_rate=1e-4, seconds_per_step=0.5, gradient_norm=1.0,
    )  # fmt: skip
    return Event(stage=Stage.STAGE_TRAIN, train_metrics=numbers)


async def serve(pages: str, events: str, folder: str) -> None:
    """Serve until the job has ended and every page has its end."""
    # One more watch, which is asked for the times afterwards.
    async with serving(int(pages), int(events), Path(folder), spare_watches=1) as book:
        await book.steadily(int(events), step)
        await book.end()
        await asyncio.to_thread(sys.stdin.read)


async def read(url: str, pages: str) -> None:
    """Keep so many pages open; prints for each the ids that came and when, and the bytes of all its messages."""

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
        print(json.dumps(await asyncio.gather(*[page(session) for _ in range(int(pages))])), flush=True)


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
    async with service(__file__, pages, events) as (_, address):
        async with gateway(address) as (url, pid):
            told = await output(await start(__file__, "read", url, pages))
            peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
            assert peak is not None
        async with connect(address) as channel:
            watched = TrainClient(channel).watch_job(JOB)
            made = {sequence: event.time.ToNanoseconds() / 1e9 async for sequence, event in watched}
    streams = json.loads(told)
    # The steps and the end; a page begins with what is drawn of the creation.
    expected = list(range(2, events + 3))
    messages = sum(len(seen) for seen, _ in streams)
    return figures([seen for seen, _ in streams], {item: made[item] for item in expected}, expected) | {
        "drawn_kb": round(sum(size for _, size in streams) / messages / 1e3, 1),
        "server_mb": round(int(peak[1]) / 1024, 1),
    }


if __name__ == "__main__":
    run(__doc__, "pages", 200, measure, {"serve": serve, "read": read})
