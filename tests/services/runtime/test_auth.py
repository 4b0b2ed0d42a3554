import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client.channel import OWNER_KEY, is_loopback

from ltxtrain_services.runtime.auth import LOCAL_OWNER, Tokens, server_credentials
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.store import Store
from tests.services.runtime.front import Front, info_of, serving

SERVICE_TOKEN = "service-token-0123456789"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("# who is who\n\nann ann-token\nann ann-other-token\nbob bob-token\n")
    return path


@pytest.fixture
async def front(database: Database, tokens_file: Path) -> AsyncIterator[Front]:
    async with serving(database, Settings(tokens_file=tokens_file, service_token=SERVICE_TOKEN)) as front:
        yield front


@pytest.mark.parametrize(
    ("bind", "loopback"),
    [
        ("127.0.0.1:7001", True),
        ("127.8.9.10:0", True),
        ("[::1]:7001", True),
        ("localhost:7001", True),
        ("unix:/run/ltxtrain/train.sock", True),
        ("0.0.0.0:7001", False),
        ("[::]:7001", False),
        (":7001", False),
        ("*:7001", False),
        ("192.168.1.5:7001", False),
        ("localhost.example.com:7001", False),
        ("127.0.0.1.example.com:7001", False),
        ("[::ffff:0.0.0.0]:7001", False),
    ],
)
def test_only_an_address_of_this_machine_is_open_without_a_key(bind: str, loopback: bool) -> None:
    assert is_loopback(bind) is loopback
    if loopback:
        assert server_credentials(Settings(bind=bind)) is None
    else:
        with pytest.raises(SettingsError, match="LTXTRAIN_TOKENS_FILE"):
            server_credentials(Settings(bind=bind))


def test_tokens_open_an_address_of_the_network(tokens_file: Path) -> None:
    assert server_credentials(Settings(bind="0.0.0.0:0", tokens_file=tokens_file)) is None
    assert server_credentials(Settings(bind="0.0.0.0:0", service_token=SERVICE_TOKEN)) is None


@pytest.mark.parametrize(
    ("lines", "wrong"),
    [
        ("ann", "line 1"),
        ("ann one two", "line 1"),
        ("# head\nann a\nservice b", "line 3.*'service'"),
        ("ann a\nbob a", "line 2.*bob has the token of ann"),
        (f"ann {SERVICE_TOKEN}", "LTXTRAIN_SERVICE_TOKEN"),
    ],
)
def test_a_wrong_token_file_is_refused_without_its_secrets(tmp_path: Path, lines: str, wrong: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(lines)
    with pytest.raises(SettingsError, match=wrong) as caught:
        Tokens.read(Settings(tokens_file=path, service_token=SERVICE_TOKEN))
    assert SERVICE_TOKEN not in str(caught.value)


def test_an_absent_token_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="LTXTRAIN_TOKENS_FILE: No such file"):
        Tokens.read(Settings(tokens_file=tmp_path / "absent"))


@pytest.mark.parametrize("token", ["", "ann-toke", "ann-token2", "ANN-TOKEN", "x", "ann"])
async def test_a_caller_without_a_known_token_is_refused(front: Front, token: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.stub(token=token).list()
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    assert info_of(caught.value).reason == "UNAUTHENTICATED"


async def test_only_bearer_tokens_count(front: Front) -> None:
    stub = front.stub()
    for value in ("ann-token", "Basic ann-token", "Bearer", "Bearer ", ""):
        stub.metadata = (("authorization", value),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.list()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
    stub.metadata = (("authorization", "bearer ann-token"),)
    assert await stub.list() == []


async def test_a_caller_sees_only_what_is_its_own(front: Front) -> None:
    ann, bob = front.stub(token="ann-token"), front.stub(token="bob-token")
    job = await ann.create()
    assert await front.stub(token="ann-other-token").list() == [job.name]
    assert await bob.list() == []
    await front.book.finish(job.name)
    for call in (bob.get, bob.delete):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(job.name)
        assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await bob.watch(job.name).read()
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND
    assert [response.sequence async for response in ann.watch(job.name)] == [1, 2]


async def test_a_page_token_of_one_caller_is_not_one_of_another(front: Front, jobs: Store[Job]) -> None:
    for number in range(3):
        for owner in ("ann", "bob"):
            await jobs.create(Job(name=f"jobs/{owner}{number}"), owner=owner, request_id="", digest=b"")
    _, token = await jobs.page("ann", 1, "")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.stub(token="bob-token").list(page_size=1, page_token=token)
    assert info_of(caught.value).reason == "PAGE_TOKEN_INVALID"


async def test_one_request_id_of_two_callers_makes_two_jobs(front: Front) -> None:
    request_id = "0f0e0d0c-0000-0000-0000-000000000001"
    jobs = [await front.stub(token=token).create(request_id=request_id) for token in ("ann-token", "bob-token")]
    assert jobs[0].name != jobs[1].name


async def test_a_service_acts_for_an_owner(front: Front) -> None:
    job = await front.stub(token=SERVICE_TOKEN, owner="ann").create()
    assert await front.stub(token="ann-token").list() == [job.name]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.stub(token=SERVICE_TOKEN, owner="bob").get(job.name)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_a_service_that_acts_for_nobody_sees_all(front: Front) -> None:
    names = {(await front.stub(token=token).create()).name for token in ("ann-token", "bob-token")}
    assert set(await front.stub(token=SERVICE_TOKEN).list()) == names


async def test_a_caller_acts_for_nobody_but_itself(front: Front) -> None:
    for owner in ("bob", "service", ""):
        stub = front.stub(token="ann-token")
        stub.metadata = (*stub.metadata, (OWNER_KEY, owner))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.list()
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        assert info_of(caught.value).reason == "PERMISSION_DENIED"
    assert await front.stub(token="ann-token", owner="ann").list() == []


async def test_without_tokens_there_is_one_owner_whatever_is_sent(database: Database) -> None:
    async with serving(database, Settings()) as front:
        job = await front.stub(token="anything", owner="bob").create()
        assert await front.book.jobs.owner(job.name) == LOCAL_OWNER
        assert await front.stub().list() == [job.name]


def test_no_secret_is_in_the_text_of_settings(tokens_file: Path) -> None:
    settings = Settings(
        tokens_file=tokens_file,
        service_token="hidden",
        s3_secret_key="hidden",
        ray_token="hidden",
        database_url="postgresql+psycopg://ltxtrain:hidden@db/train",
    )
    assert "hidden" not in repr(settings)
    assert "hidden" not in repr(dataclasses.replace(settings, s3_region="eu"))
