from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from ltxtrain.v1.preprocess_pb2 import Sample

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.services.train.running import COMPARED, Trainer, running


@pytest.fixture(scope="module")
async def trainer(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, object_store: StoreAddress, ray_cluster: Cluster
) -> AsyncIterator[Trainer]:
    """For one training at a time."""
    async with running(tmp_path_factory.mktemp("train"), tiny_model, object_store, ray_cluster) as trainer:
        yield trainer


@pytest.fixture(scope="module")
async def samples(trainer: Trainer) -> Sequence[Sample]:
    return await trainer.samples(4)


@pytest.fixture(scope="module")
async def undisturbed(trainer: Trainer, samples: Sequence[Sample]) -> str:
    """A job that nothing happened to."""
    job = await trainer.start(samples, COMPARED)
    ended = await trainer.ended(job)
    assert ended.output.lora_file, ended.lifecycle.error
    return job
