"""Jobs on a dataset that is there, and their results, shared by the tests of training."""

import json
import uuid
from pathlib import Path
from typing import Any

import pyarrow.parquet
from ltxtrain.v1.train_pb2 import JobOptions
from ltxtrain_client.sheet import parse_sheet

from ltxtrain_services.local.up import Suite
from ltxtrain_services.runtime.objects import Objects
from tests.suite.conftest import SHEET, Clients, files_of, finished

# Options of the job that others are compared with: two clips a step, so that two workers can share them.
COMPARED: dict[str, Any] = {
    "batch_size": 2,
    "gpu_count": 1,
    "checkpoint_interval": 20,
    "holdout_fraction": 0.25,
}


async def start(clients: Clients, dataset: str, options: dict[str, Any] | None = None, **sheet: Any) -> str:
    """A job of SHEET on an ingested dataset, without previews unless asked for; its name."""
    spec = parse_sheet(json.dumps(SHEET | {"dataset": dataset} | sheet), []).spec
    chosen = JobOptions(**{"preview_interval": 0} | (options or {}))
    return (await clients.train.submit(spec, chosen, request_id=str(uuid.uuid4()))).name


async def reached(clients: Clients, job: str, step: int) -> None:
    """Return when an event says that a step was done."""
    async for _, event in clients.train.watch_job(job):
        if event.train_metrics.step >= step:
            return
    raise AssertionError(f"{job} ended before step {step}: {await clients.train.get_job(job)}")


async def lora(clients: Clients, job: str, folder: Path) -> bytes:
    """LoRA of a job that has succeeded."""
    ended = await finished(clients, job)
    path = await clients.train.download(ended.output.lora_file, folder / f"{uuid.uuid4()}.safetensors")
    return path.read_bytes()


async def metrics(clients: Clients, job: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of the metrics file of a job that has succeeded."""
    name = (await files_of(clients, job))["metrics.parquet"].name
    path = await clients.train.download(name, folder / f"{uuid.uuid4()}.parquet")
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


async def assert_each_step_once(clients: Clients, job: str, steps: int, folder: Path) -> None:
    """In the file, and in the events, of which each is the mean since the one before."""
    rows = await metrics(clients, job, folder)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    known = 0
    async for _, event in clients.train.watch_job(job):
        if event.HasField("train_metrics"):
            told = event.train_metrics
            assert told.step > known
            mean = sum(row["loss"] for row in rows[known : told.step]) / (told.step - known)
            assert abs(told.loss - mean) < 1e-9 * mean
            known = told.step
    assert known == steps


async def loss_on_fixed_noise(
    suite: Suite, clients: Clients, model: Path, job: str, folder: Path, *, with_lora: bool = True
) -> float:
    """Mean loss over the job's training samples at three noise levels, with its LoRA as diffusers loads it."""
    import torch
    from diffusers import LTX2ConditionPipeline

    from ltxtrain_trainer.data.encoded import load_clip, load_prompt
    from ltxtrain_trainer.model.folder import resolve_model
    from ltxtrain_trainer.model.loading import load_transformer
    from ltxtrain_trainer.model.precision import Precision
    from ltxtrain_trainer.model.transformer import VelocityModel
    from ltxtrain_trainer.training.losses import clip_loss, fixed_draw

    ended = await finished(clients, job)
    transformer = load_transformer(resolve_model(str(model)), "cpu", Precision.FP32)
    if with_lora:
        path = await clients.train.download(ended.output.lora_file, folder / f"{uuid.uuid4()}.safetensors")
        state = LTX2ConditionPipeline.lora_state_dict(str(path))
        LTX2ConditionPipeline.load_lora_into_transformer(state, transformer, adapter_name="default")
    objects = Objects(suite.store.address)
    losses = []
    samples = [item async for item in clients.preprocess.list_samples(ended.training_set)]
    with torch.no_grad():
        for number, sample in enumerate(item for item in samples if not item.HasField("validation_index")):
            clip = load_clip(objects.get_bytes(sample.latents.key))
            prompt = load_prompt(objects.get_bytes(sample.prompt.key))
            for level in (0.25, 0.5, 0.75):
                draw = fixed_draw(clip, level, number)
                losses.append(clip_loss(VelocityModel(transformer), clip, prompt, draw, 9).total.item())
    return sum(losses) / len(losses)
