"""A suite for other hosts: what it is told, and the door to its store."""

import asyncio
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import trustme
from ltxtrain_client.errors import TransferFailed
from ltxtrain_client.presigned import get_file, put_source
from ltxtrain_client.transfer import FileDigest
from ltxtrain_client.upload_source import FileSource

from ltxtrain_services.local import door
from ltxtrain_services.local.door import SuiteRefused, checked_settings, port_of, relaying, store_port, tls_context
from ltxtrain_services.local.ports import HOST, remembered_ports
from ltxtrain_services.local.ray_head import OPEN_PORTS
from ltxtrain_services.local.up import STORE, Suite, run
from ltxtrain_services.runtime.objects import ObjectStore, ObjectStoreUnavailable, StoreAddress
from ltxtrain_services.runtime.service import store_address
from ltxtrain_services.runtime.settings import Settings, SettingsError
from tests.loops import loop_kept

OPEN = "192.0.2.7"


@pytest.mark.parametrize(
    ("environ", "nodes", "said"),
    [
        ({}, False, "LTXTRAIN_TOKENS_FILE"),
        ({"LTXTRAIN_TOKENS_FILE": "tokens", "LTXTRAIN_GRACE_SECONDS": "soon"}, False, "LTXTRAIN_GRACE_SECONDS"),
        ({"LTXTRAIN_TOKENS_FILE": "tokens"}, True, "LTXTRAIN_RAY_TOKEN"),
        ({"LTXTRAIN_TOKENS_FILE": "tokens", "LTXTRAIN_TLS_CERT": "cert"}, False, "belong together"),
    ],
)
def test_a_suite_that_would_be_open_to_everybody_is_refused(environ: dict[str, str], nodes: bool, said: str) -> None:
    with pytest.raises(SuiteRefused, match=said):
        checked_settings(environ, OPEN, nodes=nodes)
    assert checked_settings({}, HOST, nodes=False) == Settings()
    allowed = {"LTXTRAIN_TOKENS_FILE": "tokens", "LTXTRAIN_RAY_TOKEN": "word"}
    assert checked_settings(allowed, OPEN, nodes=True).ray_token == "word"
    with pytest.raises(SuiteRefused, match="--host"):
        checked_settings(allowed, HOST, nodes=True)


def test_ports_are_those_of_the_addresses_that_clients_use() -> None:
    name = "LTXTRAIN_TRAIN"
    given = [f"{OPEN}:71", f"https://{OPEN}:72", "127.0.0.1:73", "localhost:74", "", OPEN]
    assert [port_of(name, 7003, OPEN, {name: address}) for address in given] == [71, 72, 73, 74, 7003, 7003]
    with pytest.raises(SuiteRefused, match=r"--host 192\.0\.2\.8"):
        port_of(name, 7003, HOST, {name: "192.0.2.8:7003"})


def test_the_stores_port_is_that_of_its_public_endpoint_unless_a_proxy_has_it() -> None:
    name = "LTXTRAIN_S3_PUBLIC_ENDPOINT"
    given = [f"https://{OPEN}:9443", f"{OPEN}:81", "https://files.example.com:443", ""]
    assert [store_port(OPEN, {name: address}) for address in given] == [9443, 81, None, None]


TOKENS = {"LTXTRAIN_TOKENS_FILE": "tokens", "LTXTRAIN_RAY_TOKEN": "word"}


@pytest.mark.parametrize("nodes", [False, True])
def test_services_are_told_addresses_that_others_reach(object_store: StoreAddress, tmp_path: Path, nodes: bool) -> None:
    suite = Suite(tmp_path, host=OPEN, nodes=nodes, ports={STORE: 9000}, environ=TOKENS)
    suite.store._address = object_store
    suite.ray._ports = OPEN_PORTS
    told = suite._common_settings()
    assert told["LTXTRAIN_INGEST"] == f"{OPEN}:7001"
    assert told["LTXTRAIN_S3_PUBLIC_ENDPOINT"] == f"http://{OPEN}:9000"
    # Ray's nodes get the second.
    assert told["LTXTRAIN_S3_ENDPOINT"] == (f"http://{OPEN}:9000" if nodes else object_store.endpoint)
    assert told["LTXTRAIN_RAY_ADDRESS"] == (f"{OPEN}:6379" if nodes else f"{HOST}:6379")
    assert told["LTXTRAIN_RAY_TOKEN"] == "word"
    proxied = {**TOKENS, "LTXTRAIN_S3_PUBLIC_ENDPOINT": "https://files.example.com"}
    suite = Suite(tmp_path, host=OPEN, nodes=nodes, ports={STORE: 9000}, environ=proxied)
    suite.store._address, suite.ray._ports = object_store, OPEN_PORTS
    assert suite._common_settings()["LTXTRAIN_S3_PUBLIC_ENDPOINT"] == "https://files.example.com"
    with pytest.raises(SuiteRefused, match=rf"{OPEN}:\d+ cannot be listened on"):
        suite._choose_ports()


