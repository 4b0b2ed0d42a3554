"""Uploads in parts against a store that fails on the way."""

import os
import random
from pathlib import Path

import pytest
from ltxtrain_client import Backoff, IngestClient, TransferFailed, ingest, presigned, transfer
from ltxtrain_client.upload_source import FileSource, StoredZip

from tests.clients.far_side import FarSide
from tests.clients.object_host import Fault, ObjectHost

CONTENT = random.Random(5).randbytes(3_500_000)
PARTS = 4


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(presigned, "BACKOFF", Backoff(first_seconds=0.001, last_seconds=0.01))
    monkeypatch.setattr(ingest, "MULTIPART_ABOVE_BYTES", 1 << 20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "clips.zip"
    made.write_bytes(CONTENT)
    return made


def puts(store: ObjectHost) -> list[str]:
    return [path.rpartition("/")[2] for method, path, _ in store.requests if method == "PUT"]


async def test_parts_are_sent_once_and_joined(
    far: FarSide, store: ObjectHost, ingest: IngestClient, path: Path
) -> None:
    upload = await ingest.prepare_upload(path)
    steps = [step async for step in upload.send()]
    assert store.objects[f"/{upload.name}"] == CONTENT
    assert sorted(puts(store)) == ["1", "2", "3", "4"]
    assert steps[0].completed_bytes == 0 and steps[-1].completed_bytes == len(CONTENT)
    assert all(step.total_bytes == len(CONTENT) for step in steps)
    assert far.requests("CreateUpload")[0].multipart and not upload.put_url


async def test_a_part_that_fails_is_sent_again_and_no_other(
    store: ObjectHost, ingest: IngestClient, path: Path
) -> None:
    store.faults.extend([Fault(), Fault(status=503), Fault(), Fault(status=403)])
    upload = await ingest.upload(path)
    assert store.objects[f"/{upload.name}"] == CONTENT
    # A refusal may be that of a URL which has expired: the list is asked for fresh ones.
    assert len(puts(store)) == PARTS + 2


async def test_an_upload_that_the_store_has_is_not_sent(
    far: FarSide, store: ObjectHost, ingest: IngestClient, path: Path
) -> None:
    first = await ingest.upload(path)
    count = len(store.requests)
    again = await ingest.prepare_upload(path)
    assert again.complete and again.name == first.name
    assert [step.completed_bytes async for step in again.send()] == [len(CONTENT)]
    assert len(store.requests) == count


async def test_rounds_that_store_nothing_end(store: ObjectHost, ingest: IngestClient, path: Path) -> None:
    store.faults.extend(Fault(status=503) for _ in range(PARTS * (presigned.MAX_FAILURES + 1)))
    with pytest.raises(TransferFailed, match="HTTP 503") as raised:
        await ingest.upload(path)
    assert "secret" not in str(raised.value)


async def test_a_file_that_changes_on_the_way_ends_it(ingest: IngestClient, path: Path) -> None:
    for make in (FileSource, lambda file: StoredZip("a.zip", {"a.mp4": file})):
        upload = await ingest.prepare_upload(make(path))
        path.write_bytes(CONTENT[::-1])
        os.utime(path, (1, 1))
        with pytest.raises(TransferFailed, match="changed while it was read"):
            async for _ in upload.send():
                pass
        path.write_bytes(CONTENT)


async def test_hashing_tells_how_far_it_is(ingest: IngestClient, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "HASHED_AT_ONCE", 1)
    steps: list[int] = []
    await ingest.prepare_upload(path, lambda step: steps.append(step.completed_bytes))
    assert steps == [1 << 20, 2 << 20, 3 << 20, len(CONTENT)]
