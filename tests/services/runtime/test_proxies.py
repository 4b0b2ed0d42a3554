"""Proxies of the environment: no service goes through one unless the operator says so."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health
from ltxtrain_client.channel import connect
from ltxtrain_client.errors import CallError
from ltxtrain_client.train import TrainClient

from ltxtrain_services.ingest.fetch import Fetcher
from ltxtrain_services.runtime import bucket
from ltxtrain_services.runtime.errors import ApiError
from ltxtrain_services.runtime.healthcheck import is_healthy
from ltxtrain_services.runtime.objects import ObjectStore, ObjectStoreUnavailable, StoreAddress
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.upstream import connect_service
from tests.services.ingest import web

ABSENT = "store.invalid"


class Proxy:
    """Writes down what it is asked for, and serves one page to whoever asks without a tunnel."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head.split(b"\r\n")[0].decode())
            writer.write(web.head(200, Content_Length=7) + b"proxied")
            await writer.drain()
        writer.close()


@pytest.fixture
async def proxy(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy that the environment names for everything, without an exception."""
    running = Proxy()
    server = await asyncio.start_server(running.serve, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    for scheme in ("http", "https", "grpc", "all"):
        monkeypatch.setenv(f"{scheme}_proxy", running.url)
        monkeypatch.setenv(f"{scheme}_PROXY".upper(), running.url)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    async with server:
        yield running


async def list_jobs(client: TrainClient) -> None:
    with pytest.raises(CallError):
        async with asyncio.timeout(30):
            [job async for job in client.list_jobs()]


async def test_services_reach_each_other_past_it(proxy: Proxy, tmp_path: Path) -> None:
    async with connect_service("train.invalid:7003", Settings(state_dir=tmp_path)) as channel:
        await list_jobs(TrainClient(channel))
    assert proxy.asked == []


async def test_a_persons_client_goes_through_it(proxy: Proxy) -> None:
    """The proxy of this module is one that gRPC would use."""
    async with connect("train.invalid:7003") as channel:
        await list_jobs(TrainClient(channel))
    assert any(line.startswith("CONNECT train.invalid:7003") for line in proxy.asked)


async def test_the_store_is_reached_past_it(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket._client, "__defaults__", (bucket.RETRY.new(total=0),))
    address = StoreAddress(
        endpoint=f"{ABSENT}:9000",
        public_endpoint=f"{ABSENT}:9000",
        access_key="key",
        secret_key="secret",
        region="us-east-1",
        bucket="clips",
        secure=False,
    )
    with pytest.raises(ObjectStoreUnavailable):
        await ObjectStore(address).ping()
    assert proxy.asked == []


async def test_health_is_checked_past_it(proxy: Proxy, tmp_path: Path) -> None:
    server = grpc.aio.server()
    servicer = health.HealthServicer()
    await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    assert await asyncio.to_thread(is_healthy, Settings(bind=f"127.0.0.1:{port}", state_dir=tmp_path))
    await server.stop(None)
    assert proxy.asked == []


async def fetched(settings: Settings, url: str, target: Path) -> bytes:
    with suppress(ApiError):
        async for _ in Fetcher(settings, first_backoff_seconds=0.001).fetch(url, target):
            pass
    return target.read_bytes()


async def test_ingest_fetches_past_it(proxy: Proxy, tmp_path: Path) -> None:
    assert await fetched(Settings(fetch_idle_seconds=5.0), f"http://{ABSENT}/a", tmp_path / "a") == b""
    assert proxy.asked == []


async def test_ingest_fetches_through_the_one_that_the_operator_names(proxy: Proxy, tmp_path: Path) -> None:
    settings = Settings(fetch_proxy=proxy.url, fetch_idle_seconds=5.0)
    assert await fetched(settings, f"http://{ABSENT}/a?b=c", tmp_path / "a") == b"proxied"
    assert proxy.asked == [f"GET http://{ABSENT}/a?b=c HTTP/1.1"]
    await fetched(settings, "https://clips.invalid/a", tmp_path / "a")
    assert proxy.asked[1].startswith("CONNECT clips.invalid:443")


async def test_what_a_url_shows_is_checked_all_the_same(proxy: Proxy, tmp_path: Path) -> None:
    settings = Settings(fetch_proxy=proxy.url)
    for url in ("http://127.0.0.1/a", "http://169.254.169.254/latest", "http://localhost/a", "http://a.invalid:22/"):
        assert await fetched(settings, url, tmp_path / "a") == b""
    assert proxy.asked == []


async def test_hosts_that_the_operator_lists_are_reached_past_his_proxy(proxy: Proxy, tmp_path: Path) -> None:
    async with web.running() as server:
        server.handlers["/a"] = web.plain(b"direct")
        settings = Settings(fetch_proxy=proxy.url, fetch_allow=(server.host,))
        assert await fetched(settings, server.url("/a"), tmp_path / "a") == b"direct"
    assert proxy.asked == []


@pytest.mark.parametrize("wrong", ["socks5://host:1080", "host:3128", "ftp://host"])
def test_a_proxy_of_another_kind_is_a_wrong_setting(wrong: str) -> None:
    with pytest.raises(SettingsError, match="LTXTRAIN_FETCH_PROXY"):
        Fetcher(Settings(fetch_proxy=wrong))


async def test_a_dead_proxy_ends_a_fetch_with_a_reason(tmp_path: Path) -> None:
    client = Fetcher(Settings(fetch_proxy="http://127.0.0.1:9"), first_backoff_seconds=0.001)
    with pytest.raises(ApiError, match="could not be reached"):
        async for _ in client.fetch("http://clips.invalid/a", tmp_path / "a"):
            pass
