"""A far side and an object host for each test, in the session's event loop."""

from collections.abc import AsyncIterator

import pytest
from ltxtrain_client import IngestClient, TrainClient, connect

from tests.clients.commands import Ltxtrain
from tests.clients.far_side import FarSide, serving
from tests.clients.object_host import ObjectHost, hosting


@pytest.fixture
async def store() -> AsyncIterator[ObjectHost]:
    async with hosting() as host:
        yield host


@pytest.fixture
async def far(store: ObjectHost) -> AsyncIterator[FarSide]:
    far = FarSide()
    far.store = store.url
    far.objects = store.objects
    async with serving(far):
        yield far


@pytest.fixture
async def train(far: FarSide) -> AsyncIterator[TrainClient]:
    async with connect(far.address) as channel:
        yield TrainClient(channel)


@pytest.fixture
async def ingest(far: FarSide) -> AsyncIterator[IngestClient]:
    async with connect(far.address) as channel:
        yield IngestClient(channel)


@pytest.fixture
def ltxtrain(far: FarSide) -> Ltxtrain:
    return Ltxtrain(far)
