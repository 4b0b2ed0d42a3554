"""Uploads in parts against the real object store: parallel, resumed, swept."""

import asyncio
import hashlib
import random
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from ltxtrain.v1.ingest_pb2 import ListUploadPartsRequest
from ltxtrain_client import Backoff, FailedPrecondition, InvalidArgument, NotFound, presigned
from ltxtrain_client import ingest as client_module
from ltxtrain_client.ingest import Upload
from ltxtrain_client.upload_source import FileSource, StoredZip

from ltxtrain_services.ingest import uploads
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import ObjectMissing, StoreAddress
from tests.clips import numbered, write_clip
from tests.services.ingest.clocks import set_clocks
from tests.services.ingest.cutting import CuttingProxy, cutting
from tests.services.ingest.running import Ingest, serving
from tests.services.ingest.web import Web

PART = 5 << 20


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 5 MiB, the least that S3 allows, for all that is not small."""
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", PART)
    monkeypatch.setattr(client_module, "MULTIPART_ABOVE_BYTES", 1 << 20)
    monkeypatch.setattr(presigned, "BACKOFF", Backoff(first_seconds=0.01, last_seconds=0.05))


@pytest.fixture(scope="module")
async def proxy(object_store: StoreAddress) -> AsyncIterator[CuttingProxy]:
    async with cutting(object_store.endpoint) as running:
        yield running


@pytest.fixture(scope="module")
async def ingest(
    tmp_path_factory: pytest.TempPathFactory,
    object_store: StoreAddress,
    proxy: CuttingProxy,
    ray_cluster: Cluster,
    hostile: Web,
) -> AsyncIterator[Ingest]:
    """A service whose clients reach the store through the proxy."""
    store = replace(object_store, public_endpoint=proxy.address)
    async with serving(tmp_path_factory.mktemp("uploads"), store, ray_cluster, hostile) as running:
        yield running


def write(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


async def stored(ingest: Ingest, upload: Upload) -> bytes:
    content = b"".join([chunk async for chunk in ingest.runtime.objects.read(f"ingest/{upload.name}")])
    assert len(content) == upload.source.size_bytes
    return content


async def test_a_connection_cut_five_times_costs_no_part_twice(
    ingest: Ingest, proxy: CuttingProxy, tmp_path: Path
) -> None:
    path = write(tmp_path / "clips.zip", 8 * PART + 12345, 1)
    upload = await ingest.client.prepare_upload(path)
    before = proxy.sent_bytes
    proxy.cuts.extend([2 << 20, 4 << 20, 1 << 20, 3 << 20, 4 << 20])
    steps = [step async for step in upload.send()]
    assert not proxy.cuts
    assert await stored(ingest, upload) == path.read_bytes()
    # Each cut costs what its part had sent, and no other part.
    again = proxy.sent_bytes - before - path.stat().st_size
    assert 0 < again <= 5 * PART
    assert steps[-1].completed_bytes == path.stat().st_size


async def test_another_process_goes_on_where_one_was_stopped(
    ingest: Ingest, proxy: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "clips.zip", 6 * PART, 2)
    monkeypatch.setattr(presigned, "PARALLEL_PARTS", 1)
    first = await ingest.client.prepare_upload(path)
    sending = first.send()
    async for step in sending:
        if step.completed_bytes > 3 * PART:
            break
    await sending.aclose()
    second = await ingest.client.prepare_upload(path)
    assert second.name == first.name and not second.complete
    before = proxy.sent_bytes
    steps = [step async for step in second.send()]
    assert steps[0].completed_bytes == 3 * PART
    assert proxy.sent_bytes - before < 3 * PART + (1 << 20)
    assert await stored(ingest, second) == path.read_bytes()
    # What is there is not sent a third time.
    third = await ingest.client.upload(path)
    assert third.complete and third.name == first.name


async def test_a_folder_becomes_a_dataset_without_a_copy_on_disk(ingest: Ingest, tmp_path: Path) -> None:
    files = {
        f"day {number}/clip.mp4": write_clip(tmp_path / f"{number}.mp4", numbered(11, clip=70 + number, size=(64, 64)))
        for number in range(3)
    }
    filler = write(tmp_path / "filler.bin", 2 * PART, 3)
    source = StoredZip("holiday.zip", files | {"filler.bin": filler})
    upload = await ingest.client.upload(source)
    ended = await ingest.run(upload=upload.name)
    assert ended.state == "SUCCEEDED" and list(ended.dataset.file_names) == ["holiday.zip"]
    assert sorted(clip.path for clip in ended.clips) == sorted(files)
    signed = await ingest.client.get_clip(ended.clips[0].name)
    async with aiohttp.ClientSession() as session, session.get(signed.download_url) as response:
        assert await response.read() == files[ended.clips[0].path].read_bytes()


UPLOADER = r"""
import asyncio, re, sys
from pathlib import Path
from ltxtrain_client import IngestClient, connect
from ltxtrain_client.local_data import open_local_data

