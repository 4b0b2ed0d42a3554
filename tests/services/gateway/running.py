"""A gateway before a real Train service, whose jobs do what the test plays."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ltxtrain.v1 import train_pb2
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Progress, QueuePosition, Stage, TrainMetrics

from ltxtrain_services.gateway.server import serving as serving_gateway
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.server import Server
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Attempt, Ending, WorkRunner
from ltxtrain_services.train.service import TrainService

Play = Callable[[Attempt[Job]], Awaitable[Ending[Job]]]

# Nobody listens there: URLs are signed without it.
STORE = StoreAddress(
    endpoint="127.0.0.1:9",
    public_endpoint="127.0.0.1:9",
    access_key="a",
    secret_key="b",
    region="r",
    bucket="ltxtrain",
    secure=False,
)
STEPS = 5
SIZE = 1234
# A clip's name, a prompt and a trigger phrase as nobody should write them.
MARKUP = "<img src=x onerror=alert(1)>\"'&</script><script>document.title='owned'</script>"


class PlayedTrain(TrainService):
    """TrainService with work that a test plays."""

    def __init__(self, runtime: Runtime) -> None:
        super().__init__(runtime)
        self.play: Play = succeed
        # Set by a test that lets jobs go on.
        self.go = asyncio.Event()
        # Called when a watch has been told all that there was.
        self.on_watch: Callable[[], None] = lambda: None
        self.work = WorkRunner(self._jobs, self, self.webhooks)

    async def WatchJob(
        self, request: train_pb2.WatchJobRequest, context: Any
    ) -> AsyncIterator[train_pb2.WatchJobResponse]:
        async with aclosing(super().WatchJob(request, context)) as responses:  # type: ignore[type-var]
            async for response in responses:
                yield response
                # A heartbeat: it has been silent for a while.
                if not response.HasField("event"):
                    self.on_watch()

    async def run(self, attempt: Attempt[Job]) -> Ending[Job]:
        return await self.play(attempt)

    async def salvage(self, attempt: Attempt[Job]) -> Ending[Job]:
        return lambda edit: None


@dataclass
class Suite:
    """A running gateway and the service behind it."""

    url: str
    train: PlayedTrain
    train_address: str
    settings: Settings

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])


@asynccontextmanager
async def running(state: Path, settings: Settings, store: StoreAddress = STORE) -> AsyncIterator[Suite]:
    """The gateway on a free port, by these settings; the service in plain text on another."""
    database = await Database.open(f"sqlite+aiosqlite:///{state / 'state.db'}", state)
    open_settings = replace(settings, bind="127.0.0.1:0", tls_cert=None, tls_key=None, state_dir=state)
    # Nothing is trained here.
    cluster: Any = SimpleNamespace(gpu_count=0, uses_gpus=False, on_change=lambda call: None)
    runtime = Runtime(open_settings, database, EventLog(database, 0.2), Blobs(database), ObjectStore(store), cluster)
    train = PlayedTrain(runtime)
    server = Server(open_settings, [TrainService.full_name])
    train.register(server.grpc)
    await server.start()
    try:
        async with serving_gateway(replace(settings, train=server.address)) as url:
            yield Suite(url, train, server.address, settings)
    finally:
        await train.work.drain()
        await server.grpc.stop(None)
        await database.close()


async def tell(attempt: Attempt[Job], *events: Event) -> None:
    async with attempt.edit() as edit:
        for event in events:
            edit.add_event(event)


async def train_steps(attempt: Attempt[Job], count: int = STEPS) -> None:
    """Events of so many steps."""
    for step in range(1, count + 1):
        numbers = TrainMetrics(step=step, loss=1 / step, video_loss=1 / step, learning_rate=1e-4, seconds_per_step=2)
        progress = Progress(completed=step, total=count, eta_seconds=20.0 * (count - step))
        train = Stage.STAGE_TRAIN
        await tell(
            attempt,
            Event(stage=train, progress=progress),
            Event(stage=train, train_metrics=numbers),
        )


async def succeed(attempt: Attempt[Job]) -> Ending[Job]:
    """A short training, with the files of a job that has no previews."""
    await train_steps(attempt)
    return with_files({"lora.safetensors": Artifact.KIND_LORA, "config.json": Artifact.KIND_CONFIG})


def with_files(files: "Mapping[str, Artifact.Kind]") -> Ending[Job]:
    """The ending of a job that has made these files; the first is its LoRA, the second its config."""

    def ending(edit: Edit[Job]) -> None:
        for name, kind in files.items():
            made = file_of(edit.body.name, name, kind)
            edit.put_child("artifacts", name, made)
            edit.add_event(Event(stage=Stage.STAGE_PUBLISH, artifact=made))
        names = [f"{edit.body.name}/artifacts/{name}" for name in files]
        edit.body.output.lora_file, edit.body.output.config_file = names[:2]

    return ending


def file_of(job: str, name: str, kind: "Artifact.Kind", **more: Any) -> Artifact:
    types = {"safetensors": "application/octet-stream", "json": "application/json", "mp4": "video/mp4"}
    blob = Blob(key=f"{job}/{name}", size_bytes=SIZE, sha256="0" * 64, content_type=types[name.rpartition(".")[2]])
    return Artifact(name=f"{job}/artifacts/{name}", kind=kind, blob=blob, **more)


async def wait_in_line(attempt: Attempt[Job], ahead: int = 3) -> None:
    """Say that the job waits for a GPU, both in its record and to its watchers."""
    async with attempt.edit() as edit:
        edit.body.stage, edit.body.queue_position = Stage.STAGE_QUEUE, ahead
        edit.add_event(Event(stage=Stage.STAGE_QUEUE, queue_position=QueuePosition(ahead=ahead)))


async def leave_the_line(attempt: Attempt[Job]) -> None:
    async with attempt.edit() as edit:
        edit.body.stage = Stage.STAGE_TRAIN
        edit.body.ClearField("queue_position")
