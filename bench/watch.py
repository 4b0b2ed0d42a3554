"""Many watchers of one job: does each get every event once, in order, and how soon?

The server runs in a process of its own, with a real database on disk; the watchers are plain generated clients in
other processes. A delay is the time from an event's own timestamp, which it gets before its transaction, to the moment
when a watcher holds the parsed message. Prints one line of JSON, for WatchJob and, as
feed_…, for WatchJobs:

delivered_fraction   events that arrived once and in order, over all that should have
median_ms, p99_ms    delay at the steady rate
burst_events_per_s   messages to watchers a second during the burst: watchers × events over the time to the last one
server_mb            peak resident memory of the server process
"""

import asyncio
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import grpc.aio
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.work_pb2 import Event, Progress, Stage, State

from bench.common.watching import JOB, figures, output, run, service, serving, start

BURST = 50
CLIENTS = 2
# Of one client process.
CHANNELS = 4


def step(number: int) -> Event:
    return Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=number, total=1000, eta_seconds=12.5))


async def serve(watchers: str, events: str, folder: str) -> None:
    """Serve until the job has ended and everybody has left."""
    async with serving(int(watchers), int(events), Path(folder)) as book:
        await book.steadily(int(events), step)
        await asyncio.sleep(2.0)
        for number in range(BURST):
            await book.add(step(int(events) + number))
        await book.end()
        await book.all_left.wait()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)


async def watch(address: str, watchers: str, call: str = "WatchJob") -> None:
    """Watch with many streams; prints the sequences of each, and when their events were made and came."""
    own = [("grpc.use_local_subchannel_pool", 1)]
    stubs = [train_pb2_grpc.TrainServiceStub(grpc.aio.insecure_channel(address, options=own)) for _ in range(CHANNELS)]

    async def follow(stub: Any) -> list[tuple[int, float, float]]:
        seen = []
        one, feed = train_pb2.WatchJobRequest(name=JOB), train_pb2.WatchJobsRequest()
        async for response in stub.WatchJobs(feed) if call == "WatchJobs" else stub.WatchJob(one):
            if response.HasField("event"):
                seen.append((response.sequence, response.event.time.ToNanoseconds() / 1e9, time.time()))
                if response.event.lifecycle.state == State.STATE_SUCCEEDED:
                    break
        return seen

    streams = await asyncio.gather(*[follow(stubs[index % CHANNELS]) for index in range(int(watchers))])
    print(json.dumps(streams), flush=True)


async def measure(watchers: int, events: int) -> dict[str, float]:
    """The figures of WatchJob, and beside them those of WatchJobs."""
    found = await measure_call("WatchJob", watchers, events)
    return found | {
        f"feed_{name}": value for name, value in (await measure_call("WatchJobs", watchers, events)).items()
    }


async def measure_call(call: str, watchers: int, events: int) -> dict[str, float]:
    async with service(__file__, watchers, events) as (server, address):
        each = watchers // CLIENTS
        told = await asyncio.gather(
            *[output(await start(__file__, "watch", address, each, call)) for _ in range(CLIENTS)]
        )
        server_mb = float(await output(server))
    streams = [stream for text in told for stream in json.loads(text)]
    # The creation comes first, the end last.
    expected = list(range(1, events + BURST + 3))
    came = [[(sequence, came) for sequence, _, came in stream] for stream in streams]
    made = {sequence: made for stream in streams for sequence, made, _ in stream}
    steady = {sequence: made[sequence] for sequence in expected[1 : 1 + events]}
    burst = [item for stream in streams for item in stream[1 + events : -1]]
    seconds = max(came for *_, came in burst) - min(made for _, made, _ in burst)
    return figures(came, steady, list(steady)) | {
        "delivered_fraction": figures(came, made, expected)["delivered_fraction"],
        "burst_events_per_s": round(len(burst) / seconds),
        "server_mb": round(server_mb, 1),
    }


if __name__ == "__main__":
    run(__doc__, "watchers", 500, measure, {"serve": serve, "watch": watch})