async def main(address, folder):
    async with connect(address) as channel:
        return await IngestClient(channel).upload(open_local_data([Path(folder)]).source)

upload = asyncio.run(main(*sys.argv[1:]))
# Not ru_maxrss, which begins with the size of the process that started this one.
print(upload.name, int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.parametrize(
    ("clip_mib", "most_mib"),
    [(20, 140), pytest.param(1536, 200, marks=[pytest.mark.soak, pytest.mark.timeout(7200)])],
    ids=["80MiB", "6GiB"],
)
async def test_a_folder_of_any_size_needs_little_memory_and_its_cuts_cost_their_parts(
    ingest: Ingest, proxy: CuttingProxy, tmp_path: Path, clip_mib: int, most_mib: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clips, sent by a client of its own through a connection that is cut five times."""
    part_bytes = 16 << 20
    monkeypatch.setattr(uploads, "MIN_PART_BYTES", part_bytes)
    folder = tmp_path / "clips"
    folder.mkdir()
    for index in range(4):
        with (folder / f"{index}.mp4").open("wb") as file:
            file.write(b"\0\0\0\x18ftypisom")
            file.truncate(clip_mib << 20)
    before = proxy.sent_bytes
    proxy.cuts.extend([2 << 20, 4 << 20, 1 << 20, 3 << 20, 4 << 20])
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", UPLOADER, ingest.address, str(folder), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await client.communicate()
    name, peak_mib = told.decode().split()
    stored = await ingest.runtime.objects.stat(f"ingest/{name}")
    assert stored is not None and not proxy.cuts
    assert 4 * clip_mib << 20 < stored.size_bytes < (4 * clip_mib << 20) + 2000
    again = proxy.sent_bytes - before - stored.size_bytes
    assert 0 < again < 5 * part_bytes
    print(f"{stored.size_bytes >> 20} MiB: {peak_mib} MiB of memory, {again / 2**20:.1f} MiB sent twice")
    assert int(peak_mib) < most_mib
    await ingest.runtime.objects.delete(f"ingest/{name}")


async def test_parts_that_are_missing_are_told(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "clips.zip", 2 * PART, 4)
    upload = await ingest.client.prepare_upload(path)
    with pytest.raises(FailedPrecondition, match="2 of 2 parts are missing, the first is 1") as refused:
        await ingest.client.complete_upload(upload.name)
    assert refused.value.reason == "UPLOAD_MISMATCH"
    ended = await ingest.run(upload=upload.name)
    assert (
        ended.reason == "UPLOAD_MISMATCH" and "CompleteUpload was not called" in ended.dataset.lifecycle.error.message
    )


async def test_pages_of_parts(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "clips.zip", 3 * PART + 1, 5)
    upload = await ingest.client.prepare_upload(path)
    stub = ingest.client._stub
    request = ListUploadPartsRequest(upload=upload.name, page_size=3)
    page = await stub.ListUploadParts(request)
    assert [(part.number, part.offset_bytes, part.size_bytes) for part in page.parts] == [
        (1, 0, PART),
        (2, PART, PART),
        (3, 2 * PART, PART),
    ]
    request.page_token = page.next_page_token
    last = await stub.ListUploadParts(request)
    assert [(part.number, part.size_bytes) for part in last.parts] == [(4, 1)] and not last.next_page_token


async def test_other_bytes_than_announced_are_found_and_asked_for_anew(ingest: Ingest, tmp_path: Path) -> None:
    path = write(tmp_path / "clips.zip", PART + 7, 6)
    upload = await ingest.client.prepare_upload(path)
    other = replace(upload, source=FileSource(write(tmp_path / "other.zip", PART + 7, 7)))
    async for _ in other.send():
        pass
    assert (await ingest.run(upload=upload.name)).reason == "UPLOAD_MISMATCH"
    again = await ingest.client.upload(path)
    assert again.name == upload.name and not again.complete
    assert await stored(ingest, again) == path.read_bytes()


async def test_a_single_put_has_no_parts(ingest: Ingest, tmp_path: Path) -> None:
    upload = await ingest.client.upload(write(tmp_path / "small.zip", 100, 8))
    assert (await ingest.client.list_upload_parts(upload.name)).parts == []  # it is complete
    waiting = await ingest.client.prepare_upload(write(tmp_path / "small.zip", 100, 9))
    with pytest.raises(FailedPrecondition, match="takes a single PUT"):
        await ingest.client.list_upload_parts(waiting.name)


async def test_the_limit_of_an_upload_in_parts_is_that_of_a_fetched_one(ingest: Ingest) -> None:
    digest = hashlib.sha256(b"").hexdigest()
    assert (await ingest.client.create_upload(6 << 30, digest, multipart=True)).put_url == ""
    with pytest.raises(InvalidArgument, match="multipart"):
        await ingest.client.create_upload(6 << 30, digest)
    with pytest.raises(InvalidArgument):
        await ingest.client.create_upload(101 << 30, digest, multipart=True)


async def test_uploads_that_were_never_completed_are_swept(
    ingest: Ingest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = await ingest.client.prepare_upload(write(tmp_path / "clips.zip", 2 * PART, 10))
    steps = upload.send()
    async for step in steps:
        if step.completed_bytes > PART:
            break
    await steps.aclose()
    kept = await ingest.service._uploads._store.get(upload.name)
    assert kept.multipart_id
    later = time.time() + 23 * 3600
    set_clocks(monkeypatch, later)
    await ingest.service.tidy()
    set_clocks(monkeypatch, later + 2 * 3600)
    await ingest.service.tidy()
    with pytest.raises(ObjectMissing):
        await ingest.runtime.objects.list_parts(f"ingest/{upload.name}", kept.multipart_id)
    again = await ingest.client.prepare_upload(tmp_path / "clips.zip")
    assert again.name != upload.name


async def test_a_clip_of_a_dataset_is_a_video_of_another(ingest: Ingest, tmp_path: Path) -> None:
    files = {f"{n}.mp4": write_clip(tmp_path / f"{n}.mp4", numbered(11, clip=80 + n, size=(64, 64))) for n in (1, 2)}
    first = await ingest.run(upload=(await ingest.client.upload(StoredZip("two.zip", files))).name)
    urls = [f"dataset:{clip.name}" for clip in reversed(first.clips)]
    second = await ingest.run(videos=urls)
    assert second.state == "SUCCEEDED"
    assert [clip.blob.sha256 for clip in second.clips] == [clip.blob.sha256 for clip in reversed(first.clips)]
    assert [clip.name.rpartition("/")[2] for clip in second.clips] == ["0", "1"]
    assert [clip.path for clip in second.clips] == [f"{urls[0]}/2.mp4", f"{urls[1]}/1.mp4"]
    for url in (f"dataset:{first.dataset.name}/clips/7", f"dataset:datasets/{'0' * 32}/clips/0"):
        with pytest.raises(NotFound):
            await ingest.client.create_dataset(videos=[url])
    with pytest.raises(InvalidArgument):  # it is no archive
        await ingest.client.create_dataset(archive_url=urls[0])
    await ingest.client.delete_dataset(second.dataset.name)
