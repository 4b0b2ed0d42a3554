"""Whatever is killed, the job ends with the bytes of one that nothing happened to."""

import random
from pathlib import Path

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.work_pb2 import State

from ltxtrain_services.local.up import Suite
from tests import processes
from tests.suite.conftest import Clients, files_of, finished, follow, submit
from tests.suite.trainings import COMPARED, assert_each_step_once, lora, reached, start

# Minutes long on two cores.
pytestmark = pytest.mark.soak

STEPS = 100
SOAK_STEPS = 200
SOAK_KILLS = 20


async def kill(suite: Suite, clients: Clients, job: str, what: str, choose: random.Random) -> None:
    """SIGKILL to a part of a suite that trains a job."""
    match what:
        case "actor":
            victim = choose.choice(await running(clients, job, processes.TRAIN_ACTOR))
        case "worker":
            victim = choose.choice(await running(clients, job, processes.RAY_WORKER))
        case "head":
            victim = suite.ray.pid
        case _:
            victim = suite.pids[what]
    processes.kill(victim)
    await processes.gone(victim)


async def running(clients: Clients, job: str, title: str) -> list[int]:
    """The processes of a title, as soon as there is one: what was killed before may be about to start again."""
    async for _ in clients.train.watch_job(job):
        if found := processes.find(title):
            return found
    raise AssertionError(f"{job} ended: {await clients.train.get_job(job)}")


async def test_a_job_whose_service_and_actor_are_killed_gives_the_same_lora(
    suite: Suite, clients: Clients, ingested: str, undisturbed: str, tmp_path: Path
) -> None:
    choose = random.Random(6)
    job = await start(clients, ingested, COMPARED)
    for what, earliest in (("train", 22), ("actor", 55)):
        await reached(clients, job, earliest + choose.randrange(20))
        await kill(suite, clients, job, what, choose)
    assert await lora(clients, job, tmp_path) == await lora(clients, undisturbed, tmp_path)
    await assert_each_step_once(clients, job, STEPS, tmp_path)


async def test_an_undisturbed_job_tells_each_step_once(clients: Clients, undisturbed: str, tmp_path: Path) -> None:
    await assert_each_step_once(clients, undisturbed, STEPS, tmp_path)
    losses = [
        event.train_metrics.held_out_loss
        for _, event in await follow(clients, undisturbed)
        if event.train_metrics.HasField("held_out_loss")
    ]
    assert len(losses) == 1 and losses[0] > 0


async def test_previews_change_no_byte_of_the_lora(
    clients: Clients, clips_zip: Path, opening: Path, undisturbed: str, tmp_path: Path
) -> None:
    job = (await submit(clients, clips_zip, validation=opening, options=COMPARED | {"preview_interval": 50})).name
    with_previews = await lora(clients, job, tmp_path)
    previewed = {
        item.step for item in (await files_of(clients, job)).values() if item.kind == Artifact.KIND_VALIDATION_VIDEO
    }
    assert previewed == {50, 100}
    assert with_previews == await lora(clients, undisturbed, tmp_path)


async def test_a_cancelled_job_stops_and_keeps_its_step_and_its_previews(
    clients: Clients, clips_zip: Path, opening: Path, tmp_path: Path
) -> None:
    options = COMPARED | {"preview_interval": 20}
    job = (await submit(clients, clips_zip, validation=opening, options=options)).name
    await reached(clients, job, 23)
    told = await clients.train.cancel_job(job)
    assert told.lifecycle.state in (State.STATE_CANCELLING, State.STATE_CANCELLED)
    events = [event for _, event in await follow(clients, job)]
    await processes.none_left(processes.TRAIN_ACTOR)
    ended = await clients.train.get_job(job)
    assert ended.lifecycle.state == State.STATE_CANCELLED and ended.billable_units == 0
    files = await files_of(clients, job)
    kept = ended.output.lora_file.rpartition("/")[2]
    # A step, not a checkpoint's interval.
    assert files[kept].step == ended.checkpoint_step >= 23
    assert max(event.train_metrics.step for event in events) == ended.checkpoint_step
    previews = [item for item in files.values() if item.kind == Artifact.KIND_VALIDATION_VIDEO]
    assert {item.step for item in previews} == {20}
    for name in (ended.output.lora_file, *(item.name for item in previews)):
        assert (await clients.train.download(name, tmp_path / name.rpartition("/")[2])).stat().st_size > 0
    again = await clients.train.cancel_job(job)
    assert again == ended


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_twenty_kills_at_random_steps(suite: Suite, clients: Clients, ingested: str, tmp_path: Path) -> None:
    options = COMPARED | {"checkpoint_interval": 10}
    whole = await start(clients, ingested, options, number_of_steps=SOAK_STEPS)
    expected = await lora(clients, whole, tmp_path)
    choose = random.Random(20)
    victims = choose.choices(("train", "actor", "worker"), k=SOAK_KILLS - 1)
    victims.insert(choose.randrange(SOAK_KILLS), "head")
    job = await start(clients, ingested, options, number_of_steps=SOAK_STEPS)
    for step, what in zip(sorted(choose.sample(range(1, SOAK_STEPS - 5), SOAK_KILLS)), victims, strict=True):
        await reached(clients, job, step)
        await kill(suite, clients, job, what, choose)
    assert await lora(clients, job, tmp_path) == expected
    await assert_each_step_once(clients, job, SOAK_STEPS, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(3600)
async def test_previews_every_ten_steps_change_no_byte_of_the_lora(
    clients: Clients, clips_zip: Path, opening: Path, undisturbed: str, tmp_path: Path
) -> None:
    job = (await submit(clients, clips_zip, validation=opening, options=COMPARED | {"preview_interval": 10})).name
    await finished(clients, job)
    assert await lora(clients, job, tmp_path) == await lora(clients, undisturbed, tmp_path)
