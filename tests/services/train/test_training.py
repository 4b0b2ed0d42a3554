"""A job's second half with real actors: what it leaves, what ends it, and what does not."""

import asyncio
import contextlib
import json
import statistics
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.preprocess_pb2 import Sample
from ltxtrain.v1.train_pb2 import (
    CheckpointJobRequest,
    ContinueFrom,
    CreateJobRequest,
    DeleteJobRequest,
    RetryJobRequest,
)
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.cluster import Cluster, Placement
from ltxtrain_services.runtime.objects import StoreAddress
from ltxtrain_services.train.actors import Stored, TrainTask
from ltxtrain_services.train.training import Training
from ltxtrain_trainer.errors import DeviceMemoryExhausted, PeerLost
from ltxtrain_trainer.plan import JobPlan
from ltxtrain_trainer.seeds import epoch_order
from tests import processes
from tests.services.train.running import COMPARED, Trainer, TrainServiceAlone, reason, reason_of, running, steps_of

STEPS = 100


async def test_events_and_file_agree_on_every_step(trainer: Trainer, undisturbed: str, tmp_path: Path) -> None:
    rows = await trainer.metrics(undisturbed, tmp_path)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    events = await trainer.events(undisturbed)
    known = 0
    for event in (event for event in events if event.HasField("train_metrics")):
        step = event.train_metrics.step
        mean = statistics.fmean(row["loss"] for row in rows[known:step])
        assert event.train_metrics.loss == pytest.approx(mean)
        known = step
    assert known == STEPS
    assert [event.train_metrics.held_out_loss for event in events if event.train_metrics.HasField("held_out_loss")] == [
        rows[-1]["held_out_loss"]
    ]


async def test_the_last_state_of_a_job_is_kept_and_counted(trainer: Trainer, undisturbed: str) -> None:
    found = await trainer.artifacts(undisturbed)
    assert [item.step for item in found.values() if item.kind == Artifact.KIND_CHECKPOINT] == [STEPS]
    stored = {item.key: item.size_bytes for item in await trainer.runtime.objects.list_prefix(f"{undisturbed}/")}
    assert [key for key in stored if "/checkpoint-" in key] == [f"{undisturbed}/checkpoint-{STEPS:06}.safetensors"]
    assert (await trainer.jobs.get(undisturbed)).stored_bytes == sum(stored.values()) > 0


async def papers(trainer: Trainer, job: str) -> tuple[dict[str, Any], str]:
    """config.json and job.html of a job that has ended."""
    found = await trainer.artifacts(job)
    config, page = [
        (await trainer.runtime.objects.get_bytes(found[name].blob.key)).decode() for name in ("config.json", "job.html")
    ]
    return json.loads(config), page


async def test_a_killed_actor_changes_no_byte(
    trainer: Trainer, samples: Sequence[Sample], undisturbed: str, tmp_path: Path
) -> None:
    job = await trainer.start(samples, COMPARED)
    for step in (13, 47):
        await trainer.reached(job, step)
        [actor] = processes.find(processes.TRAIN_ACTOR)
        processes.kill(actor)
        await processes.gone(actor)
    assert (await trainer.ended(job)).lifecycle.state == State.STATE_SUCCEEDED
    assert await trainer.lora(job) == await trainer.lora(undisturbed)
    assert [row["step"] for row in await trainer.metrics(job, tmp_path)] == list(range(1, STEPS + 1))
    steps = steps_of(await trainer.events(job))
    assert steps == sorted(set(steps)) and steps[-1] == STEPS


async def test_a_service_that_is_stopped_goes_on_where_it_was_and_does_what_was_asked(
    tiny_model: Path,
    object_store: StoreAddress,
    ray_cluster: Cluster,
    samples: Sequence[Sample],
    trainer: Trainer,
    undisturbed: str,
    tmp_path: Path,
) -> None:
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as first:
        job = await first.start(samples, COMPARED)
        await first.reached(job, 25)
    await processes.none_left(processes.TRAIN_ACTOR)
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as second:
        second.prepared |= first.prepared
        began = (await second.jobs.get(job)).checkpoint_step
        assert began >= 20
        caller.set("me")
        service = TrainServiceAlone(second)
        # Nobody trains it now; asked twice, done once.
        for _ in range(2):
            asked = await service.CheckpointJob(CheckpointJobRequest(name=job), None)
            assert asked.job.checkpoint_requested
        await second.work.resume()
        ended = await second.ended(job)
        assert ended.lifecycle.state == State.STATE_SUCCEEDED and not ended.checkpoint_requested
        [kept] = [
            item
            for item in (await second.artifacts(job)).values()
            if item.requested and item.HasField("step") and item.kind == Artifact.KIND_LORA
        ]
        assert kept.step == began + 1 and await second.runtime.objects.exists(kept.blob.key)
        assert await second.lora(job) == await trainer.lora(undisturbed)


