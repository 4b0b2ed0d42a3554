"""A job in a running suite, step for step beside the bare loop; and how soon it goes on after a kill."""

import os
import signal
import statistics
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain.v1.work_pb2 import Stage
from ltxtrain_client.channel import connect
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.train import TrainClient

from bench.common.worker import Shape, Worker
from ltxtrain_services.local.demo_data import make_validation_clip
from ltxtrain_services.local.up import Suite
from tests import processes

# 17 frames at low 16:9, four clips a step.
CLIPS = Shape(latents=(3, 9, 16), batch=4)
FRAMES = 17
# Steps of the job, which is cancelled when everything is measured.
STEPS = 2_000
# Between two pauses of the job; the bare loop runs in the pauses.
STEPS_BETWEEN, BARE_STEPS = 5, 1


async def measure_service(suite: Suite, folder: Path, model: Path, *, quick: bool) -> dict[str, float]:
    """The keys that are about a job in the suite; prints their table."""
    interval, checkpoints, kills = (20, 1, 1) if quick else (50, 3, 3)
    bare = Worker("bare", model, CLIPS)
    async with connect(suite.ingest_address) as ingest, connect(suite.train_address) as channel:
        upload = await IngestClient(ingest).upload(make_archive(folder))
        train = TrainClient(channel)
        options = JobOptions(batch_size=CLIPS.batch, checkpoint_interval=interval, preview_interval=0)
        job = (await train.submit(spec(upload.url), options)).name
        service, limit = await alternate(train, job, bare, steps=interval * checkpoints)
        resumed = [await resume_seconds(train, job) for _ in range(kills)]
        await train.cancel_job(job)
    bare.stop()
    print(f"{CLIPS.batch} clips of {CLIPS.tokens} tokens a step, a checkpoint every {interval} steps, one torch thread")
    print(f"  service  {service:7.4f} s a step")
    print(f"  bare     {limit:7.4f} s a step")
    print(f"  on again after kill -9: {', '.join(f'{seconds:.1f}' for seconds in resumed)} s")
    return {"overhead_service": service / limit - 1, "resume_seconds": statistics.median(resumed)}


def spec(url: str) -> ExtendPrefixSpec:
    return ExtendPrefixSpec(
        training_data_url=url,
        number_of_steps=STEPS,
        number_of_frames=FRAMES,
        conditioning_frames=9,
        resolution=Resolution.RESOLUTION_LOW,
        aspect_ratio=AspectRatio.ASPECT_RATIO_16_9,
    )


def make_archive(folder: Path) -> Path:
    """A zip of one clip: what it shows does not matter to the time that a step takes."""
    path = folder / "clips.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(make_validation_clip(folder), "clip.mp4")
        archive.writestr("clip.txt", "a green disc drifts over a dark ground")
    return path


async def alternate(train: TrainClient, job: str, bare: Worker, steps: int) -> tuple[float, float]:
    """Seconds a step of the job and of the bare loop, which runs while the job's actor is stopped now and then.

    Means, since every checkpoint counts.
    """
    bare.steps(1)
    limits: list[float] = []
    first = last = 0
    began = ended = paused = 0.0
    async for step, at in steps_done(train, job, 0):
        if not first:
            first = last = step
            began = at
        if step - first >= steps:
            ended, last = at, step
            break
        if step - last >= STEPS_BETWEEN:
            last = step
            [actor] = processes.find(processes.TRAIN_ACTOR)
            stopped = time.monotonic()
            os.kill(actor, signal.SIGSTOP)
            try:
                limits.append(bare.steps(BARE_STEPS).seconds)
            finally:
                os.kill(actor, signal.SIGCONT)
            paused += time.monotonic() - stopped
    return (ended - began - paused) / (last - first), statistics.fmean(limits)


async def resume_seconds(train: TrainClient, job: str) -> float:
    """From kill -9 of the actor to the next step that is done."""
    [actor] = processes.find(processes.TRAIN_ACTOR)
    after = (await train.get_job(job)).lifecycle.last_sequence
    killed = time.time()
    processes.kill(actor)
    async for _, at in steps_done(train, job, after):
        # Work of the one before may still be in flight.
        if set(processes.find(processes.TRAIN_ACTOR)) - {actor}:
            return at - killed
    raise AssertionError("steps_done does not end")


async def steps_done(train: TrainClient, job: str, after: int) -> AsyncIterator[tuple[int, float]]:
    """The steps that events tell of, and when they were written (seconds since 1970)."""
    async for _, event in train.watch_job(job, after):
        if event.stage == Stage.STAGE_TRAIN and event.HasField("progress"):
            yield event.progress.completed, event.time.ToNanoseconds() / 1e9
    raise RuntimeError(f"{job} ended: {(await train.get_job(job)).lifecycle.error}")
