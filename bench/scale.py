"""Two hundred jobs on sixteen GPUs, a thousand clips on eight nodes, ten thousand jobs in the database.

GPUs and nodes are declared to a real Ray, whose placement groups, actors and node table are used as they are in
production; the work is to wait for a known time. Lists and watches are calls to the Train service. Prints one line of
JSON:

ideal_share       the least of the next three
queue_share       as the next, in simulated time: what the queue's order alone costs
jobs_share        the time in which no GPU is ever free, over the time that all jobs took
clips_share       the time in which no node is ever free, over the time that all clips took once every node had an actor
fair_share        least of all owners, simulated: GPU seconds until its last job began, over its part of all GPUs
list_p99_ms       one page of a caller's jobs, a sixth of the ten thousand, from any place, while events are written
watch_p99_ms      from an event's own timestamp to each of its watchers, meanwhile
job_kb, event_bytes   that a job with its first events, and each further event, add to the database
"""

import argparse
import asyncio
import json
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
# Before Ray is imported, which looks once.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job, JobOptions
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Progress, Stage, State, TrainMetrics
from sqlalchemy import insert, text

from bench.common import fleet
from ltxtrain_services.runtime import tables
from ltxtrain_services.runtime.auth import server_credentials
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.extend_prefix import resolve, resolve_options
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.service import Runtime, store_address
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.train.service import TrainService

JOBS = 10_000
EVENTS_A_JOB = 3
PAGE = 50
WATCHERS = 50
WRITES_A_SECOND = 20.0
LISTS, LISTS_A_SECOND = 300, 40.0


def template() -> tuple[bytes, list[bytes]]:
    """A job as it is stored, and its events."""
    spec = ExtendPrefixSpec(training_data_url="https://example.com/clips.zip", trigger_phrase="drifting shapes")
    resolved, _ = resolve(spec, lambda url: None)
    options, _ = resolve_options(JobOptions(), resolved.number_of_steps)
    now = Timestamp()
    now.GetCurrentTime()
    life = Lifecycle(state=State.STATE_SUCCEEDED, create_time=now, start_time=now, end_time=now, last_sequence=3)
    job = Job(
        name="jobs/x",
        lifecycle=life,
        spec=TaskSpec(extend_prefix=spec),
        effective_spec=TaskSpec(extend_prefix=resolved),
        options=options,
    )
    return job.SerializeToString(), [Event(time=now, lifecycle=life).SerializeToString()] * EVENTS_A_JOB


async def fill(database: Database, count: int) -> None:
    """So many jobs that have ended, of as many owners as the fleet has; the first is whoever calls."""
    owners = ["local", *(f"owner {number}" for number in range(1, fleet.OWNERS))]
    body, events = template()
    job = Job.FromString(body)
    rows, said = [], []
    for number in range(count):
        job.name = f"jobs/{number:032x}"
        rows.append(
            {
                "name": job.name, "owner": owners[number % fleet.OWNERS], "state": State.STATE_SUCCEEDED,
                "created": number, "attempt": 1, "last_sequence": EVENTS_A_JOB,
                "display_name": "", "body": job.SerializeToString(),
            }
        )  # fmt: skip
        said += [{"resource": job.name, "sequence": index + 1, "body": event} for index, event in enumerate(events)]
    async with database.write() as connection:
        await connection.execute(insert(tables.resource), rows)
        await connection.execute(insert(tables.events), said)


async def lists_and_watches(cluster: Cluster, folder: Path, lists: int) -> dict[str, float]:
    """Figures of the database and of calls to a Train service that has it."""
    settings = Settings(state_dir=folder, bind="127.0.0.1:0", max_watches=WATCHERS)
    server_credentials(settings)
    database = await Database.open(settings.database, folder)
    log = EventLog(database)
    runtime = Runtime(settings, database, log, Blobs(database), ObjectStore(store_address(settings)), cluster)
    service = TrainService(runtime)
    server = Server(settings, [service.full_name])
    service.register(server.grpc)
    await server.start()
    try:
        await fill(database, JOBS)
        size = await database_bytes(database, folder)
        watched = Job(name=f"jobs/{'f' * 32}")
        jobs: Store[Job] = Store(database, log, "jobs", Job)
        await jobs.create(watched, owner="local", request_id="", digest=b"")
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = train_pb2_grpc.TrainServiceStub(channel)
            # In a process of their own, as callers are.
            command = [sys.executable, __file__, "--watch", server.address, "--job", watched.name]
            watchers = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, limit=2**26)
            assert watchers.stdout is not None
            await watchers.stdout.readline()
            stop = asyncio.Event()
            writer = asyncio.create_task(write(jobs, watched.name, stop))
            seconds = await list_pages(stub, lists)
            stop.set()
            written = await writer
            delays = json.loads(await watchers.stdout.readline())
            await watchers.wait()
        growth = (await database_bytes(database, folder) - size) / written
    finally:
        await server.grpc.stop(5.0)
        await database.close()
    return {
        "list_p99_ms": percentile(seconds, 99) * 1000,
        "list_median_ms": statistics.median(seconds) * 1000,
        "watch_p99_ms": percentile(delays, 99) * 1000,
        "job_kb": size / JOBS / 1000,
        "event_bytes": growth,
    }


