"""Calls, pages and the form of what is sent."""

import uuid
from contextlib import aclosing

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.ingest_pb2_grpc import IngestServiceStub
from ltxtrain.v1.preprocess_pb2_grpc import PreprocessServiceStub
from ltxtrain.v1.train_pb2 import Job, JobOptions
from ltxtrain.v1.train_pb2_grpc import TrainServiceStub
from ltxtrain.v1.work_pb2 import Lifecycle, ReportLine, State
from ltxtrain_client import Channel, IngestClient, NotFound, PreprocessClient, TrainClient, connect

from tests.clients.far_side import FarSide

SPEC = ExtendPrefixSpec(training_data_url="https://example.com/clips.zip", rank=16)


async def test_submit_sends_spec_options_and_a_fresh_id(far: FarSide, train: TrainClient) -> None:
    options = JobOptions(seed=7)
    first, second = await train.submit(SPEC, options), await train.submit(SPEC)
    sent = far.requests("CreateJob")
    assert (sent[0].spec.extend_prefix, sent[0].options, sent[0].validate_only) == (SPEC, options, False)
    assert not sent[1].HasField("options")
    assert uuid.UUID(sent[0].request_id) != uuid.UUID(sent[1].request_id)
    assert first.name != second.name


async def test_a_given_request_id_is_kept(far: FarSide, train: TrainClient) -> None:
    given = str(uuid.uuid4())
    await train.submit(SPEC, request_id=given)
    assert far.requests("CreateJob")[0].request_id == given


async def test_jobs_are_listed_by_the_words_of_their_states(far: FarSide, train: TrainClient) -> None:
    far.jobs = {
        f"jobs/{number}": Job(name=f"jobs/{number}", lifecycle=Lifecycle(state=state))
        for number, state in ((1, State.STATE_FAILED), (2, State.STATE_RUNNING), (3, State.STATE_CANCELLED))
    }
    wanted: list[list[State | str]] = [["failed", "cancelled"], ["STATE_FAILED", State.STATE_CANCELLED]]
    for states in wanted:
        assert [job.name async for job in train.list_jobs(states)] == ["jobs/1", "jobs/3"]
    with pytest.raises(ValueError, match="'faild' is none of pending, running, cancelling, succeeded, failed, cancel"):
        train.list_jobs(["faild"])


async def test_validate_starts_nothing(far: FarSide, train: TrainClient) -> None:
    job = await train.validate(SPEC)
    assert (job.name, far.jobs) == ("", {})
    assert far.requests("CreateJob")[0].validate_only


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
async def test_every_item_comes_whatever_the_pages(far: FarSide, train: TrainClient, count: int) -> None:
    far.jobs = {f"jobs/{number}": Job(name=f"jobs/{number}") for number in range(count)}
    assert [job.name async for job in train.list_jobs()] == list(far.jobs)
    assert len(far.requests("ListJobs")) == max(1, -(-count // 2))


async def test_pages_are_fetched_as_they_are_needed(far: FarSide, train: TrainClient) -> None:
    far.jobs = {f"jobs/{number}": Job(name=f"jobs/{number}") for number in range(100)}
    async with aclosing(train.list_jobs()) as jobs:
        async for job in jobs:
            if job.name == "jobs/2":
                break
    assert len(far.requests("ListJobs")) == 2


async def test_filters_go_with_every_page(far: FarSide, train: TrainClient) -> None:
    for number in range(6):
        state = State.STATE_RUNNING if number % 2 else State.STATE_FAILED
        far.jobs[f"jobs/{number}"] = Job(name=f"jobs/{number}", lifecycle=Lifecycle(state=state))
    running = [job.name async for job in train.list_jobs([State.STATE_RUNNING], page_size=2)]
    assert running == ["jobs/1", "jobs/3", "jobs/5"]
    assert {tuple(request.states) for request in far.requests("ListJobs")} == {(State.STATE_RUNNING,)}
    assert {request.page_size for request in far.requests("ListJobs")} == {2}


async def test_artifacts_are_listed_by_kind(far: FarSide, train: TrainClient) -> None:
    far.add_artifact("jobs/1", "a.safetensors", b"a", Artifact.KIND_LORA, "")
    far.add_artifact("jobs/1", "b.json", b"b", Artifact.KIND_CONFIG, "")
    names = [item.name async for item in train.list_artifacts("jobs/1", [Artifact.KIND_CONFIG])]
    assert names == ["jobs/1/artifacts/b.json"]


async def test_reports_are_paged_too(far: FarSide, ingest: IngestClient) -> None:
    far.report = [ReportLine(path=f"{number}.mp4") for number in range(5)]
    assert [line.path async for line in ingest.list_dataset_report("datasets/1")] == [f"{n}.mp4" for n in range(5)]


async def test_a_dataset_has_one_source(far: FarSide, ingest: IngestClient) -> None:
    await ingest.create_dataset(archive_url="https://example.com/a.zip")
    await ingest.create_dataset(upload="uploads/1")
    await ingest.create_dataset(videos=["https://example.com/a.mp4", "https://example.com/b.mp4"])
    sources = [request.WhichOneof("source") for request in far.requests("CreateDataset")]
    assert sources == ["archive_url", "upload", "videos"]
    assert list(far.requests("CreateDataset")[2].videos.urls)[1] == "https://example.com/b.mp4"


async def test_what_is_not_there_is_not_found(far: FarSide, train: TrainClient) -> None:
    with pytest.raises(NotFound):
        await train.get_job("jobs/none")


@pytest.mark.parametrize(
    ("client", "stub"),
    [
        (TrainClient, TrainServiceStub),
        (IngestClient, IngestServiceStub),
        (PreprocessClient, PreprocessServiceStub),
    ],
)
async def test_every_rpc_has_its_method(client: type, stub: type) -> None:
    """CreateJob is `submit` and EstimateJob is `estimate`; every other method has the RPC's name."""
    own = {"CreateJob": "submit", "EstimateJob": "estimate", "ListWebhookKeys": "webhook_keys"}
    async with connect("127.0.0.1:1") as channel:
        assert isinstance(channel, Channel)
        rpcs = vars(stub(channel.aio))
    words = {rpc: "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in rpc)[1:] for rpc in rpcs}
    missing = [rpc for rpc in rpcs if not callable(getattr(client, own.get(rpc, words[rpc]), None))]
    assert rpcs and missing == []
