"""Watchers of a running suite: no death of a service and no end of a stream loses an event, or touches the work."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import grpc.aio
import pytest
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_services.local.up import Suite
from tests.clips import numbered, write_clip, write_zip
from tests.suite.conftest import Clients, finished, ingest, submit

WATCHERS = 20
Watch = Callable[[], AsyncIterator[tuple[int, Event]]]


def settings() -> PreprocessSettings:
    geometry = Geometry(width=512, height=288, frame_count=17, frame_rate=24)
    return PreprocessSettings(training=geometry, validation=geometry, conditioning_frames=9, fit_only=True)


async def watched(watch: Watch) -> list[int]:
    return [sequence async for sequence, _ in watch()]


async def killed_while_watched(suite: Suite, name: str, watch: Watch, after_events: int) -> list[list[int]]:
    """Events that twenty watchers saw of work whose service was killed once some had come."""
    watchers = [asyncio.create_task(watched(watch)) for _ in range(WATCHERS)]
    async for sequence, _ in watch():
        if sequence >= after_events:
            break
    os.kill(suite.pids[name], signal.SIGKILL)
    return await asyncio.gather(*watchers)


async def test_ingest_is_killed_under_its_watchers(suite: Suite, clients: Clients, clips_zip: Path) -> None:
    upload = await clients.ingest.upload(clips_zip)
    made = await clients.ingest.create_dataset(upload=upload.name)
    seen = await killed_while_watched(suite, "ingest", lambda: clients.ingest.watch_dataset(made.name), 2)
    ended = await clients.ingest.get_dataset(made.name)
    assert ended.lifecycle.state == State.STATE_SUCCEEDED and ended.clip_count == 5
    assert all(sequences == list(range(1, ended.lifecycle.last_sequence + 1)) for sequences in seen)


async def test_preprocess_is_killed_under_its_watchers(suite: Suite, clients: Clients, ingested: str) -> None:
    made = await clients.preprocess.create_training_set(ingested, settings())
    seen = await killed_while_watched(suite, "preprocess", lambda: clients.preprocess.watch_training_set(made.name), 2)
    ended = await clients.preprocess.get_training_set(made.name)
    assert ended.lifecycle.state == State.STATE_SUCCEEDED and ended.report.samples == 4
    assert all(sequences == list(range(1, ended.lifecycle.last_sequence + 1)) for sequences in seen)


@pytest.mark.soak
async def test_train_is_killed_under_its_watchers(suite: Suite, clients: Clients, clips_zip: Path) -> None:
    job = await submit(clients, clips_zip, options={"checkpoint_interval": 20})
    seen = await killed_while_watched(suite, "train", lambda: clients.train.watch_job(job.name), 20)
    ended = await finished(clients, job.name)
    assert all(sequences == list(range(1, ended.lifecycle.last_sequence + 1)) for sequences in seen)


async def test_a_deadline_ends_the_watch_and_not_the_job(suite: Suite, clients: Clients, clips_zip: Path) -> None:
    job = await submit(clients, clips_zip)
    async with grpc.aio.insecure_channel(suite.train_address) as channel:
        stub = train_pb2_grpc.TrainServiceStub(channel)
        request = train_pb2.WatchJobRequest(name=job.name)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.WatchJob(request, timeout=0.5):
                pass
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    running = await clients.train.get_job(job.name)
    assert running.lifecycle.state in (State.STATE_PENDING, State.STATE_RUNNING)
    cancelled = await clients.train.cancel_job(job.name)
    assert cancelled.lifecycle.state in (State.STATE_CANCELLING, State.STATE_CANCELLED)
    async for _, event in clients.train.watch_job(job.name):
        last = event
    assert last.lifecycle.state == State.STATE_CANCELLED
    ended = await clients.train.get_job(job.name)
    assert ended.billable_units == 0
    assert (await clients.train.cancel_job(job.name)).lifecycle == ended.lifecycle


@pytest.mark.parametrize("count", [8, pytest.param(50, marks=pytest.mark.soak)])
async def test_datasets_are_made_while_streams_are_open(
    suite: Suite, clients: Clients, clips_zip: Path, tmp_path: Path, count: int
) -> None:
    """A fork in a process that serves gRPC would hang, sooner or later: each service starts its helpers otherwise."""
    eight = asyncio.Semaphore(8)

    async def make(number: int) -> None:
        # Bytes of its own, for what was probed once is not probed again.
        clip = write_clip(tmp_path / f"{count}-{number}.mp4", numbered(9, clip=number, first=count))
        archive = write_zip(tmp_path / f"{count}-{number}.zip", {clip.name: clip})
        async with eight, asyncio.timeout(60):
            name = await ingest(clients, archive)
        assert (await clients.ingest.get_dataset(name)).clip_count == 1

    job = await submit(clients, clips_zip, number_of_steps=2000)
    watchers = [asyncio.create_task(watched(lambda: clients.train.watch_job(job.name))) for _ in range(8)]
    await asyncio.gather(*(make(number) for number in range(count)))
    assert not any(watcher.done() for watcher in watchers)
    await clients.train.cancel_job(job.name)
    assert len({tuple(sequences) for sequences in await asyncio.gather(*watchers)}) == 1
    logs = {path.name: path.read_text() for path in (suite.state_dir / "logs").iterdir()}
    assert logs and not {name for name, text in logs.items() if "fork" in text}
