"""The Train service's own calls, on a real database."""

from pathlib import Path

import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import CreateJobRequest, DeleteJobRequest, Job, JobOptions
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, NotReady
from ltxtrain_services.runtime.objects import ObjectStoreUnavailable, StoreAddress
from ltxtrain_services.train.service import TrainService
from tests.services.train.running import Trainer, running


@pytest.fixture
def as_me() -> None:
    caller.set("me")


async def ended_job(trainer: Trainer, name: str) -> None:
    await trainer.jobs.create(Job(name=name), owner="me", request_id="", digest=b"")
    await trainer.runtime.objects.put_bytes(f"{name}/lora.safetensors", b"weights", "application/octet-stream")
    async with trainer.jobs.edit(name) as edit:
        edit.enter(State.STATE_SUCCEEDED)


async def test_deleting_after_an_outage_of_the_store_frees_the_bytes(
    tiny_model: Path,
    object_store: StoreAddress,
    ray_cluster: Cluster,
    tmp_path: Path,
    as_me: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as trainer:
        service, objects = TrainService(trainer.runtime), trainer.runtime.objects
        await ended_job(trainer, "jobs/old")
        request = DeleteJobRequest(name="jobs/old")

        async def unavailable(prefix: str) -> int:
            raise ObjectStoreUnavailable("no answer")

        with monkeypatch.context() as outage:
            outage.setattr(objects, "delete_prefix", unavailable)
            with pytest.raises(ObjectStoreUnavailable):
                await service.DeleteJob(request, None)
        assert await trainer.jobs.get("jobs/old"), "a repeat must find the job"
        await service.DeleteJob(request, None)
        assert await objects.list_prefix("jobs/old/") == []
        with pytest.raises(NotFound):
            await trainer.jobs.get("jobs/old")


async def test_a_job_that_runs_keeps_its_bytes(
    tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster, tmp_path: Path, as_me: None
) -> None:
    async with running(tmp_path, tiny_model, object_store, ray_cluster) as trainer:
        await trainer.jobs.create(Job(name="jobs/new"), owner="me", request_id="", digest=b"")
        await trainer.runtime.objects.put_bytes("jobs/new/lora.safetensors", b"weights", "application/octet-stream")
        with pytest.raises(NotReady):
            await TrainService(trainer.runtime).DeleteJob(DeleteJobRequest(name="jobs/new"), None)
        assert await trainer.runtime.objects.exists("jobs/new/lora.safetensors")


@pytest.mark.parametrize(
    ("settings", "gpu_count", "says"),
    [
        ({}, 1, ""),
        ({}, 4, "it has 0."),
        ({"cpu_trainers": 4}, 4, ""),
        ({"max_gpus": 4}, 4, ""),
        ({"max_gpus": 4}, 8, "it has 0, and 4 at most."),
        ({"max_gpus": 8, "max_owner_gpus": 4}, 8, "more than the 4"),
    ],
)
async def test_more_gpus_than_there_can_be_are_refused_at_submit(
    tiny_model: Path,
    object_store: StoreAddress,
    ray_cluster: Cluster,
    tmp_path: Path,
    as_me: None,
    settings: dict[str, int],
    gpu_count: int,
    says: str,
) -> None:
    async with running(tmp_path, tiny_model, object_store, ray_cluster, **settings) as trainer:
        service = TrainService(trainer.runtime)
        spec = ExtendPrefixSpec(training_data_url="https://example.com/clips.zip")
        options = JobOptions(batch_size=8, gpu_count=gpu_count)
        request = CreateJobRequest(spec=spec, options=options, validate_only=True)
        if not says:
            await service.CreateJob(request, None)
            return
        with pytest.raises(InvalidSpec) as refused:
            await service.CreateJob(request, None)
        (violation,) = refused.value.violations
        assert violation.field == "options.gpu_count" and says in violation.description