@pytest.mark.usefixtures("restored_loop")
def test_up_refuses_what_would_be_open_before_it_starts_anything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, host=OPEN) == 1
    assert "LTXTRAIN_TOKENS_FILE" in capfd.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.fixture
def restored_loop() -> Iterator[None]:
    with loop_kept():
        yield


@pytest.fixture
async def secured(object_store: StoreAddress, tmp_path: Path) -> AsyncIterator[StoreAddress]:
    """The store behind a door with TLS, whose authority nobody else knows; its PEM file is tmp_path/root.pem."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "root.pem"))
    pair = authority.issue_cert(HOST)
    pair.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    pair.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    port = remembered_ports(tmp_path / "ports.json", ["door"])["door"]
    context = tls_context(Settings(tls_cert=tmp_path / "cert.pem", tls_key=tmp_path / "key.pem"))
    to = HOST, int(object_store.endpoint.rpartition(":")[2])
    async with relaying(HOST, port, to, context):
        url = f"https://{HOST}:{port}"
        yield dataclasses.replace(object_store, endpoint=url, public_endpoint=url)


async def test_services_and_nodes_reach_a_store_whose_authority_they_are_told(
    secured: StoreAddress, tmp_path: Path
) -> None:
    settings = Settings(s3_tls_root=tmp_path / "root.pem", s3_endpoint=secured.endpoint)
    store = ObjectStore(dataclasses.replace(secured, tls_root=store_address(settings).tls_root))
    data = os.urandom(3 * 2**20)
    await store.put_bytes("preprocess/door", data, "application/octet-stream")
    assert await store.get_bytes("preprocess/door") == data
    with pytest.raises(ObjectStoreUnavailable, match="does not answer"):
        await ObjectStore(secured).ping()
    for wrong in (tmp_path / "none.pem", tmp_path / "ports.json"):
        with pytest.raises(SettingsError, match="LTXTRAIN_S3_TLS_ROOT"):
            store_address(Settings(s3_tls_root=wrong))


async def test_a_client_trusts_the_suites_authority_for_files_too(
    secured: StoreAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltxtrain_client.presigned.MAX_FAILURES", 1)
    store, key = ObjectStore(secured), "ingest/door"
    put, get = [await sign(key, timedelta(minutes=5)) for sign in (store.presign_put, store.presign_get)]
    (tmp_path / "clip").write_bytes(data := os.urandom(2**20))
    root = tmp_path / "root.pem"

    async def fresh_url() -> str:
        return get

    assert [step.completed_bytes async for step in put_source(FileSource(tmp_path / "clip"), put, root)][-1] == 2**20
    digest = FileDigest(len(data), hashlib.sha256(data).hexdigest())
    async for _ in get_file(tmp_path / "again", digest, fresh_url, root):
        pass
    assert (tmp_path / "again").read_bytes() == data
    for tls_root in (None, tmp_path / "none.pem"):
        with pytest.raises(TransferFailed):
            async for _ in get_file(tmp_path / "other", digest, fresh_url, tls_root):
                pass


async def test_the_door_passes_on_both_ways_until_both_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = await reader.read()  # until the caller has no more to say
        writer.write(said[::-1])
        writer.close()

    server = await asyncio.start_server(answer, HOST, 0)
    port = remembered_ports(tmp_path / "ports.json", ["door"])["door"]
    async with relaying(HOST, port, (HOST, server.sockets[0].getsockname()[1]), None):
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"abc" * 200_000)
        writer.write_eof()
        assert await reader.read() == b"cba" * 200_000
        writer.close()
        # Nothing comes any more: neither side keeps the other's place.
        for limit, word in (("FIRST_SECONDS", b""), ("IDLE_SECONDS", b"abc")):
            with monkeypatch.context() as patched:
                patched.setattr(door, limit, 0.05)
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(word)
                assert await reader.read() == b""
                writer.close()
        server.close()
        # The store is away.
        reader, writer = await asyncio.open_connection(HOST, port)
        writer.write(b"abc")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(HOST, port)
