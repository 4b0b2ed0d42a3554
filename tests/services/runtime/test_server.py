import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from ltxtrain.v1 import train_pb2, train_pb2_grpc
from ltxtrain_client import TrainClient

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.server import MAX_REQUEST_BYTES, OPTIONS, Server, stop_event
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.upstream import connect_service, passing_errors_on
from ltxtrain_services.runtime.work import Retryable
from tests.services.runtime.front import FULL_NAME, Front, detail_of, info_of, serving

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def guarded(tmp_path: Path) -> Settings:
    """Settings with tokens, so that what is exempt shows."""
    tokens = tmp_path / "tokens"
    tokens.write_text("ann ann-token\n")
    return Settings(tokens_file=tokens)


@pytest.fixture
async def front(database: Database) -> AsyncIterator[Front]:
    async with serving(database, Settings(max_watches=2, max_calls=2, grace_seconds=5.0)) as front:
        yield front


async def health(front: Front, service: str = "") -> Any:
    stub: Any = health_pb2_grpc.HealthStub(front.stub().channel)
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


def reflection_call(front: Front, token: str = "") -> Any:
    """A call without a message: where one meets the end of a refused call, grpcio's client calls that INTERNAL."""
    stub = front.stub(token=token)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub
    return reflection(stub.channel).ServerReflectionInfo(metadata=stub.metadata)


async def listed(front: Front, token: str = "") -> list[str]:
    calls = reflection_call(front, token)
    await calls.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    await calls.done_writing()
    return [service.name async for response in calls for service in response.list_services_response.service]


async def test_health_is_told_without_a_token_for_each_service(database: Database, guarded: Settings) -> None:
    async with serving(database, guarded) as front:
        assert [await health(front, name) for name in ("", FULL_NAME)] == [SERVING, SERVING]
        await front.server.set_ready(False)
        assert [await health(front, name) for name in ("", FULL_NAME)] == [NOT_SERVING, NOT_SERVING]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(front, "ltxtrain.v1.Nothing")
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_server_is_not_ready_before_it_is_said_to_be() -> None:
    server = Server(Settings(), [FULL_NAME])
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
    assert answer.status == NOT_SERVING
    await server.grpc.stop(None)


async def test_reflection_is_off_by_default(front: Front) -> None:
    assert await reflection_call(front).code() == grpc.StatusCode.UNIMPLEMENTED


async def test_reflection_is_served_in_both_versions(database: Database) -> None:
    async with serving(database, Settings(reflection=True)) as front:
        assert {"grpc.reflection.v1.ServerReflection", FULL_NAME} <= set(await listed(front))
        call: Any = front.stub().channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            reflection_pb2.ServerReflectionRequest.SerializeToString,
            reflection_pb2.ServerReflectionResponse.FromString,
        )
        calls = call()
        for symbol in (FULL_NAME, "grpc.reflection.v1.ServerReflection", "ltxtrain.v1.ErrorDetails"):
            await calls.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol))
            described = (await calls.read()).file_descriptor_response.file_descriptor_proto
            assert symbol.rpartition(".")[2].encode() in described[0]
        await calls.done_writing()


async def test_reflection_asks_for_a_token(database: Database, guarded: Settings) -> None:
    settings = Settings(tokens_file=guarded.tokens_file, reflection=True)
    async with serving(database, settings) as front:
        assert FULL_NAME in await listed(front, "ann-token")
        assert await reflection_call(front).code() == grpc.StatusCode.UNAUTHENTICATED


async def test_an_address_that_is_taken_is_refused(front: Front) -> None:
    with pytest.raises(SettingsError, match="taken"):
        await Server(Settings(bind=front.address), [FULL_NAME]).start()


async def test_an_address_open_to_everybody_is_refused() -> None:
    with pytest.raises(SettingsError, match="open to other machines"):
        await Server(Settings(bind="0.0.0.0:0"), [FULL_NAME]).start()


async def test_a_message_above_the_limit_is_refused(front: Front) -> None:
    stub = front.stub()
    below = {"trigger_phrase": "x" * (MAX_REQUEST_BYTES - 1000)}
    assert (await stub.create(spec={"extend_prefix": below})).name
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.create(spec={"extend_prefix": {"trigger_phrase": "x" * MAX_REQUEST_BYTES}})
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await stub.list(page_size=1)


