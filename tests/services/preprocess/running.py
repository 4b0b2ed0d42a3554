"""The Preprocess service in this process beside a running Ingest, and all that can be asked about a training set."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.json_format import ParseDict
from google.rpc import error_details_pb2
from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings, Sample, TrainingSet
from ltxtrain.v1.work_pb2 import Event, ReportLine, ReportReason, State
from ltxtrain_client.channel import connect
from ltxtrain_client.preprocess import PreprocessClient

from ltxtrain_services.preprocess.service import PreprocessService
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_trainer.media.video_file import LosslessClip, read_lossless
from tests.clips import write_zip
from tests.services.ingest.running import Ingest

# Everything that can be asked for but sound, in JSON's form.
WHOLE = {
    "triggerPhrase": "sks",
    "validationPrompts": ["another card"],
    "negativePrompt": "blurry",
    "exportArchive": True,
}


@dataclass(frozen=True)
class Ended:
    """A training set that has ended."""

    training_set: TrainingSet
    samples: list[Sample]
    lines: list[ReportLine]
    events: list[Event]

    @property
    def state(self) -> str:
        return State.Name(self.training_set.lifecycle.state).removeprefix("STATE_")

    @property
    def message(self) -> str:
        return str(self.training_set.lifecycle.error.message)

    @property
    def reason(self) -> str:
        """Reason of the error; empty for none."""
        details = self.training_set.lifecycle.error.details
        info = error_details_pb2.ErrorInfo()
        return info.reason if details and details[0].Unpack(info) else ""

    @property
    def subjects(self) -> dict[str, str]:
        """Text of the error for each clip, by its path."""
        failure = error_details_pb2.PreconditionFailure()
        found = [failure for detail in self.training_set.lifecycle.error.details if detail.Unpack(failure)]
        return {item.subject: item.type for one in found for item in one.violations}

    @property
    def clip_lines(self) -> list[ReportLine]:
        """Lines of clips, without those of the whole training set."""
        return [line for line in self.lines if line.path]

    def reasons(self, path: str) -> list[str]:
        """Reasons of the first line of a path."""
        found = next(line for line in self.lines if line.path == path)
        return [ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in found.reasons]


@dataclass(frozen=True)
class Preprocess:
    """A running service, its client, and the Ingest that it reads from."""

    client: PreprocessClient
    service: PreprocessService
    runtime: Runtime
    ingest: Ingest
    scratch: Path

    async def dataset(self, entries: dict[str, bytes | Path | str]) -> str:
        """The name of a dataset of an archive with these entries."""
        path = write_zip(self.scratch / "clips.zip", entries)
        ended = await self.ingest.upload(path)
        assert ended.state == "SUCCEEDED", ended.dataset.lifecycle.error
        return ended.dataset.name

    async def videos(self, *paths: Path) -> str:
        """The name of a dataset of loose videos."""
        urls = [(await self.ingest.client.upload(path)).url for path in paths]
        ended = await self.ingest.run(videos=urls)
        assert ended.state == "SUCCEEDED", ended.dataset.lifecycle.error
        return ended.dataset.name

    async def run(self, dataset: str, settings: PreprocessSettings, validation: str = "") -> Ended:
        made = await self.client.create_training_set(dataset, settings, validation_dataset=validation)
        return await self.end(made.name)

    async def end(self, name: str) -> Ended:
        events = [event async for _, event in self.client.watch_training_set(name)]
        return Ended(
            training_set=await self.client.get_training_set(name),
            samples=[sample async for sample in self.client.list_samples(name)],
            lines=[line async for line in self.client.list_training_set_report(name)],
            events=events,
        )

    async def fetch(self, blob: Blob) -> bytes:
        return await self.runtime.objects.get_bytes(blob.key, sha256=blob.sha256)

    async def fetch_clip(self, blob: Blob) -> LosslessClip:
        path = self.scratch / "fetched.mkv"
        path.write_bytes(await self.fetch(blob))
        return read_lossless(path)


def settings(**changes: Any) -> PreprocessSettings:
    """17 frames of 512 x 288 without sound, a prefix of 9, no splitting; changed by keywords in JSON's form."""
    geometry = Geometry(width=512, height=288, frame_count=17, frame_rate=24)
    made = PreprocessSettings(training=geometry, validation=geometry, conditioning_frames=9)
    made.MergeFrom(ParseDict(json.loads(json.dumps(changes)), PreprocessSettings()))
    return made


@asynccontextmanager
async def serving(
    state_dir: Path, store: StoreAddress, cluster: Cluster, ingest: Ingest, model: Path, **more: Any
) -> AsyncIterator[Preprocess]:
    """`more` are further settings."""
    values: dict[str, Any] = {
        "state_dir": state_dir,
        "ingest": ingest.address,
        "model": str(model),
        "s3_bucket": store.bucket,
    }
    chosen = Settings(**(values | more))
    database = await Database.open(chosen.database, state_dir)
    log = EventLog(database)
    runtime = Runtime(chosen, database, log, Blobs(database), ObjectStore(store), cluster)
    service = PreprocessService(runtime)
    server = Server(chosen, [service.full_name])
    service.register(server.grpc)
    await server.start()
    await service.work.resume()
    async with connect(server.address) as channel:
        yield Preprocess(PreprocessClient(channel), service, runtime, ingest, state_dir)

    async def before_close() -> None:
        log.drain()
        await service.work.drain()

    await server.stop(before_close)
    await database.close()
