"""`ltxtrain continue`: openings from the command line, and the videos that come of them."""

import hashlib
import json
from pathlib import Path

import grpc
import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import Resolution, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import ContinueFrom, Job, JobOptions
from ltxtrain.v1.work_pb2 import Lifecycle, State
from ltxtrain_client.outputs import is_result, result_files
from ltxtrain_client.sheet_files import PENDING_UPLOAD
from ltxtrain_client.train import TrainClient

from tests.clients.commands import JOB, MP4, Ltxtrain
from tests.clients.far_side import FarSide, progress_events, status, violations
from tests.clients.object_host import ObjectHost


@pytest.fixture
def opening(tmp_path: Path) -> Path:
    path = tmp_path / "opening.mp4"
    path.write_bytes(MP4)
    return path


async def test_files_urls_and_clips_are_continued_in_one_call(
    far: FarSide, ltxtrain: Ltxtrain, store: ObjectHost, opening: Path
) -> None:
    url, clip = "https://example.com/b.mp4", "datasets/1/clips/3"
    prompts = [word for text in ("a", "b", "c", "d") for word in ("--prompt", text)]
    settings = ("--frames", 57, "--seed", 7, "--resolution", "low", "--base", "--webhook", "https://example.com/hook")
    done = await ltxtrain("continue", "1", opening, url, clip, opening, *prompts, *settings)
    asked, sent = far.requests("CreateJob")
    upload = f"upload:uploads/{hashlib.sha256(MP4).hexdigest()[:32]}"
    places = [upload, url, f"dataset:{clip}", upload]
    assert [(entry.prompt, entry.video_url) for entry in sent.spec.continue_clips.openings] == list(
        zip("abcd", places, strict=True)
    )
    assert len(far.requests("CreateUpload")) == 1, "a file is sent once"
    assert asked.validate_only and asked.spec.continue_clips.openings[0].video_url == PENDING_UPLOAD
    clips = sent.spec.continue_clips
    assert (clips.number_of_frames, clips.resolution, clips.base_model) == (57, Resolution.RESOLUTION_LOW, True)
    assert not clips.HasField("sampling_steps") and not clips.aspect_ratio, "the server knows the job's"
    assert sent.continue_from == ContinueFrom(source="jobs/1")
    assert sent.options == JobOptions(seed=7) and sent.webhook_url == "https://example.com/hook"
    assert done.stdout.strip().splitlines()[-1].startswith("jobs/")


async def test_one_prompt_is_for_all_and_one_lora_is_named(far: FarSide, ltxtrain: Ltxtrain) -> None:
    lora = "jobs/1/artifacts/lora-000500.safetensors"
    await ltxtrain("continue", lora, "https://example.com/a.mp4", "https://example.com/b.mp4", "-p", "on it goes")
    (sent,) = far.requests("CreateJob")
    assert {entry.prompt for entry in sent.spec.continue_clips.openings} == {"on it goes"}
    assert sent.continue_from.source == lora


async def test_what_is_wrong_is_told_before_anything_is_sent(
    far: FarSide, ltxtrain: Ltxtrain, tmp_path: Path, opening: Path
) -> None:
    (tmp_path / "notes.txt").write_text("no video")
    for words, says in (
        ((opening,), "--prompt"),
        ((opening, opening, "-p", "a", "-p", "b", "-p", "c"), "3 prompts for 2 openings"),
        ((tmp_path / "notes.txt", "-p", "a"), "notes.txt is text, not a video"),
        ((tmp_path / "none.mp4", "-p", "a"), "none.mp4"),
        ((opening, "-p", "a", "--resolution", "huge"), "low, medium, high"),
    ):
        assert says in (await ltxtrain("continue", "1", *words, code=2)).output
    field = "spec.continue_clips.openings[0].prompt"
    fault = violations((field, "FIELD_OUT_OF_RANGE", "It is too long."))
    code = grpc.StatusCode.INVALID_ARGUMENT
    far.fail("CreateJob", status(code, "1 field is wrong.", "INVALID_SPEC", details=[fault]))
    assert "openings[0].prompt" in (await ltxtrain("continue", "1", opening, "-p", "a", code=2)).output
    assert not far.requests("CreateUpload")