async def test_a_sample_that_is_no_number_ends_the_job_as_diverged(trainer: Trainer) -> None:
    # The third step's.
    broken = epoch_order(42, 0, 3)[2]
    job = await trainer.start(await trainer.samples(3, broken=broken), {"checkpoint_interval": 1})
    ended = await trainer.ended(job)
    assert reason(ended) == (
        "TRAINING_DIVERGED",
        {"step": "3", "checkpointStep": "2", "lora": f"{job}/artifacts/lora-000002.safetensors"},
    )
    assert ended.billable_units == 0
    lora = (await trainer.artifacts(job))["lora-000002.safetensors"]
    assert await trainer.runtime.objects.exists(lora.blob.key)
    config, page = await papers(trainer, job)
    assert config["state"] == "failed" and ">failed<" in page
    assert (await trainer.jobs.get(job)).output.lora_file == lora.name


async def test_an_actor_that_dies_again_and_again_ends_the_job(trainer: Trainer, samples: Sequence[Sample]) -> None:
    job = await trainer.start(samples)

    async def kill_all() -> None:
        while True:
            for actor in processes.find(processes.TRAIN_ACTOR):
                with contextlib.suppress(ProcessLookupError):
                    processes.kill(actor)
            await asyncio.sleep(0.05)

    killing = asyncio.create_task(kill_all())
    ended = await trainer.ended(job)
    killing.cancel()
    assert reason(ended) == ("WORKER_LOST", {"step": "0", "losses": "5"})


async def test_a_cancelled_training_keeps_its_step_and_others_go_on_from_it(
    trainer: Trainer, samples: Sequence[Sample], undisturbed: str, tmp_path: Path
) -> None:
    """Cancelled, continued to another number of steps, cancelled again, retried: as if nothing had happened."""
    caller.set("me")
    service = TrainServiceAlone(trainer)
    job = await trainer.start(samples, COMPARED | {"checkpoint_interval": 1000}, number_of_steps=150)
    await trainer.reached(job, 7)
    await trainer.work.cancel(job, "me")
    ended = await trainer.ended(job)
    assert ended.lifecycle.state == State.STATE_CANCELLED
    assert ended.billable_units == 0 and not ended.HasField("price")
    found = await trainer.artifacts(job)
    stopped = ended.checkpoint_step
    assert 7 <= stopped < 100
    assert {name for name in found if f"{stopped:06}" in name} == {
        f"{kind}-{stopped:06}.{suffix}"
        for kind, suffix in (("checkpoint", "safetensors"), ("lora", "safetensors"), ("metrics", "parquet"))
    }
    assert ended.output.lora_file == f"{job}/artifacts/lora-{stopped:06}.safetensors"
    config, page = await papers(trainer, job)
    assert ended.output.config_file == f"{job}/artifacts/config.json"
    assert config["state"] == "cancelled" and config["billing"]["billable_units"] == 0
    assert config["audit"]["modules"] > 0 and config["manifest"]["device"]
    assert ">cancelled<" in page and f"{stopped} of 150" in page
    events = await trainer.events(job)
    cancelled_at = [event.lifecycle.state for event in events].index(State.STATE_CANCELLING)
    assert max(steps_of(events)) == stopped
    assert not any(event.HasField("train_metrics") for event in events[cancelled_at + 4 :])
    await processes.none_left(processes.TRAIN_ACTOR)

    request = CreateJobRequest(continue_from=ContinueFrom(source=job), options={"checkpoint_interval": 1000})
    request.spec.extend_prefix.number_of_steps = STEPS
    more = (await service.CreateJob(request, None)).job
    assert (more.continue_from.step, more.effective_spec.extend_prefix.rank, more.options.seed) == (stopped, 8, 42)
    await trainer.reached(more.name, stopped + 5)
    await trainer.work.cancel(more.name, "me")
    last = (await trainer.ended(more.name)).checkpoint_step
    assert last >= stopped + 5
    assert steps_of(await trainer.events(more.name))[0] > stopped
    # What it goes on from is its own from then on.
    await service.DeleteJob(DeleteJobRequest(name=job), None)

    retried = (await service.RetryJob(RetryJobRequest(name=more.name), None)).job
    assert (await service.RetryJob(RetryJobRequest(name=more.name), None)).job.name == retried.name
    assert (retried.continue_from.source, retried.continue_from.step) == (more.name, last)
    ended = await trainer.ended(retried.name)
    assert ended.lifecycle.state == State.STATE_SUCCEEDED and ended.billable_units == STEPS
    assert await trainer.lora(retried.name) == await trainer.lora(undisturbed)
    rows = await trainer.metrics(retried.name, tmp_path)
    expected = await trainer.metrics(undisturbed, tmp_path)
    assert [(row["step"], row["loss"], row["held_out_loss"]) for row in rows] == [
        (row["step"], row["loss"], row["held_out_loss"]) for row in expected
    ]


