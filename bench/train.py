"""Cost of training beyond its forward and backward passes, and how soon a killed training resumes.

    bench/train.py [--quick]

The limit is a bare loop of forward pass, backward pass and AdamW over the same tensors on the same small model, all on
one torch thread. Each side runs in a process of its own; blocks of steps alternate, so that load from elsewhere meets
both. The last line is one JSON object:

    overhead_loop      seconds a step of ltxtrain_trainer.training.loop.train over those of the bare loop, minus 1
    overhead_service   the same of a job in a running suite: Ray, events, metrics, and a checkpoint every 50 steps
    peak_mb_ratio      peak memory of the process of the first over that of the bare loop
    overhead_slow_store  seconds of the steps of one training, a checkpoint of which is on its way to a slow store for
                       half of the time, over what they would be at the pace of the other half, minus 1
    resume_seconds     from kill -9 of the training actor to the next step that it has done

With --quick the job makes a checkpoint every 20 steps, so that one is among those that are measured.
"""

import argparse
import asyncio
import hashlib
import json
import statistics
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.common import loops
from bench.common.service import measure_service
from bench.common.worker import Shape, Worker
from ltxtrain_services.local.up import SERVICES, Suite
from ltxtrain_services.runtime.objects import Objects, StoreAddress, StoredBlob
from ltxtrain_services.train.actors import TrainActor, TrainTask
from ltxtrain_trainer.plan import JobPlan
from ltxtrain_trainer.reports import Step

WAYS = ("product", "bare")
# One clip of 89 frames at low 16:9.
CLIP = Shape(latents=(12, 9, 16), batch=1)
STEPS_A_BLOCK = 2
# Steps between two checkpoints that go to a slow store.
INTERVAL = 12
NOWHERE = StoreAddress(
    endpoint="127.0.0.1:9",
    public_endpoint="",
    access_key="none",
    secret_key="none",
    secure=False,
    region="none",
    bucket="none",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=Shape.parse, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        loops.serve(getattr(loops, arguments.way)(arguments.model, arguments.shape))
        return
    with tempfile.TemporaryDirectory(prefix="ltxtrain-bench-") as folder:
        keys = asyncio.run(measure(Path(folder), quick=arguments.quick))
    print(json.dumps({key: round(value, 4) for key, value in keys.items()}))


async def measure(folder: Path, *, quick: bool) -> dict[str, float]:
    model = folder / "model"
    model.mkdir()
    building = asyncio.create_task(asyncio.to_thread(build_model, model))
    suite = Suite(
        folder / "suite",
        model=str(model),
        ports=dict.fromkeys(SERVICES, 0),
        num_cpus=2,
        environ={"LTXTRAIN_TORCH_THREADS": "1"},
    )
    async with suite:
        await building
        keys = measure_loop(model, rounds=3 if quick else 21)
        keys |= await asyncio.to_thread(measure_slow_store, model, folder, rounds=3 if quick else 15)
        return keys | await measure_service(suite, folder, model, quick=quick)


def build_model(folder: Path) -> None:
    from ltxtrain_trainer.model.tiny import build_tiny_model

    build_tiny_model(folder)


def measure_loop(model: Path, rounds: int) -> dict[str, float]:
    """The keys that are about the loop alone; prints their table."""
    workers = {way: Worker(way, model, CLIP) for way in WAYS}
    losses = [worker.steps(1).loss for worker in workers.values()]
    assert abs(losses[0] / losses[1] - 1) < 1e-5, f"the two sides do not compute the same: {losses}"
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        # Who goes first alternates too.
        for way in sorted(WAYS, reverse=turn % 2 == 0):
            seconds[way].append(workers[way].steps(STEPS_A_BLOCK).seconds)
    peaks = {way: worker.stop() for way, worker in workers.items()}
    print(f"A clip of {CLIP.tokens} tokens, {rounds} blocks of {STEPS_A_BLOCK} steps on each side, one torch thread")
    for way, values in seconds.items():
        spread = f"{min(values):.3f}-{max(values):.3f} s"
        print(f"  {way:8s} {statistics.median(values):7.4f} s a step   {spread:16s} {peaks[way]:6.0f} MB")
    overhead = statistics.median(seconds["product"]) / statistics.median(seconds["bare"]) - 1
    return {"overhead_loop": overhead, "peak_mb_ratio": peaks["product"] / peaks["bare"]}


class SlowStore(Objects):
    """A store that takes half of the steps between two checkpoints for the files of one. It keeps nothing."""

    def __init__(self) -> None:
        self.taken = threading.Event()

    def put_file(self, key: str, path: Path, content_type: str, *, sha256: str | None = None) -> StoredBlob:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if "checkpoint-" in key:
            self.taken.wait()
        return StoredBlob(key=key, size_bytes=path.stat().st_size, sha256=found, content_type=content_type)


def measure_slow_store(model: Path, folder: Path, rounds: int) -> dict[str, float]:
    """Runs the training actor's own code, in this process, with the store in its place.

    A round is the steps between two checkpoints: first those beside a checkpoint that is on its way, from the copy of
    the training's state on, and then as many alone.
    """
    plan = JobPlan(
        model=str(model),
        revision=None,
        precision="auto",
        settings=replace(
            loops.settings_of(CLIP),
            steps=INTERVAL * (rounds + 1) + 1,
            checkpoint_interval=INTERVAL,
            schedule="constant",
        ),
        trigger_phrase="",
        samples=loops.sample_files(folder, CLIP),
        previews=None,
        identity={},
        work_dir=folder,
    )
    actor: Any = TrainActor.__ray_metadata__.modified_class(NOWHERE, 0, 1)  # type: ignore[attr-defined]
    store = actor._objects = SlowStore()
    seconds: list[float] = []
    before = time.perf_counter()
    for stored in actor.run(TrainTask(job="jobs/slow", plan=plan, files={}, worker_count=1, trace={}), ""):
        if isinstance(stored.report, Step):
            now = time.perf_counter()
            seconds.append(now - before)
            before = now
            if stored.report.step % INTERVAL == INTERVAL // 2:
                store.taken.set()
            # Not for the last checkpoint: the end of the training waits for it.
            elif stored.report.step % INTERVAL == 0 and stored.report.step + INTERVAL // 2 <= plan.settings.steps:
                store.taken.clear()
    # Of each round by itself: load from elsewhere comes and goes. The first interval warms up.
    half, ratios = INTERVAL // 2, []
    for start in range(INTERVAL, INTERVAL * (rounds + 1), INTERVAL):
        beside, alone = seconds[start : start + half], seconds[start + half : start + INTERVAL]
        ratios.append((sum(beside) + sum(alone)) / (2 * sum(alone)) - 1)
    spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
    print(f"A checkpoint on its way during {half} of {INTERVAL} steps, {rounds} times: {spread}")
    return {"overhead_slow_store": statistics.median(ratios)}


if __name__ == "__main__":
    main()
