"""Worth of the cache: the same clips preprocessed twice, through running services."""

import asyncio
import statistics
import time
from pathlib import Path

import av
import numpy as np
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.channel import connect
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient

from ltxtrain_services.local.up import SERVICES, Suite
from ltxtrain_trainer.model.tiny import build_tiny_model

WIDTH, HEIGHT, FRAMES = 512, 288, 17


def measure_rerun(folder: Path, *, rounds: int, clips: int) -> dict[str, float]:
    """The key of the cache; prints its table. Every round has clips and captions that no other has."""
    build_tiny_model(folder / "tiny")
    first, again = asyncio.run(_run(folder, rounds, clips))
    print(f"{clips} clips to {WIDTH}x{HEIGHT}, {FRAMES} frames, with the tiny model")
    for name, values in (("first run", first), ("second run", again)):
        print(f"  {name:16s} {statistics.median(values):7.2f} s           {min(values):.2f}-{max(values):.2f} s")
    return {"cached_rerun": statistics.median(first) / statistics.median(again)}


async def _run(folder: Path, rounds: int, clips: int) -> tuple[list[float], list[float]]:
    first: list[float] = []
    again: list[float] = []
    async with (
        Suite(folder / "suite", model=str(folder / "tiny"), ports=dict.fromkeys(SERVICES, 0)) as suite,
        connect(suite.ingest_address) as ingest,
        connect(suite.preprocess_address) as preprocess,
    ):
        for turn in range(rounds):
            dataset = await _ingested(IngestClient(ingest), [_clip(folder, turn, index) for index in range(clips)])
            for seconds in (first, again):
                seconds.append(await _preprocessed(PreprocessClient(preprocess), dataset, f"round {turn}"))
    return first, again


async def _ingested(client: IngestClient, clips: list[Path]) -> str:
    uploads = [await client.upload(clip) for clip in clips]
    dataset = await client.create_dataset(videos=[upload.url for upload in uploads])
    async for _ in client.watch_dataset(dataset.name):
        pass
    return dataset.name


async def _preprocessed(client: PreprocessClient, dataset: str, trigger_phrase: str) -> float:
    """Seconds from the request to the last event."""
    shape = Geometry(width=WIDTH, height=HEIGHT, frame_count=FRAMES, frame_rate=24)
    settings = PreprocessSettings(training=shape, conditioning_frames=9, trigger_phrase=trigger_phrase)
    begun = time.perf_counter()
    made = await client.create_training_set(dataset, settings)
    async for _ in client.watch_training_set(made.name):
        pass
    seconds = time.perf_counter() - begun
    ended = await client.get_training_set(made.name)
    assert ended.lifecycle.state == State.STATE_SUCCEEDED, ended.lifecycle.error
    return seconds


def _clip(folder: Path, turn: int, index: int) -> Path:
    """Noise that moves, another in every clip."""
    path = folder / f"{turn}-{index}.mp4"
    noise = np.random.default_rng([turn, index]).integers(0, 255, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    picture = noise.repeat(16, axis=0).repeat(16, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, 4 * number, axis=1)), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
