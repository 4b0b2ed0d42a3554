"""A running Preprocess service beside Ingest, with real object store, real Ray and the tiny model; one a session."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.runtime.cluster import Cluster
from services.runtime.objects import StoreAddress
from tests.services.ingest.conftest import hostile, ingest
from tests.services.ingest.running import Ingest
from tests.services.preprocess.running import Preprocess, serving

__all__ = ["hostile", "ingest"]


@pytest.fixture(scope="session")
async def preprocess(
    tmp_path_factory: pytest.TempPathFactory,
    object_store: StoreAddress,
    ray_cluster: Cluster,
    ingest: Ingest,
    tiny_model: Path,
) -> AsyncIterator[Preprocess]:
    state_dir = tmp_path_factory.mktemp("preprocess")
    async with serving(state_dir, object_store, ray_cluster, ingest, tiny_model) as running:
        yield running
