"""The stage of the base model: its download and its loading are told in bytes, with the time that is left."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Stage

from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.cluster import Cluster, WorkerLost
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.actors import Stored
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.prepare import enter_stage
from ltxtrain_services.train.recorder import Recorder
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_services.train.workflow import TrainWorkflow
from ltxtrain_trainer.reports import Loaded, Loading, TrainingFacts
from tests.trainer.model.hub import REPOSITORY, serve
from tests.trainer.model.test_folder import cache, point_at

__all__ = ["cache"]

NOTHING = cast(Any, None)


@pytest.fixture
async def attempt(tmp_path: Path) -> AsyncIterator[Attempt[Job]]:
    """The first at a job in a database of its own."""
    settings = Settings(state_dir=tmp_path)
    database = await Database.open(settings.database, tmp_path)
    jobs = Store(database, EventLog(database), "jobs", Job)
    await jobs.create(Job(name="jobs/1"), owner="me", request_id="", digest=b"")
    yield Attempt(jobs, "jobs/1", 0, "me")
    await database.close()


async def told(attempt: Attempt[Job]) -> list[Event]:
    """Events about the model so far."""
    found = []
    last = (await attempt.get()).lifecycle.last_sequence
    async for sequence, event in attempt.store.log.follow(attempt.name, 0):
        if event is not None and event.stage == Stage.STAGE_MODEL:
            found.append(event)
        if sequence >= last:
            break
    return found


async def test_a_download_is_a_stage_of_the_job(
    attempt: Attempt[Job], tiny_model: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, cluster = Settings(state_dir=tmp_path, model=REPOSITORY), Cluster.__new__(Cluster)
    monkeypatch.setattr(Cluster, "on_change", lambda self, call: None)
    monkeypatch.setattr(Cluster, "gpu_count", 0)
    runtime = Runtime(settings, NOTHING, NOTHING, cast(Blobs, NOTHING), NOTHING, cluster)
    upstream = Upstream(settings)
    workflow = TrainWorkflow(runtime, upstream, Estimator(runtime, upstream))
    with serve(tiny_model) as hub:
        point_at(hub, monkeypatch)
        folder = await workflow._model(attempt)
    size = sum(file.stat().st_size for file in folder.path.rglob("*") if file.is_file())
    progress = [event.progress for event in await told(attempt)]
    assert [progress[0].total, progress[-1].total] == [size, size]
    assert progress[0].completed == 0 and not progress[0].HasField("eta_seconds")
    assert progress[-1].completed == size and progress[-1].eta_seconds == 0
    assert (await attempt.get()).stage == Stage.STAGE_MODEL
    # What is here is not told again.
    assert await workflow._model(attempt) == folder and len(await told(attempt)) == len(progress)


async def test_a_loading_that_takes_a_while_is_told_and_then_the_training_goes_on(
    attempt: Attempt[Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("ltxtrain_services.train.recorder.time.monotonic", lambda: now[0])
    stages: list[int] = []

    async def reports() -> AsyncIterator[Stored]:
        for completed in (1, 2, 3, 4):
            # The first comes at once, and is not told; the last is whatever the time.
            now[0] += 0.5 if completed in (1, 4) else 2.0
            yield Stored(Loading(completed * 100, 400))
            stages.append((await attempt.get()).stage)
        facts = TrainingFacts(
            device="cpu",
            precision="fp32",
            memory={},
            model="m",
            model_revision="r",
            model_digests={},
            layer_count=4,
            clip_count=1,
            libraries={},
            python="3",
        )
        yield Stored(Loaded(facts=facts, reason="", seconds=1.0, size_bytes=400))
        stages.append((await attempt.get()).stage)

    async with attempt.edit() as edit:
        enter_stage(edit.body, Stage.STAGE_TRAIN)
    with pytest.raises(WorkerLost):
        await Recorder(attempt, NOTHING, 10, lambda report: None).follow(cast(Any, reports()))
    train, model = Stage.STAGE_TRAIN, Stage.STAGE_MODEL
    assert stages == [train, model, model, model, train]
    found = [(event.progress.completed, event.progress.total) for event in await told(attempt)]
    assert found == [(200, 400), (300, 400), (400, 400)]
    assert [event.progress.eta_seconds for event in await told(attempt)] == pytest.approx([4.0, 2.0, 0.0])