# The short form has everything ten times as fast; gRPC sends no two pings within a second.
@pytest.mark.parametrize("speed", [10, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
async def test_pings_on_a_quiet_stream_are_borne(
    database: Database, speed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC's servers allow one ping in five minutes, and end a connection that has three more."""
    faster = [(name, value // speed if "ping_interval" in name else value) for name, value in OPTIONS]
    monkeypatch.setattr("ltxtrain_services.runtime.server.OPTIONS", faster)
    pinging = [("grpc.keepalive_time_ms", 10_000 // speed), ("grpc.http2.max_pings_without_data", 0)]
    quiet_seconds = 360 if speed == 1 else 4
    async with (
        serving(database, Settings(), heartbeat_seconds=3600) as front,
        grpc.aio.insecure_channel(front.address, options=pinging) as channel,
    ):
        job = await front.stub().create()
        watch: Any = train_pb2_grpc.TrainServiceStub(channel).WatchJob(train_pb2.WatchJobRequest(name=job.name))
        assert (await watch.read()).sequence == 1
        news = asyncio.create_task(watch.read())
        # What comes within this time is the end of the stream.
        assert await asyncio.wait({news}, timeout=quiet_seconds) == (set(), {news})
        await front.book.finish(job.name)
        assert (await news).sequence == 2


async def test_a_caller_has_so_many_watches_and_no_more(front: Front) -> None:
    stub = front.stub()
    job = await stub.create()
    open_ones = [stub.watch(job.name) for _ in range(2)]
    assert [(await watch.read()).sequence for watch in open_ones] == [1, 1]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.watch(job.name).read()
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (info_of(caught.value).reason, info_of(caught.value).metadata["limit"]) == ("QUEUE_FULL", "2")
    front.book.stream_ended.clear()
    open_ones[0].cancel()
    await front.book.stream_ended.wait()
    assert (await stub.watch(job.name).read()).sequence == 1


async def test_a_caller_has_so_many_calls_at_once_and_no_more(front: Front) -> None:
    release, entered = asyncio.Event(), asyncio.Semaphore(0)

    async def slow() -> None:
        entered.release()
        await release.wait()

    front.book.estimate = slow
    stub = front.stub()
    running = [asyncio.create_task(stub.estimate()) for _ in range(2)]
    for _ in running:
        await entered.acquire()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.list()
    assert (caught.value.code(), info_of(caught.value).reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
    assert detail_of(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert await health(front) == SERVING
    # A service tries again later: its work does not fail for it.
    async with connect_service(front.address, Settings()) as channel:
        with pytest.raises(Retryable):
            await passing_errors_on(TrainClient(channel).get_job("jobs/1"))
    release.set()
    await asyncio.gather(*running)
    assert await stub.list() == []


async def test_a_cancellation_by_nobody_who_calls_is_an_outage(front: Front) -> None:
    """Something that the call waited for was cancelled: whoever asked is told so, and did not cancel."""

    async def cancelled() -> None:
        waited_for = asyncio.get_running_loop().create_future()
        waited_for.cancel()
        await waited_for

    front.book.estimate = cancelled
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.stub().estimate()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert info_of(caught.value).reason == "STORE_UNAVAILABLE"


async def test_a_call_that_its_caller_left_counts_no_more(front: Front) -> None:
    entered, left = asyncio.Event(), asyncio.Semaphore(0)

    async def forever() -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.release()

    front.book.estimate = forever
    stub = front.stub()
    for _ in range(3):
        entered.clear()
        call = asyncio.create_task(stub.estimate())
        await entered.wait()
        call.cancel()
        await left.acquire()
    assert await stub.list() == []


async def test_sigterm_drains(front: Front) -> None:
    """NOT_SERVING first, then every watch ends with a reason, then running calls get their grace."""
    stub = front.stub()
    job = await stub.create()
    watches = [stub.watch(job.name) for _ in range(2)]
    assert [(await watch.read()).sequence for watch in watches] == [1, 1]
    release, entered = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        entered.set()
        await release.wait()

    front.book.estimate = slow
    running = asyncio.create_task(stub.estimate())
    await entered.wait()
    seen: list[Any] = []

    async def before_close() -> None:
        seen.append(await health(front))
        front.book.log.drain()

    stop = stop_event()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)
    stopping = asyncio.create_task(front.server.stop(before_close))
    for watch in watches:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while await watch.read():
                pass
        assert (caught.value.code(), info_of(caught.value).reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        assert detail_of(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
    assert seen == [NOT_SERVING]
    assert not running.done()
    release.set()
    await running
    await stopping


async def test_work_that_does_not_stop_does_not_keep_the_process(database: Database) -> None:
    async with serving(database, Settings(grace_seconds=0.05)) as front:
        await front.server.stop(asyncio.Event().wait)  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await front.stub().list()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
