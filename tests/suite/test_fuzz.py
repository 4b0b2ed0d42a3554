"""Random requests over every call of the three services: no INTERNAL, no hang, no process lost, no memory kept."""

import asyncio
import hashlib
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2
from grpc_status import rpc_status
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import CreateUploadRequest, CreateUploadResponse
from ltxtrain_client import IngestClient, NotFound, PreprocessClient, TrainClient, connect
from ltxtrain_client.channel import Credentials

from ltxtrain_services.local.up import Suite
from ltxtrain_services.runtime.server import MAX_REQUEST_BYTES
from tests.attack.worst_values import WorstValues
from tests.suite.random_requests import PAYLOADS, RandomRequests, Rpc, every_rpc

WORKERS = 8
# A watch is silent for 15 s at most, and no other call takes so long.
HANG_SECONDS = 30.0
# What is cancelled waits a minute at most for the end of what it started elsewhere.
END_SECONDS = 120.0
NO_TOKEN = Credentials()
# Messages of a stream that are read before it is left.
MESSAGES = 20
GROWTH = 1.1
REFUSALS = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.ALREADY_EXISTS,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
REASONS = {name.removeprefix("ERROR_REASON_") for name in ErrorReason.DESCRIPTOR.values_by_name}
BY_SHA256 = {hashlib.sha256(payload).hexdigest(): payload for payload in PAYLOADS}


