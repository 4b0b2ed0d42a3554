"""One running suite for all tests of this folder: real store, real Ray, three services, the tiny model."""

import hashlib
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job, JobOptions
from ltxtrain.v1.work_pb2 import Event, State
from ltxtrain_client.channel import connect
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.preprocess import PreprocessClient
from ltxtrain_client.sheet import parse_sheet
from ltxtrain_client.train import TrainClient

from ltxtrain_services.local.up import SERVICES, Suite
from tests.services.runtime.collector import Collector, collecting
from tests.services.runtime.postgres import Postgres
from tests.shapes import make_clips, make_validation_clip

SHEET: dict[str, Any] = {
    "trigger_phrase": "drifting shapes",
    "rank": 8,
    "number_of_steps": 100,
    "learning_rate": 0.002,
    "conditioning_frames": 9,
    "number_of_frames": 17,
    "resolution": "low",
    "aspect_ratio": "16:9",
    "validation_number_of_frames": 17,
    "validation_resolution": "low",
    "validation_aspect_ratio": "16:9",
}

SETTINGS = {"LTXTRAIN_REFLECTION": "true", "LTXTRAIN_TORCH_THREADS": "1"}
FREE_PORTS = dict.fromkeys(SERVICES, 0)


@dataclass(frozen=True)
class Clients:
    train: TrainClient
    ingest: IngestClient
    preprocess: PreprocessClient


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """Takes the spans of the suite."""
    with collecting() as running:
        yield running


@pytest.fixture(scope="session", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.soak)])
async def suite(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, collector: Collector
) -> AsyncIterator[Suite]:
    databases = new_databases(request.getfixturevalue("postgres")) if request.param == "postgresql" else None
    async with Suite(
        tmp_path_factory.mktemp("suite"),
        model=str(tiny_model),
        ports=FREE_PORTS,
        num_cpus=2,
        databases=databases,
        environ=SETTINGS | {"LTXTRAIN_OTLP_ENDPOINT": collector.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "500"},
    ) as running:
        yield running


@pytest.fixture(scope="session")
async def clients(suite: Suite) -> AsyncIterator[Clients]:
    async with connected(suite) as clients:
        yield clients


@asynccontextmanager
async def connected(suite: Suite) -> AsyncIterator[Clients]:
    async with (
        connect(suite.train_address) as train,
        connect(suite.ingest_address) as ingest,
        connect(suite.preprocess_address) as preprocess,
    ):
        yield Clients(TrainClient(train), IngestClient(ingest), PreprocessClient(preprocess))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("made")


@pytest.fixture(scope="session")
def clips_zip(made: Path) -> Path:
    return make_clips(made)


@pytest.fixture(scope="session")
def opening(made: Path) -> Path:
    return make_validation_clip(made)


@pytest.fixture(scope="session")
async def ingested(clients: Clients, clips_zip: Path) -> str:
    """The name of a dataset of the demo's clips."""
    return await ingest(clients, clips_zip)


@pytest.fixture(scope="session")
async def undisturbed(clients: Clients, ingested: str) -> str:
    """The name of a job that nothing happened to: what others are compared with."""
    from tests.suite.trainings import COMPARED, start

    job = await start(clients, ingested, COMPARED)
    await finished(clients, job)
    return job


def new_databases(postgres: Postgres) -> dict[str, str]:
    """An empty one for each service."""
    return {name: postgres.new_database() for name in SERVICES}


async def ingest(clients: Clients, archive: Path) -> str:
    """The name of a dataset of the archive's clips, once it has ended."""
    upload = await clients.ingest.upload(archive)
    dataset = await clients.ingest.create_dataset(upload=upload.name)
    async for _ in clients.ingest.watch_dataset(dataset.name):
        pass
    return dataset.name


async def submit(
    clients: Clients,
    clips: Path,
    *,
    validation: Path | None = None,
    options: dict[str, Any] | None = None,
    **sheet: Any,
) -> Job:
    """Upload the files and start a job of SHEET, changed by keywords."""
    upload = await clients.ingest.upload(clips)
    document = SHEET | {"training_data_url": upload.url} | sheet
    if validation is not None:
        clip = await clients.ingest.upload(validation)
        document["validation"] = [{"prompt": "drifting shapes, a disc", "video_url": clip.url}]
    spec = parse_sheet(json.dumps(document), []).spec
    # Previews cost more than the training of a tiny model: at the end alone, unless asked for.
    chosen = JobOptions(**{"preview_interval": 0} | (options or {}))
    return await clients.train.submit(spec, chosen, request_id=str(uuid.uuid4()))


async def follow(clients: Clients, job: str) -> list[tuple[int, Event]]:
    """Every event until the job ends."""
    return [item async for item in clients.train.watch_job(job)]


async def finished(clients: Clients, job: str) -> Job:
    """The job once it has succeeded; its error otherwise."""
    await follow(clients, job)
    ended = await clients.train.get_job(job)
    assert ended.lifecycle.state == State.STATE_SUCCEEDED, ended.lifecycle.error
    return ended


async def files_of(clients: Clients, job: str) -> dict[str, Artifact]:
    """Artifacts by the last part of their names."""
    return {item.name.rpartition("/")[2]: item async for item in clients.train.list_artifacts(job)}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
