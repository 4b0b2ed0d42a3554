"""Fixtures of every test. Expensive ones are made once a session."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ltxtrain_services.runtime.cluster import Cluster
    from ltxtrain_services.runtime.objects import StoreAddress
    from tests.services.runtime.postgres import Postgres

# Ray reads these when it is imported, whichever test module does so first.
os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# A shell that starts tests in the background has them ignore Ctrl-C, and so would the processes that tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Torch's threads read this when it is imported: spinning ones stand in the way of all other processes of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole LTX-2.3 pipeline folder with small random weights (ltxtrain_trainer.model.tiny). Read only."""
    import torch

    from ltxtrain_trainer.model.tiny import build_tiny_model

    torch.set_num_threads(2)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator["StoreAddress"]:
    """A running embedded store with its bucket."""
    from ltxtrain_services.local.embedded import EmbeddedStore

    with EmbeddedStore(tmp_path_factory.mktemp("store")) as store:
        yield store.address


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    """A running PostgreSQL of the tests' own; skips where it is not installed, except in CI."""
    from tests.services.runtime.postgres import program, running_postgres

    if program("initdb") is None and os.environ.get("CI") != "true":
        pytest.skip("PostgreSQL is not installed")
    with running_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Cluster"]:
    """A running Ray of two CPUs that the tests' process is attached to."""
    import ray

    from ltxtrain_services.local.ray_head import RayHead
    from ltxtrain_services.runtime.cluster import Cluster

    with RayHead(tmp_path_factory.mktemp("ray"), num_cpus=2, token=os.environ["RAY_AUTH_TOKEN"]) as head:
        yield Cluster.attach(head.address, head.token)
        ray.shutdown()
