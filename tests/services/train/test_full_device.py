"""A device that refuses memory, through the service: whatever was being done, the job says so and what would help.

The actor's class runs in this process, where the device can be made to refuse; all else is the service's own.
"""

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ltxtrain.v1.extend_prefix_pb2 import ValidationInput
from ltxtrain.v1.preprocess_pb2 import Sample
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.runtime.cluster import Placement
from ltxtrain_services.runtime.service import store_address
from ltxtrain_services.train.actors import Stored, TrainActor, TrainTask
from ltxtrain_services.train.training import Training
from ltxtrain_trainer.errors import PeerLost
from ltxtrain_trainer.media.video_file import write_lossless
from ltxtrain_trainer.model.transformer import VelocityModel
from tests.services.train.running import Trainer, reason

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reports(
        training: Training, task: TrainTask, placement: Placement | None
    ) -> AsyncGenerator[Stored | PeerLost, None]:
        behind: Any = TrainActor.__ray_metadata__.modified_class  # type: ignore[attr-defined] # ray.remote adds it
        actor = behind(store_address(training._runtime.settings), 0, 1)
        coming = actor.run(task, "")
        # In one context throughout, as in a process of its own; and ended before whoever stops listening goes on.
        context, loop = contextvars.copy_context(), asyncio.get_running_loop()
        asked = None
        try:
            while True:
                asked = loop.run_in_executor(None, lambda: context.run(next, coming, None))
                if (item := await asyncio.shield(asked)) is None:
                    return
                yield item
        finally:
            await asyncio.wait([asked] if asked else [])
            await loop.run_in_executor(None, context.run, coming.close)

    monkeypatch.setattr(Training, "_reports", reports)


def full(*arguments: Any, **options: Any) -> None:
    raise FULL


def full_when(refuses: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the device refuse the model's n-th call, from 1, where `refuses` says so."""
    real, calls = VelocityModel.__call__, 0

    def call(model: VelocityModel, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if refuses(calls):
            raise FULL
        return real(model, *arguments, **options)

    monkeypatch.setattr(VelocityModel, "__call__", call)


@pytest.mark.parametrize(
    ("call", "doing", "steps"),
    [(0, "loading the base model", 0), (1, "a training step on clips of 12 tokens", 0), (3, "a training step on", 1)],
)
async def test_a_training_that_finds_no_memory_ends_and_names_the_setting(
    call: int, doing: str, steps: int, trainer: Trainer, samples: Sequence[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    if call:
        full_when(lambda number: number == call, monkeypatch)
    else:
        monkeypatch.setattr("ltxtrain_trainer.model.loading._fill", full)
    job = await trainer.start(samples)
    ended = await trainer.ended(job)
    assert reason(ended)[0] == "GPU_OUT_OF_MEMORY"
    assert f"too little memory for {doing}" in ended.lifecycle.error.message
    assert "; set base_precision to bf16" in ended.lifecycle.error.message
    assert ended.billable_units == 0
    told = [event.train_metrics.step for event in await trainer.events(job) if event.HasField("train_metrics")]
    assert max(told, default=0) == steps


async def test_previews_that_find_no_memory_are_warned_of_and_the_training_goes_on(
    trainer: Trainer, samples: Sequence[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_when(lambda number: not torch.is_grad_enabled(), monkeypatch)
    write_lossless(tmp_path / "prefix.mkv", list(np.zeros((9, 64, 64, 3), np.uint8)), 24.0)
    frames = await trainer.runtime.objects.put_content(
        "preprocess", (tmp_path / "prefix.mkv").read_bytes(), "video/mkv"
    )
    opening = Sample()
    opening.CopyFrom(samples[0])
    opening.name, opening.validation_index = "trainingSets/1/samples/9", 0
    opening.prefix_frames.key, opening.prefix_frames.sha256 = frames.key, frames.sha256
    validation = [ValidationInput(video_url="https://example.com/opening.mp4", prompt="a disc")]
    job = await trainer.start([*samples, opening], {"preview_interval": 2}, validation=validation)
    trainer.prepared[job].training_set.negative_prompt.CopyFrom(samples[0].prompt)
    warnings: list[str] = []
    async for _, event in trainer.jobs.log.follow(job, 0):
        if event is not None and event.HasField("warning"):
            warnings.append(event.warning.message)
        if event is not None and event.train_metrics.step > 2:
            break
    assert warnings[0].startswith("The preview of step 2 failed; the training continues: ")
    assert "too little memory for sampling it; lower validation_resolution" in warnings[0]
    await trainer.work.cancel(job, "me")
    assert (await trainer.ended(job)).lifecycle.state == State.STATE_CANCELLED
