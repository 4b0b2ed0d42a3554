"""What training costs beyond its forward and backward passes, and how soon a killed training goes on.

    bench/train.py [--quick]

The limit is a bare loop of forward pass, backward pass and AdamW over the same tensors on the same small model, all on
one torch thread. Each side runs in a process of its own; blocks of steps alternate, so that load from elsewhere meets
both. The last line is one JSON object:

    overhead_loop      seconds a step of trainer.loop.train over those of the bare loop, minus 1
    overhead_service   the same of a job in a running suite: Ray, events, metrics, and a checkpoint every 50 steps
    peak_mb_ratio      peak memory of the process of the first over that of the bare loop
    resume_seconds     from kill -9 of the training actor to the next step that it has done
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
from pathlib import Path

from bench.common.loops import WAYS, Shape, Worker, serve
from bench.common.service import measure_service

# One clip of 89 frames at low 16:9.
CLIP = Shape(latents=(12, 9, 16), batch=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within a minute")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--shape", type=Shape.parse, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        serve(WAYS[arguments.way](arguments.model, arguments.shape))
        return
    with tempfile.TemporaryDirectory(prefix="ltxtrain-bench-") as folder:
        model = Path(folder) / "model"
        build_model(model)
        keys = measure_loop(model, rounds=6 if arguments.quick else 21)
        keys |= asyncio.run(measure_service(Path(folder), model, sys.argv[0], quick=arguments.quick))
    print(json.dumps({key: round(value, 4) for key, value in keys.items()}))


def build_model(folder: Path) -> None:
    from trainer.tiny import build_tiny_model

    build_tiny_model(folder)


def measure_loop(model: Path, rounds: int) -> dict[str, float]:
    """The keys that are about the loop alone; prints their table."""
    workers = {way: Worker(sys.argv[0], way, model, CLIP) for way in WAYS}
    first = {way: worker.steps(1) for way, worker in workers.items()}
    losses = [block.loss for block in first.values()]
    assert abs(losses[0] / losses[1] - 1) < 1e-5, f"the two sides do not compute the same: {losses}"
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds):
        # Who goes first alternates too.
        for way in sorted(WAYS, reverse=turn % 2 == 0):
            seconds[way].append(workers[way].steps(2).seconds)
    peaks = {way: worker.stop() for way, worker in workers.items()}
    print(f"A clip of {CLIP.tokens} tokens, {rounds} blocks of 2 steps each, one torch thread")
    for way, values in seconds.items():
        spread = f"{min(values):.3f}-{max(values):.3f} s"
        print(f"  {way:8s} {statistics.median(values):7.4f} s a step   {spread:16s} {peaks[way]:6.0f} MB")
    ratios = [ours / limit for ours, limit in zip(seconds["product"], seconds["bare"], strict=True)]
    return {"overhead_loop": statistics.median(ratios) - 1, "peak_mb_ratio": peaks["product"] / peaks["bare"]}


if __name__ == "__main__":
    main()
