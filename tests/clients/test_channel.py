"""How a service is reached: addresses, credentials, deadlines, retries."""

import json
from pathlib import Path

import grpc
import pytest
import trustme
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client import (
    CallError,
    ClientSettings,
    Credentials,
    DeadlineExceeded,
    SettingsInvalid,
    TrainClient,
    Unavailable,
    connect,
    read_settings,
)
from ltxtrain_client.channel import is_loopback, service_config

from tests.clients.far_side import Context, FarSide, serving, status, stay_silent

UNAVAILABLE = status(grpc.StatusCode.UNAVAILABLE, "starting", "STORE_UNAVAILABLE")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[trustme.CA, Path]:
    authority = trustme.CA()
    root = tmp_path_factory.mktemp("tls") / "root.pem"
    authority.cert_pem.write_to_path(str(root))
    return authority, root


def server_credentials(authority: trustme.CA, *, mutual: bool) -> grpc.ServerCredentials:
    issued = authority.issue_cert("127.0.0.1", "localhost")
    chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
    root = authority.cert_pem.bytes() if mutual else None
    return grpc.ssl_server_credentials([(issued.private_key_pem.bytes(), chain)], root, require_client_auth=mutual)


async def metadata_of_a_call(address: str, far: FarSide, credentials: Credentials) -> dict[str, str]:
    far.jobs["jobs/1"] = far.jobs.get("jobs/1") or Job(name="jobs/1")
    async with connect(address, credentials) as channel:
        await TrainClient(channel).get_job("jobs/1")
    return far.calls[-1][2]


async def test_loopback_needs_nothing(far: FarSide) -> None:
    assert "authorization" not in await metadata_of_a_call(far.address, far, Credentials())


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_a_token_goes_to_loopback(far: FarSide, scheme: str) -> None:
    metadata = await metadata_of_a_call(scheme + far.address, far, Credentials(token="s3cret"))
    assert metadata["authorization"] == "Bearer s3cret"


async def test_a_token_does_not_leave_the_machine_in_the_clear() -> None:
    with pytest.raises(SettingsInvalid, match="unencrypted"):
        connect("train.example.com:7003", Credentials(token="s3cret"))
    async with connect("http://train.example.com:7003", Credentials(token="s3cret")):
        pass


async def test_tls_with_a_root_of_ones_own(authority: tuple[trustme.CA, Path]) -> None:
    far = FarSide()
    async with serving(far, credentials=server_credentials(authority[0], mutual=False)):
        metadata = await metadata_of_a_call(far.address, far, Credentials(token="s3cret", tls_root=authority[1]))
        assert metadata["authorization"] == "Bearer s3cret"
        with pytest.raises(Unavailable):
            await metadata_of_a_call(f"https://{far.address}", far, Credentials())  # the public roots do not know it
        with pytest.raises(Unavailable):
            await metadata_of_a_call(far.address, far, Credentials())


async def test_the_root_is_for_files_too_whoever_is_acted_for(authority: tuple[trustme.CA, Path]) -> None:
    """Files come from the object store, whose certificate may be of the same authority."""
    async with connect("127.0.0.1:7003", Credentials(tls_root=authority[1])) as channel:
        assert channel.acting_for("ann").tls_root == TrainClient(channel).channel.tls_root == authority[1]


async def test_mutual_tls(authority: tuple[trustme.CA, Path], tmp_path: Path) -> None:
    issued = authority[0].issue_cert("client.example")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(str(key))
    cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    far = FarSide()
    async with serving(far, credentials=server_credentials(authority[0], mutual=True)):
        await metadata_of_a_call(far.address, far, Credentials(tls_root=authority[1], tls_cert=cert, tls_key=key))
        with pytest.raises(Unavailable):
            await metadata_of_a_call(far.address, far, Credentials(tls_root=authority[1]))


async def test_half_a_pair_or_a_missing_file_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="belong together"):
        connect("127.0.0.1:1", Credentials(tls_cert=tmp_path / "cert.pem"))
    with pytest.raises(SettingsInvalid, match=r"LTXTRAIN_TLS_ROOT.*nowhere"):
        connect("127.0.0.1:1", Credentials(tls_root=tmp_path / "nowhere"))


