"""The Ingest service in this process, behind a real server on a free port of loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from google.rpc import error_details_pb2
from ltxtrain.v1.ingest_pb2 import Clip, Dataset
from ltxtrain.v1.work_pb2 import Event, ReportLine, ReportReason, State
from ltxtrain_client.channel import Credentials, connect
from ltxtrain_client.ingest import IngestClient

from ltxtrain_services.ingest.fetch import Fetcher
from ltxtrain_services.ingest.service import IngestService
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from tests.services.ingest.web import Web


@dataclass(frozen=True)
class Outcome:
    """A dataset that has ended, and all that can be asked about it."""

    dataset: Dataset
    clips: list[Clip]
    lines: list[ReportLine]
    events: list[Event]

    @property
    def state(self) -> str:
        return State.Name(self.dataset.lifecycle.state).removeprefix("STATE_")

    @property
    def reason(self) -> str:
        """Reason of the error; empty for none."""
        details = self.dataset.lifecycle.error.details
        if not details:
            return ""
        info = error_details_pb2.ErrorInfo()
        assert details[0].Unpack(info)
        return str(info.reason)

    def reasons(self, path: str) -> list[str]:
        """Reasons of the line of a path; of the last one, where there are several."""
        found = [item for item in self.lines if item.path == path]
        return [ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in found[-1].reasons]


@dataclass(frozen=True)
class Ingest:
    """A running service and its client."""

    client: IngestClient
    service: IngestService
    runtime: Runtime
    web: Web
    address: str

    async def run(self, **source: object) -> Outcome:
        """Create a dataset and wait for its end."""
        dataset = await self.client.create_dataset(**source)  # type: ignore[arg-type]
        return await self.end(dataset.name)

    async def end(self, name: str) -> Outcome:
        events = [event async for _, event in self.client.watch_dataset(name)]
        return Outcome(
            dataset=await self.client.get_dataset(name),
            clips=[clip async for clip in self.client.list_clips(name)],
            lines=[item async for item in self.client.list_dataset_report(name)],
            events=events,
        )

    async def upload(self, path: Path) -> Outcome:
        sent = await self.client.upload(path)
        return await self.run(upload=sent.name)


@asynccontextmanager
async def serving(
    state_dir: Path, store: StoreAddress, cluster: Cluster, hostile: Web, *, token: str = "", **more: object
) -> AsyncIterator[Ingest]:
    """token: what the client shows; `more` are further settings."""
    values: dict[str, object] = {
        "state_dir": state_dir,
        "fetch_allow": (hostile.host,),
        "fetch_idle_seconds": 5.0,
        "s3_bucket": store.bucket,
    }
    settings = Settings(**(values | more))  # type: ignore[arg-type]
    database = await Database.open(settings.database, state_dir)
    log = EventLog(database)
    objects = ObjectStore(store)
    await objects.ensure_bucket()
    runtime = Runtime(settings, database, log, Blobs(database), objects, cluster)
    service = IngestService(runtime, Fetcher(settings, first_backoff_seconds=0.01))
    server = Server(settings, [service.full_name])
    service.register(server.grpc)
    await server.start()
    await service.work.resume()
    address = f"http://{server.address}" if token else server.address
    async with connect(address, Credentials(token=token)) as channel:
        yield Ingest(IngestClient(channel), service, runtime, hostile, server.address)

    async def before_close() -> None:
        log.drain()
        await service.work.drain()

    await server.stop(before_close)
    await database.close()
