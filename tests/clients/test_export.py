"""A job's events in experiment trackers, read back with what reads them."""

import asyncio
import hashlib
import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.rpc import status_pb2
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.work_pb2 import Event, Lifecycle, PreviewMetrics, QuarterLoss, State, TrainMetrics
from ltxtrain_client.export import run_info, train_numbers
from ltxtrain_client.trackers import TRACKERS
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.clients.commands import JOB, Ltxtrain, add_job
from tests.clients.far_side import FarSide
from tests.clients.object_host import ObjectHost
from tests.clips import numbered, write_clip

SECRET = "https://user:pass@example.com/clips.zip?X-Signature=secret"


def train_event(step: int) -> Event:
    metrics = TrainMetrics(step=step, loss=1 / step, quarter_losses=[QuarterLoss(quarter=2, video_loss=0.25)])
    event = Event(train_metrics=metrics)
    event.time.FromSeconds(1_700_000_000 + step)
    return event


def add_training(far: FarSide, store: ObjectHost, folder: Path, last: int = 3) -> None:
    """A job with steps, a preview with its numbers, a preview that is gone, a warning and an end."""
    job = add_job(far)
    job.effective_spec.extend_prefix.training_data_url = SECRET
    job.effective_spec.extend_prefix.validation.add(prompt="it goes on")
    video = write_clip(folder / "preview.mp4", numbered(6)).read_bytes()
    name = far.add_artifact(
        JOB, "preview-000002-clip-1.mp4", video, Artifact.KIND_VALIDATION_VIDEO, hashlib.sha256(video).hexdigest()
    )
    store.objects[f"/{JOB}/preview-000002-clip-1.mp4"] = video
    made = far.artifacts[name]
    made.step, made.validation_index = 2, 0
    gone = Artifact(name=f"{JOB}/artifacts/gone.mp4", kind=Artifact.KIND_BASE_VIDEO, blob=Blob(), validation_index=0)
    far.events = [
        *(train_event(step) for step in range(1, last + 1)),
        Event(preview_metrics=PreviewMetrics(step=2, prefix_psnr_db=31.5, colour_drift=0.0)),
        Event(artifact=made),
        Event(artifact=gone),
        Event(warning=status_pb2.Status(code=9, message="Few clips.")),
        Event(lifecycle=Lifecycle(state=State.STATE_SUCCEEDED)),
    ]


