"""Two workers train what one trains, and either may die."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ltxtrain_services.local.up import GRACE_SECONDS, Suite
from tests import processes
from tests.suite.conftest import Clients
from tests.suite.trainings import COMPARED, assert_each_step_once, loss_on_fixed_noise, reached, start

# Minutes long on two cores.
pytestmark = pytest.mark.soak


@pytest.fixture
async def two_trainers(suite: Suite, undisturbed: str) -> AsyncIterator[None]:
    """The Train service may use two CPU workers for as long as this lasts."""
    await restart(suite, {"LTXTRAIN_CPU_TRAINERS": "2"})
    yield
    await restart(suite, {})


async def restart(suite: Suite, environ: dict[str, str]) -> None:
    await asyncio.to_thread(suite.services["train"].stop, GRACE_SECONDS)
    suite.start_service("train", environ)
    await suite.wait_ready("train")


async def test_two_workers_train_what_one_trains_though_each_is_killed(
    suite: Suite,
    clients: Clients,
    ingested: str,
    undisturbed: str,
    two_trainers: None,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    job = await start(clients, ingested, COMPARED | {"gpu_count": 2})
    for step, rank in ((25, 1), (60, 0)):
        await reached(clients, job, step)
        actors = processes.find(processes.TRAIN_ACTOR)
        assert len(actors) == 2
        processes.kill(actors[rank])
        await processes.gone(actors[rank])
    alone, both = [await loss_on_fixed_noise(suite, clients, tiny_model, name, tmp_path) for name in (undisturbed, job)]
    untrained = await loss_on_fixed_noise(suite, clients, tiny_model, job, tmp_path, with_lora=False)
    assert both == pytest.approx(alone, rel=1e-4)
    assert abs(untrained - alone) > 1e-2 * alone
    await assert_each_step_once(clients, job, 100, tmp_path)
