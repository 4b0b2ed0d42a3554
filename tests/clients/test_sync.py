"""The clients without await: the same methods, from a thread and from within a running loop."""

import asyncio
import hashlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import grpc
import ltxtrain_client
import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client import ClientSettings, InvalidArgument, NotFound, sync
from ltxtrain_client.calls import Client

from tests.clients.far_side import FarSide, progress_events, status, violations

SPEC = ExtendPrefixSpec(training_data_url="https://example.com/clips.zip")
CLASSES = ("TrainClient", "IngestClient", "PreprocessClient", "Suite", "Upload", "Channel")


def is_async(member: object) -> bool:
    return (
        inspect.iscoroutinefunction(member)
        or (inspect.isfunction(member) and "AsyncGenerator" in str(get_type_hints(member).get("return")))
        or inspect.isasyncgenfunction(member)
    )


def async_names(cls: type) -> set[str]:
    return {name for name, member in inspect.getmembers(cls) if not name.startswith("_") and is_async(member)}


@pytest.mark.parametrize("name", CLASSES)
def test_no_method_is_missing(name: str) -> None:
    """One that is added to an asynchronous client is added to sync.py, in a line."""
    wanted = async_names(getattr(ltxtrain_client, name))
    assert wanted
    assert sorted(wanted - set(dir(getattr(sync, name)))) == []


def test_every_class_with_asynchronous_methods_is_there() -> None:
    public = {name: getattr(ltxtrain_client, name) for name in ltxtrain_client.__all__}
    found = {name for name, item in public.items() if inspect.isclass(item) and async_names(item)}
    assert found == {*CLASSES, "SheetFiles"}  # its upload is sync.upload_files
    assert issubclass(ltxtrain_client.TrainClient, Client)


@pytest.mark.parametrize("name", CLASSES)
def test_arguments_are_the_same(name: str) -> None:
    ours, theirs = getattr(sync, name), getattr(ltxtrain_client, name)
    for method in async_names(theirs):
        mine, other = inspect.signature(getattr(ours, method)), inspect.signature(getattr(theirs, method))
        assert list(mine.parameters.values()) == list(other.parameters.values()), method


async def in_thread(call: Any, *args: Any) -> Any:
    """The far side answers on the loop of the test, which a blocking call must not hold."""
    return await asyncio.to_thread(call, *args)


async def test_calls_pages_events_and_files(far: FarSide, tmp_path: Path) -> None:
    content = b"weights" * 1000
    lora = far.add_artifact(
        "jobs/1", "lora.safetensors", content, Artifact.KIND_LORA, hashlib.sha256(content).hexdigest()
    )
    far.objects["/jobs/1/lora.safetensors"] = content
    far.jobs = {f"jobs/{number}": Job(name=f"jobs/{number}") for number in range(5)}
    far.events = progress_events(6)

    def work() -> None:
        with sync.connect(far.address) as channel:
            train = sync.TrainClient(channel)
            assert train.submit(SPEC).name in far.jobs
            assert [job.name for job in train.list_jobs()][:5] == [f"jobs/{number}" for number in range(5)]
            assert [sequence for sequence, _ in train.watch_job("jobs/1")] == [1, 2, 3, 4, 5, 6]
            assert train.download(lora, tmp_path / "lora.safetensors").read_bytes() == content
            with pytest.raises(NotFound):
                train.get_job("jobs/none")

    await in_thread(work)


async def test_a_watch_that_is_left_ends_its_stream(far: FarSide) -> None:
    far.jobs["jobs/1"] = Job(name="jobs/1")
    far.events = progress_events(3, ending=None)

    def work() -> None:
        with sync.connect(far.address) as channel:
            watch = sync.TrainClient(channel).watch_job("jobs/1")
            assert next(watch)[0] == 1
            watch.close()
            assert list(watch) == []

    await in_thread(work)
    await asyncio.wait_for(far.stream_ended.wait(), 30)


async def test_an_upload_of_a_file(far: FarSide, tmp_path: Path) -> None:
    path = tmp_path / "opening.mp4"
    path.write_bytes(b"mp4")

    def work() -> str:
        with sync.open_suite(ClientSettings(train=far.address, ingest=far.address, preprocess=far.address)) as suite:
            prepared = suite.ingest.prepare_upload(path)
            assert list(prepared.send())[-1].completed_bytes == 3
            spec = ExtendPrefixSpec()
            files = ltxtrain_client.SheetFiles(validation=[path])
            spec.validation.add()
            sync.upload_files(files, suite.ingest, spec)
            assert spec.validation[0].video_url == prepared.url
            return prepared.name

    name = await in_thread(work)
    assert far.objects[f"/{name}"] == b"mp4"


async def test_a_callback_that_calls_is_refused(far: FarSide, tmp_path: Path) -> None:
    path = tmp_path / "opening.mp4"
    path.write_bytes(b"mp4")

    def work() -> None:
        with sync.connect(far.address) as channel:
            ingest = sync.IngestClient(channel)
            with pytest.raises(RuntimeError, match="callback"):
                ingest.prepare_upload(path, lambda step: print(ingest.get_dataset("datasets/1")))

    await in_thread(work)


async def test_within_a_running_loop_as_in_a_notebook(far: FarSide) -> None:
    """A process of its own, since the far side answers on this loop. It also has to end by itself."""
    far.jobs["jobs/1"] = Job(name="jobs/1")
    code = f"""
import asyncio
from ltxtrain_client import connect, sync, TrainClient

async def cell():
    with sync.connect({far.address!r}) as channel:
        blocking = sync.TrainClient(channel)
        async with connect({far.address!r}) as other:
            for _ in range(20):
                print(blocking.get_job("jobs/1").name, (await TrainClient(other).get_job("jobs/1")).name)
    left_open = sync.connect({far.address!r})
    sync.TrainClient(left_open).get_job("jobs/1")

asyncio.run(cell())
"""
    run = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(run.communicate(), 60)
    assert (run.returncode, out.decode().splitlines()) == (0, ["jobs/1 jobs/1"] * 20)


async def test_errors_are_the_asynchronous_ones(far: FarSide) -> None:
    wrong = violations(("spec.rank", "FIELD_OUT_OF_RANGE", "too large"))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "bad", "FIELD_INVALID", details=[wrong]))

    def work() -> None:
        with sync.connect(far.address) as channel, pytest.raises(InvalidArgument) as refused:
            sync.TrainClient(channel).submit(SPEC)
        assert refused.value.violations[0].field == "spec.rank"

    await in_thread(work)
