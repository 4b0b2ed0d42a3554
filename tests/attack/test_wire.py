"""Raw bytes to a server of its own process: each assault once, with a fixed seed; the soak has them all for longer."""

import random
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from ltxtrain.v1 import train_pb2, train_pb2_grpc

from tests.attack.assaults import ASSAULTS
from tests.attack.target import Target, running_target

SEED = 20
PATIENCE_SECONDS = 30.0
LOG_BYTES = 300
# What allocators keep of what they once had; a leak of a few kilobytes a call is more, in 15,000 calls.
GROWTH_BYTES = 100 * 2**20


@pytest.fixture(scope="module")
async def target(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Target]:
    async with running_target(tmp_path_factory.mktemp("target")) as target:
        await serves(target)
        yield target


async def serves(target: Target) -> None:
    """Raises AssertionError or AioRpcError unless a caller with a token is answered."""
    assert not target.has_ended
    metadata = (("authorization", f"Bearer {target.token}"),)
    async with grpc.aio.insecure_channel(target.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = train_pb2_grpc.TrainServiceStub(channel)
        await stub.ListJobs(train_pb2.ListJobsRequest(), metadata=metadata, timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize("name", sorted(ASSAULTS))
async def test_a_server_goes_on(target: Target, name: str) -> None:
    before = (target.resident_bytes, target.handles, target.log_bytes)
    calls = await ASSAULTS[name](target.address, random.Random(SEED))
    await serves(target)
    # Handles of what was hung up are closed soon after; each of them would stay if it leaked.
    assert target.handles <= before[1] + 50
    assert target.resident_bytes - before[0] <= GROWTH_BYTES
    assert target.log_bytes - before[2] <= LOG_BYTES * max(calls, 5)
    # Lines of JSON alone: gRPC's C core would write its own, as many as there are calls.
    assert all(line.startswith("{") for line in target.log_path.read_text().splitlines())
