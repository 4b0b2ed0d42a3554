"""The Train service's own calls, on a real database."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.struct_pb2 import Struct
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import (
    CheckpointJobRequest,
    ContinueFrom,
    ContinueMode,
    CreateJobRequest,
    DeleteJobRequest,
    Job,
    JobOptions,
    PreviewJobRequest,
    RetryJobRequest,
)
from ltxtrain.v1.work_pb2 import Event, PreviewMetrics, State

from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, NotReady
from ltxtrain_services.runtime.objects import ObjectStoreUnavailable, StoreAddress
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.artifacts import COLLECTION, INITIAL_LORA, artifacts, drop_states
from ltxtrain_services.train.continuation import take_over
from ltxtrain_services.train.publication import FACTS, MEASURED, measured_key
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
        ({}, 4, "has none, and 1 on CPUs in their place."),
        ({"cpu_trainers": 4}, 4, ""),
        ({"max_gpus": 4}, 4, ""),
        ({"max_gpus": 4}, 8, "it can have 4 at most."),
        ({"max_gpus": 8, "max_owner_gpus": 4}, 8, "may have 4 together"),
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
        spec = TaskSpec(extend_prefix=ExtendPrefixSpec(training_data_url="https://example.com/clips.zip"))
        options = JobOptions(batch_size=8, gpu_count=gpu_count)
        request = CreateJobRequest(spec=spec, options=options, validate_only=True)
        if not says:
            await service.CreateJob(request, None)
            return
        with pytest.raises(InvalidSpec) as refused:
            await service.CreateJob(request, None)
        (violation,) = refused.value.violations
        assert violation.field == "options.gpu_count" and says in violation.description


async def test_a_retry_is_checked_as_a_new_job_is(trainer: Trainer, as_me: None) -> None:
    """For GPUs, which may have gone since, and for where its message is to go."""
    service = TrainService(trainer.runtime)
    old = Job(name="jobs/large", options=JobOptions(batch_size=8, gpu_count=8))
    await trainer.jobs.create(old, owner="me", request_id="", digest=b"")
    async with trainer.jobs.edit(old.name) as edit:
        edit.enter(State.STATE_FAILED)
    with pytest.raises(InvalidSpec) as refused:
        await service.RetryJob(RetryJobRequest(name=old.name, webhook_url="ftp://example.com"), None)
    assert [violation.field for violation in refused.value.violations] == ["options.gpu_count", "webhook_url"]
    unfinished = await trainer.jobs.unfinished()
    assert not [job for job in unfinished if job.continue_from.source == old.name], "nothing is started"


async def job_with_files(trainer: Trainer, job: Job, files: Sequence[Artifact], *, begun: bool = True) -> None:
    """A job that runs, with files in the store whose bytes are their names."""
    await trainer.jobs.create(job, owner="me", request_id="", digest=b"")
    async with trainer.jobs.edit(job.name) as edit:
        edit.enter(State.STATE_RUNNING)
        if begun:
            edit.put_child(FACTS, "training", Struct())
        for item in files:
            name = item.name.rpartition("/")[2]
            key = f"{job.name}/{name}"
            stored = await trainer.runtime.objects.put_bytes(key, name.encode(), "application/octet-stream")
            item.blob.CopyFrom(Blob(key=key, size_bytes=stored.size_bytes, sha256=stored.sha256))
            edit.put_child(COLLECTION, name, item)
        for step, base in ((0, True), (20, False), (60, False)):
            measured = PreviewMetrics(step=step, base_model=base, join_colour_jump=1.0)
            edit.put_child(MEASURED, measured_key(measured), measured)


def files_of(job: str) -> list[Artifact]:
    kinds = Artifact.Kind
    return [
        Artifact(name=f"{job}/artifacts/{name}", kind=kind, step=step)
        for name, kind, step in (
            ("base-clip-1.mp4", kinds.KIND_BASE_VIDEO, 20),
            ("preview-000020-clip-1.mp4", kinds.KIND_VALIDATION_VIDEO, 20),
            ("checkpoint-000040.safetensors", kinds.KIND_CHECKPOINT, 40),
            ("lora-000040.safetensors", kinds.KIND_LORA, 40),
            ("metrics-000040.parquet", kinds.KIND_METRICS, 40),
            ("checkpoint-000050.safetensors", kinds.KIND_CHECKPOINT, 50),
            ("lora-000050.safetensors", kinds.KIND_LORA, 50),
            ("preview-000060-clip-1.mp4", kinds.KIND_VALIDATION_VIDEO, 60),
        )
    ]


async def test_a_job_takes_copies_of_what_it_goes_on_from(trainer: Trainer, as_me: None) -> None:
    await job_with_files(trainer, Job(name="jobs/source"), files_of("jobs/source"))
    for name, mode, artifact, expected in (
        (
            "jobs/exact",
            ContinueMode.CONTINUE_MODE_EXACT,
            "checkpoint-000040.safetensors",
            {
                "base-clip-1.mp4": "base-clip-1.mp4",
                "preview-000020-clip-1.mp4": "preview-000020-clip-1.mp4",
                "checkpoint-000040.safetensors": "checkpoint-000040.safetensors",
                "lora-000040.safetensors": "lora-000040.safetensors",
                "metrics-000040.parquet": "metrics-000040.parquet",
            },
        ),
        (
            "jobs/weights",
            ContinueMode.CONTINUE_MODE_WEIGHTS,
            "lora-000050.safetensors",
            {INITIAL_LORA: "lora-000050.safetensors"},
        ),
    ):
        origin = ContinueFrom(source="jobs/source", mode=mode, artifact=f"jobs/source/artifacts/{artifact}", step=40)
        await job_with_files(trainer, Job(name=name, continue_from=origin), [])
        attempt = Attempt(trainer.jobs, name, 0, "me")
        for _ in range(2):
            await take_over(trainer.runtime.objects, attempt)
        found = {item.name.rpartition("/")[2]: item for item in await artifacts(attempt)}
        bytes_of = {
            key: await trainer.runtime.objects.get_bytes(item.blob.key, sha256=item.blob.sha256)
            for key, item in found.items()
        }
        assert bytes_of == {key: content.encode() for key, content in expected.items()}
        assert all(item.blob.key.startswith(f"{name}/") for item in found.values())
        assert (await trainer.jobs.get(name)).checkpoint_step == (40 if len(expected) > 1 else 0)
        taken = [event async for _, event in first(trainer, name, 2 + len(expected))]
        assert sum(event.HasField("artifact") for event in taken) == len(expected), "once"
    gone = ContinueFrom(source="jobs/gone", artifact="jobs/gone/artifacts/checkpoint-000040.safetensors", step=40)
    await job_with_files(trainer, Job(name="jobs/late", continue_from=gone), [])
    with pytest.raises(NotFound, match="checkpoint-000040"):
        await take_over(trainer.runtime.objects, Attempt(trainer.jobs, "jobs/late", 0, "me"))


async def first(trainer: Trainer, job: str, count: int) -> AsyncIterator[tuple[int, Event]]:
    """The events of a job so far, at least as many as counted."""
    async for sequence, event in trainer.jobs.log.follow(job, 0):
        assert event is not None
        yield sequence, event
        if sequence >= max(count, (await trainer.jobs.get(job)).lifecycle.last_sequence):
            return


@pytest.mark.parametrize(("keep_last", "kept"), [(True, [50]), (False, [])])
async def test_states_of_a_job_that_ends_are_dropped_but_for_the_last(
    trainer: Trainer, keep_last: bool, kept: list[int]
) -> None:
    name = f"jobs/ends-{keep_last}"
    await job_with_files(trainer, Job(name=name), files_of(name))
    attempt = Attempt(trainer.jobs, name, 0, "me")
    await drop_states(trainer.runtime.objects, attempt, keep_last=keep_last)
    left = await artifacts(attempt)
    assert [item.step for item in left if item.kind == Artifact.KIND_CHECKPOINT] == kept
    assert {item.key for item in await trainer.runtime.objects.list_prefix(f"{name}/")} == {
        item.blob.key for item in left
    }


async def test_a_request_needs_a_training_that_has_begun_and_goes_on(trainer: Trainer, as_me: None) -> None:
    service = TrainService(trainer.runtime)
    checkpoint, preview = CheckpointJobRequest(name="jobs/asked"), PreviewJobRequest(name="jobs/asked")
    with pytest.raises(NotFound):
        await service.CheckpointJob(checkpoint, None)
    await job_with_files(trainer, Job(name="jobs/asked"), [], begun=False)
    with pytest.raises(NotReady, match="has not begun"):
        await service.CheckpointJob(checkpoint, None)
    async with trainer.jobs.edit("jobs/asked") as edit:
        edit.put_child(FACTS, "training", Struct())
    with pytest.raises(NotReady, match="no validation inputs"):
        await service.PreviewJob(preview, None)
    async with trainer.jobs.edit("jobs/asked") as edit:
        edit.body.effective_spec.extend_prefix.validation.add(prompt="a disc")
    for _ in range(3):
        assert (await service.CheckpointJob(checkpoint, None)).job.checkpoint_requested
        assert (await service.PreviewJob(preview, None)).job.preview_requested
    caller.set("another")
    with pytest.raises(NotFound):
        await service.CheckpointJob(checkpoint, None)
    caller.set("me")
    for state in (State.STATE_CANCELLING, State.STATE_CANCELLED):
        async with trainer.jobs.edit("jobs/asked") as edit:
            edit.enter(state)
        with pytest.raises(NotReady, match="has ended, or is being cancelled"):
            await service.CheckpointJob(checkpoint, None)


async def test_only_ended_jobs_of_ones_own_are_gone_on_from(trainer: Trainer, as_me: None) -> None:
    service = TrainService(trainer.runtime)
    await trainer.jobs.create(Job(name="jobs/others"), owner="another", request_id="", digest=b"")
    await trainer.jobs.create(Job(name="jobs/mine"), owner="me", request_id="", digest=b"")
    sources = ("jobs/others", "jobs/none", "jobs/mine/artifacts/", "datasets/1")
    for source in sources:
        with pytest.raises(NotFound):
            await service.CreateJob(CreateJobRequest(continue_from=ContinueFrom(source=source)), None)
        with pytest.raises(NotFound):
            await service.RetryJob(RetryJobRequest(name=source), None)
    with pytest.raises(NotReady, match="has not ended"):
        await service.CreateJob(CreateJobRequest(continue_from=ContinueFrom(source="jobs/mine")), None)
    with pytest.raises(NotReady, match="has not ended"):
        await service.RetryJob(RetryJobRequest(name="jobs/mine"), None)
    async with trainer.jobs.edit("jobs/mine") as edit:
        edit.enter(State.STATE_SUCCEEDED)
    with pytest.raises(NotReady, match="succeeded"):
        await service.RetryJob(RetryJobRequest(name="jobs/mine"), None)
    with pytest.raises(NotFound, match="artifacts/nothing"):
        await service.CreateJob(
            CreateJobRequest(continue_from=ContinueFrom(source="jobs/mine/artifacts/nothing")), None
        )
    with pytest.raises(InvalidSpec) as caught:
        await service.CreateJob(CreateJobRequest(continue_from=ContinueFrom(source="jobs/mine")), None)
    assert "continue_from.source" in {violation.field for violation in caught.value.violations}
    with pytest.raises(InvalidSpec) as caught:
        await service.CreateJob(CreateJobRequest(continue_from=ContinueFrom()), None)
    assert [violation.field for violation in caught.value.violations] == ["continue_from.source"]