async def test_the_videos_are_fetched_at_the_end(
    far: FarSide, ltxtrain: Ltxtrain, store: ObjectHost, tmp_path: Path
) -> None:
    far.events = progress_events(2)
    for name, kind in (
        ("continued-clip-1.mp4", Artifact.KIND_CONTINUED_VIDEO),
        ("base-clip-1.mp4", Artifact.KIND_BASE_VIDEO),
        ("lora.safetensors", Artifact.KIND_LORA),
    ):
        content = name.encode()
        far.add_artifact(JOB, name, content, kind, hashlib.sha256(content).hexdigest())
        store.objects[f"/{JOB}/{name}"] = content
    far.output.continued_videos.append(f"{JOB}/artifacts/continued-clip-1.mp4")
    far.output.base_videos.append(f"{JOB}/artifacts/base-clip-1.mp4")
    out = tmp_path / "out"
    await ltxtrain("continue", "1", "https://example.com/a.mp4", "-p", "a", "--out", out)
    assert {path.name: path.read_text() for path in out.iterdir()} == {
        name: name for name in ("continued-clip-1.mp4", "base-clip-1.mp4")
    }


async def test_a_job_that_continues_clips_is_shown_as_one(far: FarSide, ltxtrain: Ltxtrain) -> None:
    clips = ContinueClipsSpec(openings=[ValidationInput(prompt="a disc")], sampling_steps=12)
    lora = "jobs/0/artifacts/lora.safetensors"
    job = far.jobs[JOB] = Job(
        name=JOB,
        lifecycle=Lifecycle(state=State.STATE_SUCCEEDED),
        effective_spec=TaskSpec(continue_clips=clips),
        continue_from=ContinueFrom(source="jobs/0", artifact=lora),
    )
    shown = (await ltxtrain("job", "1")).stdout
    assert f"clips with {lora}" in shown and '"sampling_steps": 12' in shown
    assert json.loads((await ltxtrain("job", "1", "--json")).stdout)["effective_spec"]["continue_clips"]["openings"]
    assert "trained nothing" in (await ltxtrain("submit", "--like", "1", code=2)).output
    job.output.continued_videos.append(f"{JOB}/artifacts/continued-clip-1.mp4")
    assert result_files(job) == {"continued-clip-1.mp4": f"{JOB}/artifacts/continued-clip-1.mp4"}
    assert is_result(Artifact(name=f"{JOB}/artifacts/continued-clip-1.mp4", kind=Artifact.KIND_CONTINUED_VIDEO), job)


async def test_clips_are_continued_through_the_client(far: FarSide, train: TrainClient) -> None:
    spec = ContinueClipsSpec(openings=[ValidationInput(prompt="a disc", video_url="https://example.com/a.mp4")])
    for call in (train.validate, train.submit):
        job = await call(spec, continue_from=ContinueFrom(source="jobs/1"))
        assert job.spec == TaskSpec(continue_clips=spec)


async def test_webhooks_are_asked_for_on_the_command_line(far: FarSide, ltxtrain: Ltxtrain) -> None:
    hook = "https://example.com/hook"
    await ltxtrain("submit", "--set", "dataset=datasets/1", "--webhook", hook)
    far.jobs[JOB] = Job(name=JOB, lifecycle=Lifecycle(state=State.STATE_FAILED))
    await ltxtrain("retry", "1", "--webhook", hook)
    assert [far.requests(call)[-1].webhook_url for call in ("CreateJob", "RetryJob")] == [hook, hook]


async def test_a_list_and_what_happens_after_it_leave_no_gap(far: FarSide, train: TrainClient) -> None:
    far.cursor = 42
    assert await train.watch_cursor() == 42