async def test_an_unsound_lora_is_not_given_back(trainer: Trainer, samples: Sequence[Sample]) -> None:
    job = await trainer.start(samples, {"checkpoint_interval": 5}, learning_rate=1.0)
    await trainer.reached(job, 6)
    await trainer.work.cancel(job, "me")
    ended = await trainer.ended(job)
    assert ended.lifecycle.state == State.STATE_CANCELLED and not ended.output.lora_file
    warnings = [event.warning for event in await trainer.events(job) if event.HasField("warning")]
    assert [reason_of(warning)[0] for warning in warnings] == ["AUDIT_OUT_OF_BOUNDS"]


async def test_a_job_that_waits_is_cancelled_at_once(trainer: Trainer, samples: Sequence[Sample]) -> None:
    ahead = await trainer.start(samples)
    await trainer.reached(ahead, 1)
    waiting = await trainer.start(samples)
    async for _, event in trainer.jobs.log.follow(waiting, 0):
        if event is not None and event.HasField("queue_position"):
            break
    await trainer.work.cancel(waiting, "me")
    ended = await trainer.ended(waiting)
    assert ended.lifecycle.state == State.STATE_CANCELLED
    assert not ended.output.lora_file and not ended.HasField("queue_position")
    assert (await trainer.jobs.get(ahead)).lifecycle.state == State.STATE_RUNNING
    await trainer.work.cancel(ahead, "me")
    await trainer.ended(ahead)


async def test_a_full_device_is_tried_once_more_from_the_checkpoint_with_the_plans_next_rung(
    trainer: Trainer, samples: Sequence[Sample], undisturbed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[int, bool]] = []
    reports = Training._reports

    async def full_at_step_20(
        training: Training, task: TrainTask, placement: Placement | None
    ) -> AsyncGenerator[Stored | PeerLost, None]:
        assert isinstance(task.plan, JobPlan)
        started.append((task.plan.streamed_blocks, task.plan.checkpoint is not None))
        async with contextlib.aclosing(reports(training, task, placement)) as coming:
            async for item in coming:
                yield item
                if len(started) == 1 and isinstance(item, Stored) and getattr(item.report, "step", 0) == 20:
                    raise DeviceMemoryExhausted("The device is full.", next_streamed_blocks=3)

    monkeypatch.setattr(Training, "_reports", full_at_step_20)
    job = await trainer.start(samples, COMPARED)
    assert (await trainer.ended(job)).lifecycle.state == State.STATE_SUCCEEDED
    assert started == [(0, False), (3, True)]
    assert await trainer.lora(job) == await trainer.lora(undisturbed), "blocks in host memory change no byte"

    async def always_full(
        training: Training, task: TrainTask, placement: Placement | None
    ) -> AsyncGenerator[Stored | PeerLost, None]:
        started.append((task.plan.streamed_blocks, False))
        raise DeviceMemoryExhausted("The device is full.", next_streamed_blocks=3)
        yield

    del started[:]
    monkeypatch.setattr(Training, "_reports", always_full)
    job = await trainer.start(samples)
    assert reason(await trainer.ended(job))[0] == "GPU_OUT_OF_MEMORY"
    assert [blocks for blocks, _ in started] == [0, 3], "once, not for ever"


async def test_what_one_of_two_workers_cannot_do_ends_the_job(
    tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster, tmp_path: Path
) -> None:
    async with running(tmp_path, tiny_model, object_store, ray_cluster, cpu_trainers=2) as trainer:
        # The second clip of the first step: the second worker's.
        silent = epoch_order(42, 0, 3)[1]
        samples = await trainer.samples(3, silent=silent)
        job = await trainer.start(samples, {"batch_size": 2, "gpu_count": 2}, with_audio=True)
        ended = await trainer.ended(job)
        assert reason(ended)[0] == "RESOURCE_NOT_READY" and f"Sample {silent} " in ended.lifecycle.error.message
