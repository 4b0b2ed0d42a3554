"""Several workers at one job, and several jobs at one worker; whatever is killed or stopped in between."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests import processes
from tests.services.train.running import running

STEPS = 100


async def test_two_workers_train_what_one_trains_though_one_is_killed(
    tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster, tmp_path: Path
) -> None:
    # One clip a step, of which each has half of the tokens.
    options = {"checkpoint_interval": 20, "holdout_fraction": 0.25}
    async with running(tmp_path, tiny_model, object_store, ray_cluster, cpu_trainers=2) as trainer:
        samples = await trainer.samples(4)
        alone = await trainer.start(samples, options)
        await trainer.ended(alone)
        both = await trainer.start(samples, options | {"gpu_count": 2})
        await trainer.reached(both, 25)
        actors = processes.find(processes.TRAIN_ACTOR)
        assert len(actors) == 2
        processes.kill(actors[1])
        assert (await trainer.ended(both)).lifecycle.state == State.STATE_SUCCEEDED
        assert (await trainer.jobs.get(both)).training_summary.gpus_per_clip == 2
        expected, found = [await trainer.metrics(job, tmp_path) for job in (alone, both)]
    assert [row["step"] for row in found] == list(range(1, STEPS + 1))
    for name in ("loss", "held_out_loss"):
        assert [row[name] for row in found if row[name]] == pytest.approx(
            [row[name] for row in expected if row[name]], rel=1e-4
        )


async def test_three_jobs_at_once_run_in_order_though_the_service_is_stopped(
    tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster, tmp_path: Path
) -> None:
    options = {"checkpoint_interval": 10}
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as first:
        samples = await first.samples(4)
        # The second job's training set is another.
        jobs = [await first.start(chosen, options) for chosen in (samples, samples[:2], samples)]
        await first.reached(jobs[0], 30)
    await processes.none_left(processes.TRAIN_ACTOR)
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as second:
        second.prepared |= first.prepared
        await second.work.resume()
        states = [(await second.ended(job)).lifecycle.state for job in jobs]
        assert states == [State.STATE_SUCCEEDED] * 3
        events = [await second.events(job) for job in jobs]
        spans = [trained_when(seen) for seen in events]
        assert all(ended < begun for (_, ended), (begun, _) in itertools.pairwise(spans)), spans
        # The one that trains is in line no more.
        assert max(positions(events[2])) >= 1 and positions(events[2])[-1] == 0
        loras = [await second.lora(job) for job in jobs]
    assert loras[0] == loras[2] != loras[1]


def trained_when(events: Sequence[Event]) -> tuple[int, int]:
    """Nanoseconds of a job's first and last step that were told."""
    times = [event.time.ToNanoseconds() for event in events if event.HasField("train_metrics")]
    return times[0], times[-1]


def positions(events: Sequence[Event]) -> list[int]:
    """Counts of jobs ahead, each time that one was announced."""
    return [event.queue_position.ahead for event in events if event.HasField("queue_position")]
