"""Actors and services that die, clips that take too much, data that goes away."""

import asyncio
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from ltxtrain.v1.work_pb2 import Stage, State

from ltxtrain_services.preprocess.cache import ENTRIES, Cache
from ltxtrain_services.preprocess.cache_keys import prompt_key
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from ltxtrain_trainer.model.folder import resolve_model
from tests.clips import numbered, write_clip
from tests.services.ingest.running import Ingest
from tests.services.preprocess.running import WHOLE, Ended, Preprocess, serving, settings
from tests.services.preprocess.workers import all_gone, appeared, kill_next

Serving = Callable[..., AbstractAsyncContextManager[Preprocess]]

ACTORS = ("ClipFitter", "Encoder")


@pytest.fixture
def fresh(
    tmp_path: Path, object_store: StoreAddress, ray_cluster: Cluster, ingest: Ingest, tiny_model: Path
) -> Serving:
    """A service that has made nothing yet; started again, it has the state of its last start."""
    return lambda **more: serving(tmp_path / "state", object_store, ray_cluster, ingest, tiny_model, **more)


@pytest.fixture(scope="session")
async def four(preprocess: Preprocess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of four clips with captions."""
    folder = tmp_path_factory.mktemp("four")
    entries: dict[str, bytes | Path | str] = {}
    for index in range(4):
        name = f"{index}.mp4"
        entries[name] = write_clip(folder / name, numbered(9, clip=index))
        entries[f"{index}.txt"] = f"card {index % 2}"
    return await preprocess.dataset(entries)


def contents(ended: Ended) -> list[tuple[str, str, str]]:
    return [(sample.caption, sample.latents.sha256, sample.prompt.sha256) for sample in ended.samples]


NINE = {"training": {"frameCount": 9}, "conditioningFrames": 1}


async def test_a_killed_actor_costs_a_retry_and_changes_no_byte(
    fresh: Serving, whole: Ended, dataset: str, validation: str
) -> None:
    async with fresh() as other:
        kills = [asyncio.create_task(kill_next(actor)) for actor in ACTORS]
        disturbed = await other.run(dataset, settings(**WHOLE), validation)
        await asyncio.gather(*kills)
    assert disturbed.state == "SUCCEEDED", disturbed.training_set.lifecycle.error
    # Nothing was found but the second of two equal clips: this service has a cache of its own.
    report = disturbed.training_set.report
    assert (report.cache_hits, report.cache_misses) == (1, 8)
    assert contents(disturbed) == contents(whole)
    assert disturbed.lines == whole.lines


@pytest.mark.soak
async def test_ten_kills_of_each_actor_change_no_byte(preprocess: Preprocess, fresh: Serving, tmp_path: Path) -> None:
    entries: dict[str, bytes | Path | str] = {}
    for index in range(40):
        name = f"{index:02}.mp4"
        entries[name] = write_clip(tmp_path / name, numbered(17, clip=index))
        entries[f"{index:02}.txt"] = f"card {index}"
    many = await preprocess.dataset(entries)
    undisturbed = await preprocess.run(many, settings())
    async with fresh() as other:
        name = (await other.client.create_training_set(many, settings())).name
        captions = [sample.caption for sample in undisturbed.samples]
        killing = asyncio.gather(kill_encoders(other, name, captions), kill_fitters())
        disturbed = await other.end(name)
        assert killing.done(), "the set was made before every kill had come"
        await killing
    assert [line.description for line in disturbed.lines] == [line.description for line in undisturbed.lines]
    assert contents(disturbed) == contents(undisturbed)


async def kill_encoders(service: Preprocess, name: str, captions: list[str]) -> None:
    """Ten that embed captions, and ten that encode clips; what is made between the kills is what they are spread by."""
    killed: set[int] = set()
    revision = resolve_model(service.runtime.settings.model).revision
    keys = [ENTRIES + prompt_key(caption, revision) for caption in captions]
    while len(killed) < 10:
        # Nobody is told when a caption is recorded.
        await asyncio.sleep(0.02)
        if len(await service.runtime.blobs.unknown(keys)) < len(keys) - 3 * len(killed):
            killed.add(await kill_next("Encoder", killed))
    async for _, event in service.client.watch_training_set(name):
        if event.stage == Stage.STAGE_ENCODE and event.progress.completed > 3 * (len(killed) - 10):
            # One that is at work, and the next while it loads.
            killed.add(await kill_next("Encoder", killed))
            killed.add(await kill_next("Encoder", killed))
        if len(killed) == 20:
            return


async def kill_fitters() -> None:
    """Ten, each at some time of its life: while it starts, fits or waits."""
    moments = random.Random(0)
    killed: set[int] = set()
    while len(killed) < 10:
        killed.add(await kill_next("ClipFitter", killed))
        await asyncio.sleep(moments.uniform(0, 10))


async def test_three_kills_skip_the_clip(fresh: Serving, four: str, preprocess: Preprocess, tmp_path: Path) -> None:
    alone = await preprocess.dataset({"a.mp4": write_clip(tmp_path / "a.mp4", numbered(60, size=(1280, 720)))})
    async with fresh() as other:
        running = asyncio.create_task(other.run(alone, settings(fitOnly=True, training={"frameCount": 57})))
        killed: set[int] = set()
        while len(killed) < 3:
            killed.add(await kill_next("ClipFitter.fit", killed))
        ended = await running
    assert ended.reason == "NO_USABLE_CLIPS"
    assert ended.reasons("a.mp4") == ["ACTOR_KILLED"]
    assert "three times" in ended.clip_lines[0].description


@pytest.mark.parametrize(
    ("limit", "text"), [({"clip_seconds": 0.001}, "longer than"), ({"clip_memory_bytes": 2**21}, "more memory")]
)
async def test_a_clip_that_takes_too_much_is_skipped(
    limit: dict[str, float], text: str, fresh: Serving, four: str
) -> None:
    async with fresh(**limit) as other:
        ended = await other.run(four, settings(fitOnly=True, **NINE))
    assert ended.reason == "NO_USABLE_CLIPS"
    assert [ended.reasons(f"{index}.mp4") for index in range(4)] == [["ACTOR_KILLED"]] * 4
    assert all(text in line.description for line in ended.clip_lines)


async def test_what_a_clip_did_to_a_worker_is_not_remembered(fresh: Serving, four: str) -> None:
    async with fresh(clip_memory_bytes=2**21) as other:
        assert (await other.run(four, settings(fitOnly=True, **NINE))).state == "FAILED"
    async with fresh() as other:
        assert (await other.run(four, settings(fitOnly=True, **NINE))).state == "SUCCEEDED"


async def test_an_interrupted_set_goes_on_where_it_was(fresh: Serving, four: str) -> None:
    async with fresh() as first:
        made = await first.client.create_training_set(four, settings(fitOnly=True, **NINE))
    async with fresh() as second:
        ended = await second.end(made.name)
    assert ended.state == "SUCCEEDED"
    assert len(ended.samples) == len(ended.clip_lines) == 4
    told = [event.report_line for event in ended.events if event.WhichOneof("detail") == "report_line"]
    assert told == ended.lines


async def test_a_dataset_deleted_while_it_is_read_is_named(
    preprocess: Preprocess, ingest: Ingest, tmp_path: Path
) -> None:
    name = await preprocess.dataset({"a.mp4": write_clip(tmp_path / "a.mp4", numbered(9)), "a.txt": "soon gone"})
    made = await preprocess.client.create_training_set(name, settings(**NINE))
    async for _, event in preprocess.client.watch_training_set(made.name):
        if event.WhichOneof("detail") == "progress":
            break
    await ingest.client.delete_dataset(name)
    ended = await preprocess.end(made.name)
    assert (ended.state, ended.reason) == ("FAILED", "RESOURCE_NOT_FOUND")
    assert ended.message == f"{name} does not exist."


async def test_no_actor_outlives_a_cancelled_set(preprocess: Preprocess, four: str) -> None:
    made = await preprocess.client.create_training_set(four, settings(triggerPhrase="cancelled", **NINE))
    async with asyncio.timeout(60):
        await appeared("Encoder")
        await preprocess.client.cancel_training_set(made.name)
        ended = await preprocess.end(made.name)
        for actor in ACTORS:
            await all_gone(actor)
    assert ended.training_set.lifecycle.state == State.STATE_CANCELLED


async def test_sweeping_deletes_what_no_set_needs(preprocess: Preprocess, four: str) -> None:
    objects = preprocess.runtime.objects
    unclaimed = await objects.put_content("preprocess", b"stored and never recorded", "text/plain")
    one = await preprocess.run(four, settings(fitOnly=True, **NINE))
    two = await preprocess.run(four, settings(fitOnly=True, **NINE))
    assert one.samples[0].clip_preview == two.samples[0].clip_preview
    await preprocess.client.delete_training_set(one.training_set.name)
    await Cache(preprocess.runtime.blobs, objects).sweep(keep_seconds=0)
    assert not await objects.exists(unclaimed.key)
    assert not await objects.exists(one.training_set.contact_sheet.key)
    for blob in (two.training_set.contact_sheet, *(sample.clip_preview for sample in two.samples)):
        assert await objects.exists(blob.key)
