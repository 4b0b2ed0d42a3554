import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ltxtrain_client import Credentials, TrainClient, connect
from ltxtrain_client.errors import Unavailable

from ltxtrain_services.runtime.auth import server_credentials
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.healthcheck import is_healthy
from ltxtrain_services.runtime.settings import Settings, SettingsError
from tests.services.runtime.front import serving

Write = Callable[[str, trustme.Blob], Path]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, blob: trustme.Blob) -> Path:
        path = tmp_path / name
        path.write_bytes(blob.bytes())
        return path

    return write


@pytest.fixture
def tls(authority: trustme.CA, write: Write) -> Settings:
    cert = authority.issue_cert("127.0.0.1", "localhost")
    return Settings(
        tls_cert=write("server.pem", cert.cert_chain_pems[0]), tls_key=write("server.key", cert.private_key_pem)
    )


@pytest.fixture
def mutual(authority: trustme.CA, write: Write, tls: Settings) -> Settings:
    root = write("clients.pem", authority.cert_pem)
    return Settings(tls_cert=tls.tls_cert, tls_key=tls.tls_key, tls_client_root=root)


async def jobs_seen(address: str, credentials: Credentials) -> list[str]:
    async with connect(address, credentials, deadline_seconds=5.0) as channel:
        return [job.name async for job in TrainClient(channel).list_jobs()]


async def test_tls_is_spoken_to_whoever_trusts_its_authority(
    database: Database, tls: Settings, authority: trustme.CA, write: Write
) -> None:
    async with serving(database, tls) as front:
        root = write("root.pem", authority.cert_pem)
        assert await jobs_seen(front.address, Credentials(tls_root=root)) == []
        stranger = write("stranger.pem", trustme.CA().cert_pem)
        with pytest.raises(Unavailable):
            await jobs_seen(front.address, Credentials(tls_root=stranger))
        with pytest.raises(Unavailable):
            await jobs_seen(front.address, Credentials())


async def test_a_token_travels_over_tls(
    database: Database, tls: Settings, authority: trustme.CA, write: Write, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("ann ann-token\n")
    settings = Settings(tls_cert=tls.tls_cert, tls_key=tls.tls_key, tokens_file=tokens)
    root = write("root.pem", authority.cert_pem)
    async with serving(database, settings) as front:
        assert await jobs_seen(front.address, Credentials(token="ann-token", tls_root=root)) == []


async def test_mtls_admits_only_certificates_of_its_authority(
    database: Database, mutual: Settings, authority: trustme.CA, write: Write
) -> None:
    root = write("root.pem", authority.cert_pem)

    def shown(name: str, issuer: trustme.CA) -> Credentials:
        cert = issuer.issue_cert("client.example.com")
        return Credentials(
            tls_root=root,
            tls_cert=write(f"{name}.pem", cert.cert_chain_pems[0]),
            tls_key=write(f"{name}.key", cert.private_key_pem),
        )

    async with serving(database, mutual) as front:
        assert await jobs_seen(front.address, shown("known", authority)) == []
        for refused in (shown("unknown", trustme.CA()), Credentials(tls_root=root)):
            with pytest.raises(Unavailable):
                await jobs_seen(front.address, refused)


async def test_mtls_is_asked_of_health_too(database: Database, mutual: Settings, authority: trustme.CA) -> None:
    async with serving(database, mutual) as front:
        health: Any = health_pb2_grpc.HealthStub(front.stub(root_certificates=authority.cert_pem.bytes()).channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health.Check(health_pb2.HealthCheckRequest())
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_mtls_opens_an_address_of_the_network_and_tls_alone_does_not(tls: Settings, mutual: Settings) -> None:
    everywhere: dict[str, Any] = {"bind": "0.0.0.0:0", "tls_cert": tls.tls_cert, "tls_key": tls.tls_key}
    assert server_credentials(Settings(**everywhere, tls_client_root=mutual.tls_client_root)) is not None
    with pytest.raises(SettingsError, match="LTXTRAIN_TLS_CLIENT_ROOT"):
        server_credentials(Settings(**everywhere))


def test_half_of_a_pair_is_refused(tls: Settings, mutual: Settings) -> None:
    halves: list[dict[str, Any]] = [{"tls_cert": tls.tls_cert}, {"tls_key": tls.tls_key}]
    for half in halves:
        with pytest.raises(SettingsError, match="belong together"):
            server_credentials(Settings(**half))
    with pytest.raises(SettingsError, match="LTXTRAIN_TLS_CLIENT_ROOT needs"):
        server_credentials(Settings(tls_client_root=mutual.tls_client_root))


def test_files_that_are_no_certificates_are_named(tls: Settings, write: Write, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LTXTRAIN_TLS_CERT: No such file"):
        server_credentials(Settings(tls_cert=tmp_path / "absent", tls_key=tls.tls_key))
    other_key = write("other.key", trustme.CA().issue_cert("a.example.com").private_key_pem)
    rubbish = tmp_path / "rubbish"
    rubbish.write_text("rubbish")
    for cert, key in ((tls.tls_cert, other_key), (rubbish, tls.tls_key), (tls.tls_cert, rubbish)):
        with pytest.raises(SettingsError, match="no pair of PEM files"):
            server_credentials(Settings(tls_cert=cert, tls_key=key))


@pytest.mark.parametrize("kind", ["plain", "tls", "mutual", "mutual, no client itself"])
async def test_the_healthcheck_asks_the_service_by_its_own_certificate(
    database: Database, tls: Settings, mutual: Settings, write: Write, kind: str
) -> None:
    """Not only whether the port is open: a service that is not ready is not healthy."""
    stranger = Settings(
        tls_cert=tls.tls_cert, tls_key=tls.tls_key, tls_client_root=write("others.pem", trustme.CA().cert_pem)
    )
    settings = {"plain": Settings(), "tls": tls, "mutual": mutual}.get(kind, stranger)
    async with serving(database, settings) as front:
        of_this_service = dataclasses.replace(settings, bind=front.address)
        assert await asyncio.to_thread(is_healthy, of_this_service)
        await front.server.set_ready(False)
        assert await asyncio.to_thread(is_healthy, of_this_service) == (settings is stranger)
    assert not await asyncio.to_thread(is_healthy, of_this_service)
