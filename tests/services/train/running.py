"""Training as the Train service does it, on samples made here: real Ray actors, a real object store and database."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet
import torch
from google.rpc import error_details_pb2
from google.rpc.status_pb2 import Status
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job, JobOptions, Schedule
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.extend_prefix import resolve, resolve_options
from ltxtrain_services.runtime.objects import ObjectStore, StoreAddress
from ltxtrain_services.runtime.requests import new_name
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import Attempt, WorkRunner
from ltxtrain_services.train.artifacts import COLLECTION
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.job_plan import Prepared
from ltxtrain_services.train.service import TrainService
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_services.train.workflow import TrainWorkflow
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding, dump_clip, dump_prompt
from ltxtrain_trainer.model.folder import resolve_model

# The smallest that the sheet allows; the latents themselves are smaller still.
SHEET: dict[str, Any] = {
    "rank": 8,
    "number_of_steps": 100,
    "learning_rate": 0.002,
    "conditioning_frames": 9,
    "number_of_frames": 17,
    "training_data_url": "https://example.com/clips.zip",
}
# Of the job that others are compared with.
COMPARED: dict[str, Any] = {"checkpoint_interval": 10, "holdout_fraction": 0.25, "schedule": Schedule.SCHEDULE_CONSTANT}
LATENTS = (128, 3, 2, 2)
AUDIO_LATENTS = 18
PROMPT_TOKENS = 16


class TrainingAlone(TrainWorkflow):
    """The workflow of a job whose preparation is given."""

    def __init__(self, trainer: "Trainer") -> None:
        upstream = Upstream(trainer.runtime.settings)
        super().__init__(trainer.runtime, upstream, trainer.estimator)
        self._trainer = trainer

    async def _prepare(self, attempt: Attempt[Job]) -> Prepared:
        job = await attempt.get()
        while job.name not in self._trainer.prepared:
            # One that goes on from another has its data from there.
            job = await self._trainer.jobs.get(job.continue_from.source)
        return self._trainer.prepared.setdefault(attempt.name, self._trainer.prepared[job.name])


class TrainServiceAlone(TrainService):
    """The RPCs over the work of a trainer, without the two services that jobs are prepared by."""

    def __init__(self, trainer: "Trainer") -> None:
        super().__init__(trainer.runtime)
        self.work, self._workflow = trainer.work, trainer.workflow


@dataclass
class Trainer:
    """The parts of the Train service behind its RPCs."""

    runtime: Runtime
    jobs: Store[Job]
    estimator: Estimator
    model: Path
    prepared: dict[str, Prepared] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.workflow = TrainingAlone(self)
        self.work: WorkRunner[Job] = WorkRunner(self.jobs, self.workflow)

    async def start(self, samples: Sequence[Sample], options: dict[str, Any] | None = None, **sheet: Any) -> str:
        """A job of SHEET, changed by keywords; its name."""
        given = ExtendPrefixSpec(**SHEET | sheet)
        spec, wrong = resolve(given, lambda url: None)
        chosen, wrong_options = resolve_options(
            JobOptions(**{"preview_interval": 0} | (options or {})), spec.number_of_steps
        )
        assert not wrong and not wrong_options
        job = Job(
            name=new_name("jobs"),
            spec=TaskSpec(extend_prefix=given),
            effective_spec=TaskSpec(extend_prefix=spec),
            options=chosen,
        )
        self.prepared[job.name] = Prepared(
            model=resolve_model(str(self.model)),
            training_set=TrainingSet(name="trainingSets/1"),
            samples=list(samples),
        )
        await self.jobs.create(job, owner="me", request_id="", digest=b"")
        self.work.start(job.name)
        return job.name

    async def events(self, job: str) -> list[Event]:
        """Every event, once the job has ended."""
        return [event async for _, event in self.jobs.log.follow(job, 0) if event is not None]

    async def reached(self, job: str, step: int) -> None:
        """Return when an event says that a step was done."""
        async for _, event in self.jobs.log.follow(job, 0):
            if event is not None and event.train_metrics.step >= step:
                return
        raise AssertionError(f"{job} ended before step {step}: {await self.jobs.get(job)}")

    async def ended(self, job: str) -> Job:
        await self.events(job)
        return await self.jobs.get(job)

    async def artifacts(self, job: str) -> dict[str, Artifact]:
        """By the last part of their names."""
        return {item.name.rpartition("/")[2]: item for item in await self.jobs.all_children(job, COLLECTION, Artifact)}

    async def lora(self, job: str) -> bytes:
        blob = (await self.artifacts(job))["lora.safetensors"].blob
        return await self.runtime.objects.get_bytes(blob.key, sha256=blob.sha256)

    async def metrics(self, job: str, folder: Path) -> list[dict[str, Any]]:
        """The rows of the metrics file."""
        blob = (await self.artifacts(job))["metrics.parquet"].blob
        path = folder / f"{time.monotonic_ns()}.parquet"
        await self.runtime.objects.get_file(blob.key, path, sha256=blob.sha256)
        rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
        return rows

    async def samples(self, count: int, *, broken: int | None = None, silent: int | None = None) -> list[Sample]:
        """Stored samples; the one at `broken` holds what is not a number, all but the one at `silent` have sound."""
        return [
            await self._sample(number, number == broken, silent is not None and number != silent)
            for number in range(count)
        ]

    async def _sample(self, number: int, broken: bool, sounds: bool) -> Sample:
        draw = torch.Generator().manual_seed(number)
        video = torch.randn(LATENTS, generator=draw)
        clip = EncodedClip(
            video=(video * float("nan") if broken else video).bfloat16(),
            audio=torch.randn(AUDIO_LATENTS, 128, generator=draw).bfloat16() if sounds else None,
            frame_rate=24.0,
            frame_count=17,
        )
        prompt = PromptEmbedding(
            video=torch.randn(PROMPT_TOKENS, 64, generator=draw).bfloat16(),
            audio=torch.randn(PROMPT_TOKENS, 32, generator=draw).bfloat16(),
            token_count=3,
            truncated=False,
        )
        return Sample(
            name=f"trainingSets/1/samples/{number}",
            latents=await self._stored(dump_clip(clip)),
            prompt=await self._stored(dump_prompt(prompt)),
        )

    async def _stored(self, data: bytes) -> Blob:
        blob = await self.runtime.objects.put_content("preprocess", data, "application/octet-stream")
        return Blob(key=blob.key, size_bytes=blob.size_bytes, sha256=blob.sha256)


@asynccontextmanager
async def running(
    state: Path, model: Path, store: StoreAddress, cluster: Cluster, **changes: Any
) -> AsyncIterator[Trainer]:
    """A trainer that is drained when the context is left; its jobs go on in the next one of the same state."""
    settings = Settings(
        state_dir=state,
        model=str(model),
        s3_endpoint=store.endpoint,
        s3_access_key=store.access_key,
        s3_secret_key=store.secret_key,
        s3_region=store.region,
        s3_bucket=store.bucket,
        torch_threads=1,
        **changes,
    )
    database = await Database.open(settings.database, state)
    try:
        log = EventLog(database)
        runtime = Runtime(settings, database, log, Blobs(database), ObjectStore(store), cluster)
        trainer = Trainer(runtime, Store(database, log, "jobs", Job), Estimator(runtime, Upstream(settings)), model)
        yield trainer
        await trainer.work.drain()
    finally:
        await database.close()


def reason(job: Job) -> tuple[str, dict[str, str]]:
    """Reason of the error that a job ended with."""
    assert job.lifecycle.state == State.STATE_FAILED, job
    return reason_of(job.lifecycle.error)


def reason_of(status: Status) -> tuple[str, dict[str, str]]:
    """The reason and the metadata of an error."""
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason, dict(info.metadata)


def steps_of(events: Sequence[Event]) -> list[int]:
    """The last step that each metrics event is about."""
    return [event.train_metrics.step for event in events if event.HasField("train_metrics")]