@pytest.mark.parametrize("address", ["", "localhost", "host:", ":7003", "host:port", "host:70000", "ftp://host:1"])
async def test_an_address_needs_a_host_and_a_port(address: str) -> None:
    with pytest.raises(SettingsInvalid, match="address"):
        connect(address)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/x", True),
        ("10.0.0.1:1", False),
        ("0.0.0.0:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_what_is_loopback(target: str, local: bool) -> None:
    assert is_loopback(target) is local


async def test_reads_and_calls_with_an_id_are_retried(far: FarSide, train: TrainClient) -> None:
    far.jobs["jobs/1"] = Job(name="jobs/1")
    far.fail("GetJob", UNAVAILABLE, UNAVAILABLE)
    assert (await train.get_job("jobs/1")).name == "jobs/1"
    assert len(far.requests("GetJob")) == 3


async def test_a_fourth_failure_is_told_with_its_reason(far: FarSide, train: TrainClient) -> None:
    far.fail("GetJob", *[UNAVAILABLE] * 4)
    with pytest.raises(Unavailable) as raised:
        await train.get_job("jobs/1")
    assert raised.value.reason == "STORE_UNAVAILABLE"
    assert len(far.requests("GetJob")) == 4


async def test_what_would_do_something_twice_is_not_retried(far: FarSide, train: TrainClient) -> None:
    far.jobs["jobs/1"] = Job(name="jobs/1")
    far.fail("DeleteJob", UNAVAILABLE)
    with pytest.raises(Unavailable):
        await train.delete_job("jobs/1")
    assert len(far.requests("DeleteJob")) == 1


@pytest.mark.parametrize("code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED])
async def test_other_codes_are_not_retried(far: FarSide, train: TrainClient, code: grpc.StatusCode) -> None:
    far.fail("GetJob", status(code, "no"))
    with pytest.raises(CallError):
        await train.get_job("jobs/1")
    assert len(far.requests("GetJob")) == 1


async def test_a_unary_call_has_a_deadline() -> None:
    class Mute(FarSide):
        async def _enter(self, method: str, request: object, context: Context) -> None:
            await stay_silent(context)

    far = Mute()
    async with serving(far), connect(far.address, deadline_seconds=0.2) as channel:
        with pytest.raises(DeadlineExceeded):
            await TrainClient(channel).get_job("jobs/1")


def test_every_unary_call_has_ten_seconds_and_no_watch_has_any() -> None:
    config = json.loads(service_config())["methodConfig"]
    repeatable, once = ({name["method"] for name in entry["name"]} for entry in config)
    assert {entry["timeout"] for entry in config} == {"10.0s"}
    assert once == {"DeleteDataset", "DeleteTrainingSet", "DeleteJob", "CheckpointJob", "PreviewJob"}
    assert {
        "CreateUpload",
        "CompleteUpload",
        "CreateJob",
        "CreateDataset",
        "CreateTrainingSet",
        "GetJob",
        "ListClips",
        "CancelJob",
    } <= repeatable
    assert not any(name.startswith("Watch") for name in repeatable | once)
    assert config[0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


async def test_owners_are_forwarded(far: FarSide, train: TrainClient) -> None:
    far.jobs["jobs/1"] = Job(name="jobs/1")
    acting = train.acting_for("alice")
    await acting.get_job("jobs/1")
    assert far.calls[-1][2]["ltxtrain-owner"] == "alice"
    await acting.acting_for("bob").get_job("jobs/1")
    assert far.calls[-1][2]["ltxtrain-owner"] == "bob"
    assert [item async for item in acting.watch_job("jobs/1")] == []
    assert far.calls[-1][2]["ltxtrain-owner"] == "alice"
    await train.get_job("jobs/1")
    assert "ltxtrain-owner" not in far.calls[-1][2]


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    assert read_settings({}) == ClientSettings(
        train="127.0.0.1:7003", ingest="127.0.0.1:7001", preprocess="127.0.0.1:7002"
    )
    (tmp_path / "token").write_text("from-file\n")
    settings = read_settings(
        {
            "LTXTRAIN_TRAIN": "https://train.example.com:443",
            "LTXTRAIN_INGEST": "",
            "LTXTRAIN_TOKEN_FILE": str(tmp_path / "token"),
            "LTXTRAIN_TLS_ROOT": "/etc/root.pem",
        }
    )
    assert settings.train == "https://train.example.com:443"
    assert settings.ingest == "127.0.0.1:7001"
    assert settings.credentials == Credentials(token="from-file", tls_root=Path("/etc/root.pem"))
    assert "from-file" not in repr(settings)
    with pytest.raises(SettingsInvalid, match="LTXTRAIN_TOKEN_FILE"):
        read_settings({"LTXTRAIN_TOKEN_FILE": str(tmp_path / "nowhere")})
