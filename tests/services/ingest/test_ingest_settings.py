"""The operator's settings; each test has a service of its own beside the shared store and Ray."""

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.channel import Credentials, connect
from ltxtrain_client.errors import CallError
from ltxtrain_client.ingest import IngestClient

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from tests.cases_table import FOLDER
from tests.clips import numbered, write_clip, write_zip
from tests.services.ingest import web
from tests.services.ingest.running import serving
from tests.services.ingest.web import Web

MEDIA = FOLDER / "media"


@pytest.mark.parametrize("limit", [{"clip_seconds": 0.3}, {"clip_memory_bytes": 24 << 20}], ids=["time", "memory"])
async def test_a_clip_beyond_its_limits_costs_an_actor_and_nothing_else(
    limit: dict[str, Any], tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> None:
    # Bytes of their own, for what was probed once is not probed again.
    large = (MEDIA / "ram4k.mp4").read_bytes() + b"\0\0\0\x0cfree" + str(limit)[:4].encode()
    small = write_clip(tmp_path / "small.mp4", numbered(9, clip=70, size=(64, 64)))
    archive = write_zip(tmp_path / "clips.zip", {"large.mp4": large, "small.mp4": small})
    async with serving(tmp_path / "state", object_store, ray_cluster, hostile, **limit) as ingest:
        ended = await ingest.upload(archive)
    assert ended.state == "SUCCEEDED"
    assert [clip.path for clip in ended.clips] == ["small.mp4"]
    # A decoder that is refused memory says so, or that it makes nothing of the file.
    told = {"ACTOR_KILLED"} if "clip_seconds" in limit else {"ACTOR_KILLED", "UNDECODABLE"}
    assert set(ended.reasons("large.mp4")) & told


async def test_listed_buckets_and_no_others(
    tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> None:
    sets = ObjectStore(replace(object_store, bucket="sets"))
    await sets.ensure_bucket()
    await sets.put_file("mine/clips.zip", FOLDER / "zip" / "z_plain.zip", "application/zip")
    buckets = ("sets", "absent", object_store.bucket)
    async with serving(tmp_path, object_store, ray_cluster, hostile, fetch_buckets=buckets) as ingest:
        assert len((await ingest.run(archive_url="s3://sets/mine/clips.zip")).clips) == 3
        assert (await ingest.run(archive_url="s3://sets/none.zip")).reason == "DOWNLOAD_REFUSED"
        assert (await ingest.run(archive_url="s3://absent/clips.zip")).reason == "DOWNLOAD_REFUSED"
        for url in ("s3://other/clips.zip", f"s3://{object_store.bucket}/ingest/sha256/0"):
            with pytest.raises(CallError) as refused:
                await ingest.client.create_dataset(archive_url=url)
            assert refused.value.violations[0].reason == "URL_NOT_ALLOWED"


async def test_owners_see_their_own(
    tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> None:
    (tmp_path / "tokens").write_text("ann one\nbob two\n")
    async with serving(
        tmp_path, object_store, ray_cluster, hostile, token="one", tokens_file=tmp_path / "tokens"
    ) as ingest:
        ended = await ingest.upload(FOLDER / "zip" / "z_plain.zip")
        sent = await ingest.client.upload(FOLDER / "zip" / "z_plain.zip")
        async with connect(f"http://{ingest.address}", Credentials(token="two")) as channel:
            bob = IngestClient(channel)
            assert [dataset async for dataset in bob.list_datasets()] == []
            for call in (
                bob.get_dataset(ended.dataset.name),
                bob.cancel_dataset(ended.dataset.name),
                bob.delete_dataset(ended.dataset.name),
                bob.create_dataset(upload=sent.name),
                bob.create_dataset(archive_url=sent.url),
            ):
                with pytest.raises(CallError) as refused:
                    await call
                assert refused.value.reason == "RESOURCE_NOT_FOUND"
            for items in (bob.list_clips(ended.dataset.name), bob.list_dataset_report(ended.dataset.name)):
                with pytest.raises(CallError):
                    [item async for item in items]


async def test_a_service_that_is_stopped_in_the_midst_goes_on(
    tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> None:
    # So many files that a first part of the report is durable before any clip is looked at.
    files: dict[str, bytes | Path | str] = {f"{index}.pdf": b"" for index in range(1500)}
    for index in range(3):
        clip = write_clip(tmp_path / f"{index}.mp4", numbered(9, clip=71 + index, size=(64, 64)))
        files[f"{index}.mp4"] = clip.read_bytes()
    hostile.handlers["/resumed"] = web.plain(write_zip(tmp_path / "clips.zip", files).read_bytes())
    state = tmp_path / "state"
    async with serving(state, object_store, ray_cluster, hostile) as ingest:
        dataset = await ingest.client.create_dataset(archive_url=hostile.url("/resumed"))
        async with aclosing(ingest.client.watch_dataset(dataset.name)) as events:
            async for _, event in events:
                if event.WhichOneof("detail") == "report_line":
                    break
    async with serving(state, object_store, ray_cluster, hostile) as ingest:
        ended = await ingest.end(dataset.name)
    assert ended.state == "SUCCEEDED"
    assert sorted(item.path for item in ended.lines) == sorted([*files, ""])
    told = [event.report_line.path for event in ended.events if event.WhichOneof("detail") == "report_line"]
    assert sorted(told) == sorted([*files, ""])
    assert sum(event.lifecycle.state == State.STATE_RUNNING for event in ended.events) == 1
    # The archive was whole on disk, so it was not fetched again.
    assert hostile.requests["/resumed"] == 1


async def test_limits_of_archives_reach_the_report(
    tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> None:
    async with serving(tmp_path, object_store, ray_cluster, hostile, archive_max_entries=4) as ingest:
        ended = await ingest.upload(FOLDER / "zip" / "z_plain.zip")
        assert ended.reason == "ARCHIVE_TOO_LARGE"
        bomb = await ingest.upload(FOLDER / "zip" / "z_bomb.zip")
    assert bomb.reasons("b.mp4") == ["ENTRY_TOO_LARGE"]
    assert bomb.reasons("a.mp4") == ["NOT_EXAMINED"]