class Fuzz:
    """One seeded run against running services."""

    def __init__(
        self,
        channels: dict[str, grpc.aio.Channel],
        http: aiohttp.ClientSession,
        source: RandomRequests,
        metadata: tuple[tuple[str, str], ...] = (),
        allowed: frozenset[grpc.StatusCode] = REFUSALS,
    ) -> None:
        self._channels = channels
        self._http = http
        self.source = source
        self._metadata = metadata
        self._allowed = allowed
        self._rounds = self.source.rounds()
        self.answered: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Send `count` requests, some at a time. Raises AssertionError with the first request answered badly."""
        left = iter(range(count))

        async def work() -> None:
            for _ in left:
                rpc = next(self._rounds)
                await self._send(rpc, self.source.request(rpc))

        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())

    def granted(self) -> dict[str, int]:
        """How often each call was granted, by its path."""
        return {answer.removesuffix(" OK"): times for answer, times in self.answered.items() if answer.endswith(" OK")}

    async def _send(self, rpc: Rpc, request: Message) -> None:
        # A hang is told with the request, so it is this clock that ends the call, not the call's own deadline.
        try:
            async with asyncio.timeout(HANG_SECONDS):
                await (self._watch(rpc, request) if rpc.streams else self._call(rpc, request))
        except TimeoutError:
            raise AssertionError(f"{rpc.path} hangs\n{_short(request)}") from None
        except grpc.aio.AioRpcError as error:
            # gRPC itself refuses what is too large, unread and without our details.
            unread = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and request.ByteSize() > MAX_REQUEST_BYTES
            problem = None if unread else _problem(error, self._allowed)
            assert problem is None, f"{rpc.path}: {problem}: {error.details()}\n{_short(request)}"
            self.answered[f"{rpc.path} {error.code().name}"] += 1
        else:
            self.answered[f"{rpc.path} OK"] += 1

    async def _call(self, rpc: Rpc, request: Message) -> None:
        call = self._channels[rpc.service].unary_unary(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        response = await call(request, metadata=self._metadata)
        self.source.note(response)
        if isinstance(request, CreateUploadRequest) and isinstance(response, CreateUploadResponse) and response.put_url:
            await self._put(response.put_url, BY_SHA256.get(request.sha256))

    async def _watch(self, rpc: Rpc, request: Message) -> None:
        open_stream = self._channels[rpc.service].unary_stream(
            rpc.path, request_serializer=rpc.request.SerializeToString, response_deserializer=rpc.response.FromString
        )
        stream = open_stream(request, metadata=self._metadata)
        try:
            for _ in range(MESSAGES):
                response: Any = await stream.read()
                # One without an event is a heartbeat, or says that a job is gone: the feed of all jobs never ends.
                if response is grpc.aio.EOF or not response.HasField("event"):
                    return
        finally:
            stream.cancel()

    async def _put(self, url: str, payload: bytes | None) -> None:
        if payload is not None:
            async with self._http.put(url, data=payload) as response:
                assert response.status == 200, await response.text()


def _problem(error: grpc.aio.AioRpcError, allowed: frozenset[grpc.StatusCode] = REFUSALS) -> str | None:
    """The fault of an error as an answer; None for a proper refusal."""
    if error.code() not in allowed:
        return error.code().name
    sent = rpc_status.from_call(error)  # type: ignore[arg-type] # it reads the metadata alone
    info = error_details_pb2.ErrorInfo()
    if sent is None or not sent.details or not sent.details[0].Unpack(info):
        return f"{error.code().name} without an ErrorInfo"
    if info.domain != "ltxtrain" or info.reason not in REASONS:
        return f"{error.code().name} for the unknown reason {info.domain} {info.reason}"
    return None if info.reason != "INTERNAL" else "INTERNAL"


def _short(request: Message) -> str:
    text = str(request)
    return text if len(text) < 2_000 else f"{text[:2_000]}…"


def resident_bytes(pids: dict[str, int]) -> dict[str, int]:
    """Memory of each process."""
    sizes = {}
    for name, pid in pids.items():
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                sizes[name] = int(line.split()[1]) * 1024
    return sizes


async def check_what_was_made(suite: Suite, source: RandomRequests, credentials: Credentials = NO_TOKEN) -> None:
    """Every job, training set and dataset of the run ends, and none with INTERNAL; then they are gone."""
    async with (
        connect(suite.train_address, credentials) as train,
        connect(suite.preprocess_address, credentials) as preprocess,
        connect(suite.ingest_address, credentials) as ingest,
    ):
        jobs, sets, datasets = TrainClient(train), PreprocessClient(preprocess), IngestClient(ingest)
        kinds = (
            ("jobs", jobs.cancel_job, jobs.watch_job, jobs.get_job, jobs.delete_job),
            (
                "trainingSets",
                sets.cancel_training_set,
                sets.watch_training_set,
                sets.get_training_set,
                sets.delete_training_set,
            ),
            (
                "datasets",
                datasets.cancel_dataset,
                datasets.watch_dataset,
                datasets.get_dataset,
                datasets.delete_dataset,
            ),
        )
        for collection, cancel, watch, get, delete in kinds:
            for name in source.made(collection):
                try:
                    await cancel(name)
                except NotFound:  # a random request has deleted it
                    continue
                async with asyncio.timeout(END_SECONDS):
                    async for _ in watch(name):
                        pass
                lifecycle = (await get(name)).lifecycle
                assert lifecycle.error.code not in (code_pb2.INTERNAL, code_pb2.UNKNOWN), f"{name}: {lifecycle.error}"
                await delete(name)


async def fuzz(suite: Suite, count: int, seed: int) -> dict[str, float]:
    """Growth of each service from a quarter of the requests to the end."""
    pids = dict(suite.pids)
    addresses = {
        "train": suite.train_address,
        "preprocess": suite.preprocess_address,
        "ingest": suite.ingest_address,
    }
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for name, address in addresses.items()
        }
        run = Fuzz(channels, await stack.enter_async_context(aiohttp.ClientSession()), RandomRequests(seed))
        await run.run(count // 4)
        before = resident_bytes(pids)
        await run.run(count - count // 4)
        after = resident_bytes(pids)
        # A run that is refused everything has tried nothing. What is granted hangs on which answers came before which,
        # so that a slow machine may need some more.
        creates = {rpc.path for rpc in every_rpc() if rpc.method.name.startswith("Create")}
        sent = count
        while not run.granted().keys() >= creates and sent < 10 * count:
            await run.run(count // 4)
            sent += count // 4
        await check_what_was_made(suite, run.source)
    assert suite.pids == pids, "a service has ended and was started again"
    assert run.answered.total() == sent
    assert {answer.split(" ")[0] for answer in run.answered} == {rpc.path for rpc in every_rpc()}
    granted = run.granted()
    assert granted.keys() >= creates
    assert sum(granted.values()) > sent / 5
    return {name: after[name] / before[name] for name in after}


async def test_random_requests(suite: Suite) -> None:
    await fuzz(suite, 200, seed=8)


async def test_the_worst_value_of_a_field(suite: Suite) -> None:
    """Some of the cases, whose seed is fixed; the soak of attacks has them all, again and again."""
    pids = dict(suite.pids)
    addresses = {"train": suite.train_address, "preprocess": suite.preprocess_address, "ingest": suite.ingest_address}
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address))
            for name, address in addresses.items()
        }
        run = Fuzz(channels, await stack.enter_async_context(aiohttp.ClientSession()), WorstValues(seed=20))
        await run.run(200)
        await check_what_was_made(suite, run.source)
    assert suite.pids == pids and run.answered.total() == 200


@pytest.mark.soak
async def test_many_random_requests(suite: Suite) -> None:
    grown = await fuzz(suite, 2_000, seed=2_000)
    assert max(grown.values()) <= GROWTH, grown
