"""Files that fetching brings, their names, and its words about jobs that have none."""

import hashlib
import json
from pathlib import Path

import grpc
import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.work_pb2 import State

from tests.clients.commands import JOB, Ltxtrain, add_job, add_results
from tests.clients.far_side import FarSide, progress_events, status
from tests.clients.object_host import Fault, ObjectHost


def add_file(far: FarSide, store: ObjectHost, file: str) -> str:
    store.objects[f"/{JOB}/{file}"] = b"made"
    return far.add_artifact(JOB, file, b"made", Artifact.KIND_LORA, hashlib.sha256(b"made").hexdigest())


async def test_fetch_brings_results_and_pages(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_job(far)
    files = add_results(far, store)
    far.add_artifact(JOB, "lora-000050.safetensors", b"old", Artifact.KIND_LORA, hashlib.sha256(b"old").hexdigest())
    store.objects[f"/{JOB}/lora-000050.safetensors"] = b"old"
    await ltxtrain("fetch", JOB, "--out", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files
    await ltxtrain("fetch", JOB, "--out", tmp_path, "--all")
    assert (tmp_path / "lora-000050.safetensors").read_bytes() == b"old"


async def test_an_artifacts_name_cannot_leave_the_folder(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_job(far)
    far.add_artifact(JOB, "..", b"x", Artifact.KIND_LORA, hashlib.sha256(b"x").hexdigest())
    store.objects[f"/{JOB}/.."] = store.objects["/jobs/"] = store.objects["/jobs"] = b"x"
    out = tmp_path / "deep" / "out"
    await ltxtrain("fetch", JOB, "--out", out, "--all")
    assert [path.name for path in out.iterdir()] == ["artifact"]


async def test_fetch_before_there_is_anything(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_RUNNING)
    assert "has no results yet" in (await ltxtrain("fetch", JOB, code=5)).stderr


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("1/lora.safetensors", "ltxtrain job 1"),
        ("jobs/1/lora.safetensors", "ltxtrain job 1"),
        ("datasets/2", "ltxtrain datasets show 2"),
    ],
)
async def test_a_name_of_no_file_leads_to_the_list_of_them(
    far: FarSide, ltxtrain: Ltxtrain, name: str, command: str
) -> None:
    boxed = (await ltxtrain("fetch", name, code=2)).stderr
    assert f"`{command}` lists them" in " ".join(boxed.replace("│", " ").split())


async def test_an_object_store_that_refuses_is_unreachable(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_job(far)
    add_results(far, store)
    store.faults.append(Fault(status=403))
    done = await ltxtrain("fetch", JOB, "--out", tmp_path, code=4)
    assert "lora.safetensors" in done.stderr


async def test_a_failed_job_tells_why(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path) -> None:
    job = add_job(far, State.STATE_FAILED)
    job.lifecycle.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "no videos", "NO_VIDEOS"))
    for options in ([], ["--all"]):
        done = await ltxtrain("fetch", JOB, *options, code=5)
        assert done.stderr == f"{JOB} failed: no videos (NO_VIDEOS)\nIt left no other files either.\n"
    add_file(far, store, "lora-000050.safetensors")
    done = await ltxtrain("fetch", JOB, code=5)
    assert done.stderr.splitlines()[-1] == f"It left 1 other file: ltxtrain fetch {JOB} --all"
    await ltxtrain("fetch", JOB, "--all", "--out", tmp_path)
    assert (tmp_path / "lora-000050.safetensors").read_bytes() == b"made"


async def test_a_job_cancelled_too_early_tells_when_it_would_have_had_a_lora(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_CANCELLED).options.checkpoint_interval = 250
    text = f"{JOB} was cancelled before its first checkpoint (checkpoint_interval 250)."
    assert text in (await ltxtrain("fetch", JOB, code=5)).stderr
    far.events = progress_events(2, State.STATE_CANCELLED)
    done = await ltxtrain("watch", JOB, "--out", "anywhere", code=3)
    assert "cancelled before its first checkpoint (checkpoint_interval 250)" in done.stdout
    assert done.stderr == "No results to download. It left no other files either.\n"


async def test_a_cancelled_job_tells_of_its_lora(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_job(far, State.STATE_CANCELLED).checkpoint_step = 50
    assert "its checkpoint at step 50 failed its checks" in (await ltxtrain("fetch", JOB, code=5)).stderr
    far.output.lora_file = add_file(far, store, "lora-000050.safetensors")
    far.events = progress_events(2, State.STATE_CANCELLED)
    done = await ltxtrain("watch", JOB, code=3)
    assert done.stdout.splitlines()[-1].endswith(
        f"cancelled with the LoRA of its checkpoint at step 50: ltxtrain fetch {JOB}"
    )
    await ltxtrain("fetch", JOB, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["lora-000050.safetensors"]


@pytest.mark.parametrize("command", [("fetch", JOB), ("watch", JOB)])
async def test_every_file_is_listed_under_the_artifacts_own_name(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path, command: tuple[str, ...]
) -> None:
    add_job(far)
    far.events = progress_events(2)
    add_results(far, store)
    far.output.lora_video_only_file = add_file(far, store, "lora-video-only.safetensors")
    names = ["lora.safetensors", "config.json", "lora-video-only.safetensors", "metrics.jsonl"]
    for _ in "fetched", "there already":
        text = (await ltxtrain(*command, "--out", tmp_path)).stdout
        assert "\n".join(["downloaded", *(f"  {tmp_path / name}" for name in names)]) in text
    lines = (await ltxtrain(*command, "--out", tmp_path, "--json")).stdout.splitlines()
    assert {"files": [str(tmp_path / name) for name in names]} in map(json.loads, lines)
    assert {path.name for path in tmp_path.iterdir()} == set(names)


async def test_errors_in_json(far: FarSide, ltxtrain: Ltxtrain) -> None:
    job = add_job(far, State.STATE_FAILED)
    job.lifecycle.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "no videos", "NO_VIDEOS"))
    error = json.loads((await ltxtrain("fetch", JOB, "--json", code=5)).stderr)["error"]
    assert error["exit_code"] == 5 and "no videos" in error["message"]
    error = json.loads((await ltxtrain("job", "nowhere", "--json", code=5)).stderr)["error"]
    assert (error["code"], error["reason"]) == ("NOT_FOUND", "RESOURCE_NOT_FOUND")
    error = json.loads((await ltxtrain("estimate", "--set", "rnk=3", "--json", code=2)).stderr)["error"]
    assert error["violations"] == [
        {"field": "rnk", "reason": "INVALID_SPEC", "description": "is not known; did you mean rank?"},
    ]
    assert "error" not in (await ltxtrain("job", "nowhere", code=5)).stderr


async def test_every_line_about_a_service_that_is_away_is_json(ltxtrain: Ltxtrain) -> None:
    done = await ltxtrain("--train", "127.0.0.1:1", "watch", JOB, "--patience", 0.5, "--json", code=4)
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert [list(line) for line in told] == [["note"], ["error"], ["resume"]]
    assert told[1]["error"]["code"] == "UNAVAILABLE"