async def list_pages(stub: Any, count: int) -> list[float]:
    """Seconds of each call: on from any earlier page, all states or one, as callers mix them."""
    choose = random.Random(3)
    tokens, taken = [""], []
    for _ in range(count):
        token = choose.choice(tokens)
        await asyncio.sleep(1 / LISTS_A_SECOND)
        began = time.perf_counter()
        page = await stub.ListJobs(train_pb2.ListJobsRequest(page_size=PAGE, page_token=token))
        taken.append(time.perf_counter() - began)
        assert len(page.jobs) == PAGE or not page.next_page_token
        if page.next_page_token:
            tokens.append(page.next_page_token)
    return taken


async def write(jobs: Store[Job], name: str, stop: asyncio.Event) -> int:
    """Events at a steady rate, as a training's are written, until told to stop; their number."""
    count, began = 0, time.monotonic()
    while not stop.is_set():
        count += 1
        numbers = TrainMetrics(step=count, loss=0.1, video_loss=0.1, learning_rate=1e-4, seconds_per_step=2.0)
        async with jobs.edit(name) as edit:
            edit.body.progress.CopyFrom(Progress(completed=count, total=2000))
            edit.add_event(Event(stage=Stage.STAGE_TRAIN, train_metrics=numbers))
        await asyncio.sleep(max(0.0, began + count / WRITES_A_SECOND - time.monotonic()))
    async with jobs.edit(name) as edit:
        edit.enter(State.STATE_SUCCEEDED)
    return count


async def watch(address: str, name: str) -> None:
    """Watch until the job ends; print a line when all do, then the seconds from each timestamp to its arrival."""
    delays: list[float] = []
    came = 0

    async def follow(stub: Any) -> None:
        nonlocal came
        async for response in stub.WatchJob(train_pb2.WatchJobRequest(name=name)):
            if response.sequence == 1:
                came += 1
                if came == WATCHERS:
                    print("all watch", flush=True)
            elif response.HasField("event"):
                delays.append(time.time() - response.event.time.ToNanoseconds() / 1e9)

    async with grpc.aio.insecure_channel(address) as channel:
        stub = train_pb2_grpc.TrainServiceStub(channel)
        await asyncio.gather(*(follow(stub) for _ in range(WATCHERS)))
    print(json.dumps(delays), flush=True)


async def database_bytes(database: Database, folder: Path) -> int:
    """Size of the database once its journal is written back."""
    async with database.read() as connection:
        await connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
    return sum(path.stat().st_size for path in folder.glob("state.db*"))


def percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100)[percent - 1]


async def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    # Workers of sixteen GPUs start on the cores of one machine here: of jobs of a few seconds that alone takes a tenth.
    jobs, job_seconds = 200, 1.0 if quick else 10.0
    node_count, clips, clip_seconds = (3, 120, 0.3) if quick else (8, 1000, 0.5)
    simulated = await asyncio.to_thread(fleet.simulate_jobs, fleet.tasks(jobs, job_seconds))
    shares = fleet.fair_share(simulated)
    figures = {"queue_share": fleet.jobs_share(simulated), "fair_share": min(shares.values())}
    with fleet.declared_cluster() as nodes:
        cluster = Cluster()
        watching = asyncio.create_task(cluster.watch())
        ran = await fleet.run_jobs(cluster, fleet.tasks(jobs, job_seconds))
        print(f"{jobs} jobs of {fleet.OWNERS} owners, {job_seconds} s each, on {fleet.GPUS} declared GPUs")
        for owner, share in shares.items():
            own = [item for item in ran if item.task.owner == owner]
            ended = max(item.ended for item in own)
            print(f"  {owner}  {len(own):4d} jobs  done after {ended:6.1f} s  had {share:5.2f} of its part until then")
        figures["jobs_share"] = fleet.jobs_share(ran)
        table = await lists_and_watches(cluster, folder, LISTS if quick else 5 * LISTS)
        print(f"{JOBS} jobs in the database, {WATCHERS} watchers, {WRITES_A_SECOND:.0f} events a second")
        for name, value in table.items():
            print(f"  {name:16s} {value:10.2f}")
        for _ in range(node_count):
            nodes.add_node(num_cpus=1, resources={"declared": 1}, object_store_memory=100 * 2**20)
        await cluster.refresh()
        figures["clips_share"], started = await fleet.run_clips(cluster, node_count, clips, clip_seconds)
        print(f"{clips} clips of {clip_seconds} s on {node_count} declared nodes; actors took {started:.1f} s to start")
        watching.cancel()
    ideal = min(figures[name] for name in ("queue_share", "jobs_share", "clips_share"))
    return {"ideal_share": ideal, **figures, **table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="shorter work, and three nodes in place of eight")
    parser.add_argument("--watch", help=argparse.SUPPRESS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.watch:
        asyncio.run(watch(arguments.watch, arguments.job))
        return
    quick = arguments.quick
    with tempfile.TemporaryDirectory(prefix="ltxtrain-scale-") as folder:
        figures = asyncio.run(measure(Path(folder), quick=quick))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
