"""Uploads and downloads: whole, checked, resumed."""

import hashlib
import random
import traceback
from pathlib import Path

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client import Backoff, IngestClient, OutputMissing, TrainClient, TransferFailed, presigned

from tests.clients.far_side import FarSide
from tests.clients.object_host import Fault, ObjectHost

CONTENT = random.Random(1).randbytes(3_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
JOB = "jobs/1"


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presigned, "BACKOFF", Backoff(first_seconds=0.001, last_seconds=0.01))


@pytest.fixture
def lora(far: FarSide, store: ObjectHost) -> str:
    name = far.add_artifact(JOB, "lora.safetensors", CONTENT, Artifact.KIND_LORA, SHA256)
    store.objects[f"/{JOB}/lora.safetensors"] = CONTENT
    return name


def ranges(store: ObjectHost) -> list[str]:
    return [ranged for method, _, ranged in store.requests if method == "GET"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def test_a_download_is_whole_and_leaves_nothing_beside(train: TrainClient, lora: str, tmp_path: Path) -> None:
    path = await train.download(lora, tmp_path / "deep" / "lora.safetensors")
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["lora.safetensors"]


async def test_progress_counts_up_to_the_whole(train: TrainClient, lora: str, tmp_path: Path) -> None:
    steps = [step async for step in train.download_steps(lora, tmp_path / "file")]
    counts = [step.completed_bytes for step in steps]
    assert counts == sorted(counts) and counts[-1] == len(CONTENT)
    assert {step.total_bytes for step in steps} == {len(CONTENT)}


async def test_what_is_there_is_not_fetched_again(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    path = await train.download(lora, tmp_path / "file")
    await train.download(lora, path)
    assert len(store.requests) == 1
    path.write_bytes(b"something else")
    await train.download(lora, path)
    assert path.read_bytes() == CONTENT


async def test_a_cut_download_goes_on_where_it_was(
    store: ObjectHost, far: FarSide, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    store.faults.append(Fault(cut_after=1_000_000))
    path = await train.download(lora, tmp_path / "file")
    assert path.read_bytes() == CONTENT
    first, second = ranges(store)
    assert first == "" and 0 < int(second.removeprefix("bytes=").removesuffix("-")) <= 1_000_000
    # The artifact once for its digest, and a fresh URL before each try.
    assert len(far.requests("GetArtifact")) == 3


async def test_another_process_goes_on_where_the_first_was(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    steps = train.download_steps(lora, path)
    async for step in steps:
        if step.completed_bytes >= 500_000:
            break
    await steps.aclose()
    assert not path.exists() and len(names(tmp_path)) == 1
    await train.download(lora, path)
    assert path.read_bytes() == CONTENT
    assert int(ranges(store)[1].removeprefix("bytes=").removesuffix("-")) >= 500_000
    assert names(tmp_path) == ["file"]


async def test_a_try_that_brought_something_is_no_reason_to_give_up(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(presigned, "MAX_FAILURES", 2)
    # Pieces that no buffer holds: aiohttp drops what is unread when the connection breaks.
    store.faults.extend(Fault(cut_after=700_000) for _ in range(3))
    path = await train.download(lora, tmp_path / "file")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("fault", [Fault(ignore_range=True), Fault(status=416)])
async def test_a_store_that_cannot_go_on_is_asked_for_the_whole(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path, fault: Fault
) -> None:
    store.faults.extend([Fault(cut_after=1_000_000), fault])
    path = await train.download(lora, tmp_path / "file")
    assert path.read_bytes() == CONTENT
    assert ranges(store)[2] == ""


async def test_bytes_with_another_digest_are_thrown_away_and_fetched_anew(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    store.faults.append(Fault(corrupt=True))
    path = await train.download(lora, tmp_path / "file")
    assert path.read_bytes() == CONTENT


async def test_bytes_that_stay_wrong_are_never_kept(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    store.faults.extend(Fault(corrupt=True) for _ in range(presigned.MAX_FAILURES))
    with pytest.raises(TransferFailed, match="sha256"):
        await train.download(lora, tmp_path / "file")
    assert names(tmp_path) == []


async def test_server_errors_are_tried_again_and_then_told_without_the_secret(
    store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path
) -> None:
    store.faults.append(Fault(status=503))
    await train.download(lora, tmp_path / "file")
    store.faults.extend(Fault(status=503) for _ in range(presigned.MAX_FAILURES))
    with pytest.raises(TransferFailed, match="503") as raised:
        await train.download(lora, tmp_path / "other")
    assert "secret" not in str(raised.value)


async def test_a_refusal_is_final(store: ObjectHost, train: TrainClient, lora: str, tmp_path: Path) -> None:
    store.faults.append(Fault(status=403))
    with pytest.raises(TransferFailed, match="403") as raised:
        await train.download(lora, tmp_path / "file")
    assert "secret" not in str(raised.value)
    assert len(store.requests) == 1


async def test_an_empty_artifact_is_a_file_too(
    far: FarSide, store: ObjectHost, train: TrainClient, tmp_path: Path
) -> None:
    name = far.add_artifact(JOB, "empty", b"", Artifact.KIND_METRICS, hashlib.sha256().hexdigest())
    store.objects[f"/{JOB}/empty"] = b""
    assert (await train.download(name, tmp_path / "empty")).read_bytes() == b""


@pytest.mark.parametrize("size", [0, 1, len(CONTENT)])
async def test_an_upload_announces_and_sends_the_file(
    far: FarSide, store: ObjectHost, ingest: IngestClient, tmp_path: Path, size: int
) -> None:
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT[:size])
    upload = await ingest.upload(path)
    announced = far.requests("CreateUpload")[0]
    assert (announced.size_bytes, announced.sha256) == (size, hashlib.sha256(CONTENT[:size]).hexdigest())
    assert store.objects[f"/{upload.name}"] == CONTENT[:size]
    assert upload.url == f"upload:{upload.name}"
    assert "secret" not in repr(upload)


async def test_an_upload_says_how_far_it_is(ingest: IngestClient, tmp_path: Path) -> None:
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT)
    upload = await ingest.prepare_upload(path)
    assert [step.completed_bytes async for step in upload.send()] == [1 << 20, 2 << 20, len(CONTENT)]


async def test_an_upload_begins_again_after_a_server_error(
    store: ObjectHost, ingest: IngestClient, tmp_path: Path
) -> None:
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT)
    store.faults.extend([Fault(status=500), Fault(status=503)])
    upload = await ingest.upload(path)
    assert store.objects[f"/{upload.name}"] == CONTENT


async def test_a_refused_upload_is_final(store: ObjectHost, ingest: IngestClient, tmp_path: Path) -> None:
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT)
    store.faults.append(Fault(status=403))
    with pytest.raises(TransferFailed, match="403") as raised:
        await ingest.upload(path)
    assert "secret" not in str(raised.value)
    assert len(store.requests) == 1


async def test_a_store_that_is_not_there_is_given_up(far: FarSide, ingest: IngestClient, tmp_path: Path) -> None:
    far.store = "http://127.0.0.1:1"
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT)
    with pytest.raises(TransferFailed, match=r"127\.0\.0\.1:1") as raised:
        await ingest.upload(path)
    assert "secret" not in str(raised.value)


async def test_a_file_that_vanishes_fails_without_the_secret(ingest: IngestClient, tmp_path: Path) -> None:
    path = tmp_path / "clips.zip"
    path.write_bytes(CONTENT)
    upload = await ingest.prepare_upload(path)
    path.unlink()
    with pytest.raises(TransferFailed, match=r"clips\.zip") as raised:
        async for _ in upload.send():
            pass
    assert "?secret" not in "".join(traceback.format_exception(raised.value))


async def test_a_file_that_is_not_there_is_an_os_error(ingest: IngestClient, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await ingest.upload(tmp_path / "nowhere.zip")


async def test_the_empty_name_of_what_a_job_did_not_make(far: FarSide, train: TrainClient, tmp_path: Path) -> None:
    with pytest.raises(OutputMissing, match="failed or was cancelled"):
        await train.download(Job().output.lora_file, tmp_path / "lora.safetensors")
    assert far.calls == [] and list(tmp_path.iterdir()) == []
