"""The service as users run it, a process: its memory, and its death."""

import random
import struct
import zipfile
from contextlib import aclosing
from pathlib import Path

import pytest
import ray
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.channel import connect
from ltxtrain_client.ingest import IngestClient

from ltxtrain_services.local.ports import remembered_ports
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.clips import numbered, write_clip, write_zip
from tests.services.ingest import web
from tests.services.ingest.process import ServiceProcess, service_process, watched
from tests.services.ingest.web import Web

MIB = 1 << 20
# What a service and each of its actors may take, whatever the size of the archive.
PEAK_MB = 400


@pytest.fixture
def service(tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web) -> ServiceProcess:
    address = ray.get_runtime_context().gcs_address
    port = remembered_ports(tmp_path / "ports.json", ["ingest"])["ingest"]
    return service_process(tmp_path / "state", port, object_store, address, FETCH_ALLOW=hostile.host)


def write_large_zip(path: Path, folder: Path, clip_count: int, clip_mib: int) -> Path:
    """An archive of stored clips, each with random bytes in a box that players skip."""
    dice = random.Random(7)
    base = write_clip(folder / "base.mp4", numbered(9, clip=80, size=(64, 64))).read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(clip_count):
            with archive.open(f"{index}.mp4", "w", force_zip64=True) as entry:
                entry.write(base + struct.pack(">I4s", 8 + clip_mib * MIB, b"free"))
                for _ in range(clip_mib):
                    entry.write(dice.randbytes(MIB))
    return path


async def check_memory(service: ServiceProcess, archive: Path, clip_count: int) -> None:
    await service.start()
    try:
        async with connect(service.address) as channel, watched(service.pid) as peaks:
            client = IngestClient(channel)
            sent = await client.upload(archive)
            dataset = await client.create_dataset(upload=sent.name)
            async for _ in client.watch_dataset(dataset.name):
                pass
            ended = await client.get_dataset(dataset.name)
            assert (ended.lifecycle.state, ended.clip_count) == (State.STATE_SUCCEEDED, clip_count)
            print(f"service {peaks.service_mb:.0f} MiB, largest of {len(peaks.actors)} actors {peaks.actor_mb:.0f} MiB")
            assert 0 < peaks.service_mb < PEAK_MB
            assert 0 < peaks.actor_mb < PEAK_MB
    finally:
        await service.kill()


async def test_memory_stays_flat(service: ServiceProcess, tmp_path: Path) -> None:
    await check_memory(service, write_large_zip(tmp_path / "large.zip", tmp_path, 4, 50), 4)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_memory_stays_flat_for_three_gigabytes(service: ServiceProcess, tmp_path: Path) -> None:
    await check_memory(service, write_large_zip(tmp_path / "large.zip", tmp_path, 12, 256), 12)


async def test_a_killed_service_ends_its_datasets_after_its_start(
    service: ServiceProcess, hostile: Web, tmp_path: Path
) -> None:
    # So many files that a first part of the report is durable before any clip is looked at.
    files: dict[str, bytes | Path | str] = {f"{index}.pdf": b"" for index in range(1500)}
    for index in range(3):
        clip = write_clip(tmp_path / f"{index}.mp4", numbered(9, clip=81 + index, size=(64, 64)))
        files[f"{index}.mp4"] = clip.read_bytes()
    hostile.handlers["/killed"] = web.plain(write_zip(tmp_path / "clips.zip", files).read_bytes())
    await service.start()
    try:
        async with connect(service.address) as channel:
            client = IngestClient(channel)
            dataset = await client.create_dataset(archive_url=hostile.url("/killed"))
            told: list[str] = []
            async with aclosing(client.watch_dataset(dataset.name)) as events:
                async for _, event in events:
                    if event.WhichOneof("detail") == "report_line":
                        told.append(event.report_line.path)
                        if len(told) == 1:
                            await service.kill()
                            await service.start()
            ended = await client.get_dataset(dataset.name)
            assert (ended.lifecycle.state, ended.clip_count) == (State.STATE_SUCCEEDED, 3)
            # The watch went on by itself, and has every line once.
            assert sorted(told) == sorted([*files, ""])
    finally:
        await service.kill()
