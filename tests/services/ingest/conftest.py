"""A running Ingest service on loopback, with a real object store and a real Ray; one a session."""

from collections.abc import AsyncIterator

import pytest

from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import StoreAddress
from tests.services.ingest import web
from tests.services.ingest.running import Ingest, serving
from tests.services.ingest.web import Web


@pytest.fixture(scope="session")
async def hostile() -> AsyncIterator[Web]:
    """A web server whose address the service may fetch from."""
    async with web.running() as running:
        yield running


@pytest.fixture(scope="session")
async def ingest(
    tmp_path_factory: pytest.TempPathFactory, object_store: StoreAddress, ray_cluster: Cluster, hostile: Web
) -> AsyncIterator[Ingest]:
    async with serving(tmp_path_factory.mktemp("ingest"), object_store, ray_cluster, hostile) as running:
        yield running