def accumulated(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


async def test_tensorboard(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path) -> None:
    add_training(far, store, tmp_path)
    for _ in range(2):  # a second export replaces the first
        await ltxtrain("watch", JOB, "--to", "tensorboard", "--runs", tmp_path / "runs")
    found = accumulated(tmp_path / "runs/1")
    losses = [(item.step, item.value, item.wall_time) for item in found.Scalars("train/loss")]
    assert losses == [(step, pytest.approx(1 / step), 1_700_000_000.0 + step) for step in (1, 2, 3)]
    assert found.Scalars("train/quarter_2_loss")[0].value == 0.25
    assert [(item.step, item.value) for item in found.Scalars("preview_1/prefix_psnr_db")] == [(2, 31.5)]
    assert found.Scalars("preview_1/colour_drift")[0].value == 0.0
    [shown] = found.Images("preview_1/video")
    picture = Image.open(io.BytesIO(shown.encoded_image_string))
    assert (shown.step, picture.format, getattr(picture, "is_animated", False)) == (2, "GIF", True)
    assert found.Tags()["images"] == ["preview_1/video"]
    assert b"Few clips." in found.Tensors("warning")[0].tensor_proto.string_val[0]
    everything = b"".join(path.read_bytes() for path in (tmp_path / "runs/1").iterdir())
    assert b"example.com/clips.zip" in everything
    assert b"secret" not in everything and b"pass@" not in everything


async def test_an_export_goes_on_after_a_sequence(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_training(far, store, tmp_path)
    runs = ("--to", "tensorboard", "--runs", tmp_path / "runs")
    await ltxtrain("watch", JOB, *runs)
    far.events[7:] = [train_event(4), far.events[-1]]
    await ltxtrain("watch", JOB, "--after", 7, *runs)
    assert [item.step for item in accumulated(tmp_path / "runs/1").Scalars("train/loss")] == [1, 2, 3, 4]


async def test_only_jobs_are_exported(ltxtrain: Ltxtrain) -> None:
    assert "--to is for jobs" in (await ltxtrain("watch", "datasets/1", "--to", "wandb", code=2)).stderr


@pytest.mark.parametrize("name", [name for name in TRACKERS if importlib.util.find_spec(name) is None])
async def test_a_library_that_is_missing(far: FarSide, ltxtrain: Ltxtrain, name: str) -> None:
    add_job(far)
    assert f"ltxtrain-client[{name}]" in (await ltxtrain("watch", JOB, "--to", name, code=2)).stderr


def test_only_what_was_measured_is_a_number() -> None:
    assert "train/audio_loss" not in train_numbers(TrainMetrics(step=1))
    assert train_numbers(TrainMetrics(step=1, audio_loss=0.0))["train/audio_loss"] == 0.0


# Each writes on this machine alone, in a process of its own: they leave threads and hooks behind.
READERS = {
    # A log of LevelDB's form: 7 bytes, then blocks of 32 KiB with records of checksum, length and kind (2, 3: goes on).
    "wandb": """
from wandb.proto.wandb_internal_pb2 import Record
[path] = folder.rglob("*.wandb")
data, at, whole, found = path.read_bytes(), 7, b"", {}
while at < len(data):
    if 32768 - at % 32768 < 7:
        at += 32768 - at % 32768
        continue
    length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
    whole, at = whole + data[at + 7 : at + 7 + length], at + 7 + length
    if kind in (2, 3):
        continue
    record, whole = Record.FromString(whole), b""
    if not record.history.item:
        continue
    row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
    for key, value in row.items():
        found.setdefault(key, []).append([row["step"], value])
""",
    "mlflow": """
from mlflow import MlflowClient
client = MlflowClient()
[run] = client.search_runs([client.get_experiment_by_name("ltxtrain").experiment_id])
assert run.info.status == "FINISHED" and run.data.params["job"] == "jobs/1"
history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
found = {key: [[item.step, item.value] for item in values] for key, values in history.items()}
videos = client.list_artifacts(run.info.run_id, "previews/preview_1/video")
found["preview_1/video"] = [[2, item.path] for item in videos]
""",
    "trackio": """
import trackio
[run] = trackio.Api().runs("ltxtrain")
import sqlite3
[path] = folder.rglob("ltxtrain.db")
found = {}
for step, row in sqlite3.connect(path).execute("select step, metrics from metrics"):
    for key, value in json.loads(row).items():
        found.setdefault(key, []).append([step, value])
""",
}


@pytest.mark.parametrize("name", READERS)
async def test_the_real_library(far: FarSide, store: ObjectHost, tmp_path: Path, name: str) -> None:
    """LTXTRAIN_TRACKER_PYTHON names an interpreter that has the libraries beside the client; else this one is tried."""
    python = os.environ.get("LTXTRAIN_TRACKER_PYTHON", sys.executable)
    environ = {
        **os.environ,
        "LTXTRAIN_TRAIN": far.address,
        "WANDB_MODE": "offline",
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }
    probe = [python, "-c", f"import {name}"]
    if (await asyncio.to_thread(subprocess.run, probe, capture_output=True, cwd=tmp_path)).returncode:
        pytest.skip(f"{name} is not installed")
    add_training(far, store, tmp_path)
    export = [python, "-m", "ltxtrain_client.cli", "watch", JOB, "--to", name, "--runs", str(tmp_path / "runs")]
    for _ in range(1 if name == "wandb" else 2):  # a second export replaces the first; offline, wandb writes it beside
        await output(export, environ, tmp_path)
    read = f"import json, pathlib; folder = pathlib.Path({str(tmp_path)!r})\n{READERS[name]}\nprint(json.dumps(found))"
    found = json.loads((await output([python, "-c", read], environ, tmp_path)).splitlines()[-1])
    assert found["train/loss"] == [[1, 1.0], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert found["preview_1/prefix_psnr_db"] == [[2, 31.5]]
    assert found["preview_1/video"][0][0] == 2


async def output(command: list[str], environ: Mapping[str, str], folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env=environ, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 300)
    assert process.returncode == 0, errors.decode() + out.decode()
    return out.decode()


def test_a_run_is_called_after_its_job(far: FarSide) -> None:
    run = run_info(add_job(far))
    assert (run.key, run.config["job"]) == ("1", JOB)
