"""A running Ingest service on loopback, with a real object store and a real Ray; one a session."""

import os
import secrets
from collections.abc import AsyncIterator, Iterator

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from services.local.embedded import EmbeddedStore
from services.local.ray_head import RayHead
from services.runtime.cluster import Cluster
from services.runtime.objects import StoreAddress
from tests.services.ingest import web
from tests.services.ingest.running import Ingest, serving
from tests.services.ingest.web import Web


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreAddress]:
    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store:
        yield store.address


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    head = RayHead(tmp_path_factory.mktemp("ray"), num_cpus=2)
    head.token = os.environ["RAY_AUTH_TOKEN"]
    with head:
        yield Cluster.attach(head.address, head.token)


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
