"""Jobs of one (pretended) GPU: in order, none lost, whatever is killed."""

import itertools
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from ltxtrain.v1.work_pb2 import Event, Stage, State
from ltxtrain_client.errors import ResourceExhausted

from ltxtrain_services.local.up import SERVICES, Suite
from tests import processes
from tests.suite.conftest import Clients, connected, finished, follow, ingest
from tests.suite.trainings import lora, reached, start

# Minutes long on two cores.
pytestmark = pytest.mark.soak

LIMIT = 4
SOAK_JOBS = 20


@pytest.fixture(scope="module")
async def one_gpu(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> AsyncIterator[Suite]:
    """A suite whose Ray believes in a GPU, for which encoders and trainers wait in turn."""
    environ = {"LTXTRAIN_TORCH_THREADS": "1", "LTXTRAIN_MAX_QUEUED_JOBS": str(LIMIT)}
    async with Suite(
        tmp_path_factory.mktemp("one-gpu"),
        model=str(tiny_model),
        ports=dict.fromkeys(SERVICES, 0),
        num_cpus=2,
        num_gpus=1,
        environ=environ,
    ) as running:
        yield running


@pytest.fixture(scope="module")
async def queue_clients(one_gpu: Suite) -> AsyncIterator[Clients]:
    async with connected(one_gpu) as clients:
        yield clients


@pytest.fixture(scope="module")
async def dataset(queue_clients: Clients, clips_zip: Path) -> str:
    return await ingest(queue_clients, clips_zip)


async def kill_train(suite: Suite) -> None:
    pid = suite.pids["train"]
    processes.kill(pid)
    await processes.gone(pid)


async def trained_when(clients: Clients, job: str) -> tuple[int, int]:
    """Nanoseconds of a job's first and last event about training."""
    times = [event.time.ToNanoseconds() for _, event in await follow(clients, job) if event.stage == Stage.STAGE_TRAIN]
    return times[0], times[-1]


async def assert_one_after_the_other(clients: Clients, jobs: Sequence[str]) -> None:
    spans = [await trained_when(clients, job) for job in jobs]
    assert all(ended < begun for (_, ended), (begun, _) in itertools.pairwise(spans)), spans


def positions(events: Sequence[tuple[int, Event]]) -> list[int]:
    return [event.queue_position.ahead for _, event in events if event.HasField("queue_position")]


async def test_jobs_at_once_run_in_order_though_the_service_is_killed(
    one_gpu: Suite, queue_clients: Clients, dataset: str, tmp_path: Path
) -> None:
    clients = queue_clients
    options = {"checkpoint_interval": 20}
    # Two training sets: the second's captions are others.
    phrases = ["drifting shapes", "wandering shapes", "drifting shapes"]
    jobs = [await start(clients, dataset, options, trigger_phrase=phrase) for phrase in phrases]
    waiting = await start(clients, dataset, options)

    with pytest.raises(ResourceExhausted) as refused:
        await start(clients, dataset, options)
    assert refused.value.reason == "QUEUE_FULL"

    await reached(clients, jobs[0], 30)
    async for _, event in clients.train.watch_job(waiting):
        if event.HasField("queue_position"):
            break
    assert (await clients.train.get_job(waiting)).queue_position >= 2
    await clients.train.cancel_job(waiting)
    await follow(clients, waiting)
    cancelled = await clients.train.get_job(waiting)
    assert cancelled.lifecycle.state == State.STATE_CANCELLED and not cancelled.output.lora_file
    assert (await clients.train.get_job(jobs[0])).lifecycle.state == State.STATE_RUNNING

    await kill_train(one_gpu)
    ended = [await finished(clients, job) for job in jobs]
    await assert_one_after_the_other(clients, jobs)
    assert len({job.training_set for job in ended}) == 3
    ahead = [positions(await follow(clients, job)) for job in jobs]
    assert not ahead[0] or ahead[0][-1] == 0
    assert ahead[2][0] >= 1 and ahead[2][-1] == 0
    first, second, third = [await lora(clients, job, tmp_path) for job in jobs]
    assert first == third != second


@pytest.mark.soak
@pytest.mark.timeout(7200)
async def test_twenty_jobs_at_once_run_in_order_though_the_service_is_killed_twice(
    suite: Suite, clients: Clients, ingested: str
) -> None:
    choose = random.Random(20)
    names = [await start(clients, ingested, {"checkpoint_interval": 20}) for _ in range(SOAK_JOBS)]
    for place in sorted(choose.sample(range(SOAK_JOBS), 2)):
        await reached(clients, names[place], choose.randrange(1, 80))
        await kill_train(suite)
    for name in names:
        await finished(clients, name)
    await assert_one_after_the_other(clients, names)
