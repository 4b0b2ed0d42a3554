from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme

from ltxtrain_services.runtime.settings import Settings
from tests.services.gateway.receiver import Receiver, receiving
from tests.services.gateway.running import Suite, running, succeed

TOKENS = {"ann": "ann-token-0123456789", "bob": "bob-token-0123456789"}


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        yield receiver


@pytest.fixture(scope="session")
async def secure(
    tmp_path_factory: pytest.TempPathFactory, authority: trustme.CA, receiver: Receiver
) -> AsyncIterator[Suite]:
    """A gateway with TLS and tokens."""
    folder = tmp_path_factory.mktemp("gateway")
    cert = authority.issue_cert("127.0.0.1", "localhost")
    cert.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    cert.private_key_pem.write_to_path(str(folder / "server.key"))
    authority.cert_pem.write_to_path(str(folder / "authority.pem"))
    (folder / "tokens").write_text("".join(f"{subject} {token}\n" for subject, token in TOKENS.items()))
    settings = Settings(
        tls_cert=folder / "server.pem",
        tls_key=folder / "server.key",
        tokens_file=folder / "tokens",
        fetch_allow=(receiver.host,),
        grace_seconds=1.0,
    )
    async with running(folder, settings) as suite:
        yield suite


@pytest.fixture
async def suite(tmp_path: Path) -> AsyncIterator[Suite]:
    """A gateway on loopback without tokens."""
    async with running(tmp_path, Settings(grace_seconds=1.0)) as suite:
        yield suite


@pytest.fixture(autouse=True)
def as_before(request: pytest.FixtureRequest) -> None:
    """The shared service plays what it usually does, unless a test has it do otherwise."""
    if "secure" in request.fixturenames:
        played: Suite = request.getfixturevalue("secure")
        played.train.play = succeed
        played.train.go.clear()
        played.train.on_watch = lambda: None
