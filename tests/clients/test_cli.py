"""The commands, run in this process against real servers on loopback."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import Resolution
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import ClipNumbers, Lifecycle, Outcome, Progress, ReportLine, ReportReason, Stage, State
from ltxtrain_client.cli import app
from typer.testing import CliRunner

from tests.clients.far_side import EXAMPLE, Act, FarSide, Fault, ObjectHost, end_ok, progress_events, status, violations

JOB = "jobs/1"


class Ltxtrain:
    """Runs the command beside the event loop that serves it."""

    def __init__(self, far: FarSide) -> None:
        self._environ = {f"LTXTRAIN_{name}": far.address for name in ("TRAIN", "INGEST", "PREPROCESS")}

    async def __call__(self, *arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
        runner = CliRunner(env=self._environ)
        done = await asyncio.to_thread(runner.invoke, app, [str(argument) for argument in arguments], input=stdin)
        assert done.exit_code == code, done.output
        return done


@pytest.fixture
def ltxtrain(far: FarSide) -> Ltxtrain:
    return Ltxtrain(far)


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(EXAMPLE)
    return path


def add_job(far: FarSide, state: "State" = State.STATE_SUCCEEDED) -> Job:
    job = far.jobs[JOB] = Job(name=JOB, lifecycle=Lifecycle(state=state))
    return job


def add_results(far: FarSide, store: ObjectHost) -> dict[str, bytes]:
    """What every job has made, and a page; file name → content."""
    files = {"lora.safetensors": b"weights", "config.json": b"{}", "metrics.jsonl": b"{}\n"}
    kinds = (Artifact.KIND_LORA, Artifact.KIND_CONFIG, Artifact.KIND_METRICS)
    for (file, content), kind in zip(files.items(), kinds, strict=True):
        far.add_artifact(JOB, file, content, kind, hashlib.sha256(content).hexdigest())
        store.objects[f"/{JOB}/{file}"] = content
    far.output.lora_file = f"{JOB}/artifacts/lora.safetensors"
    far.output.config_file = f"{JOB}/artifacts/config.json"
    return files


async def test_submit_sends_the_sheet_and_names_the_job(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("submit", sheet, "--set", "rank=64", "--set", "options.seed=7")
    (request,) = far.requests("CreateJob")
    assert request.spec.resolution == Resolution.RESOLUTION_MEDIUM
    assert (request.spec.rank, request.options.seed) == (64, 7)
    assert done.stdout.strip() in far.jobs


async def test_submit_reads_stdin(far: FarSide, ltxtrain: Ltxtrain) -> None:
    await ltxtrain("submit", "-", stdin=EXAMPLE)
    assert far.requests("CreateJob")[0].spec.training_data_url == "https://example.com/clips.zip"


async def test_local_files_are_uploaded_and_named_in_the_spec(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    contents = {"clips.zip": b"zip", "a.mp4": b"first", "b.mp4": b"second"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    data, first, second = (tmp_path / name for name in contents)
    await ltxtrain("submit", sheet, "--data", data, "--validation", first, "--validation", second)
    checked, sent = far.requests("CreateJob")
    assert (checked.validate_only, sent.validate_only) == (True, False)
    urls = [sent.spec.training_data_url, *(entry.video_url for entry in sent.spec.validation)]
    assert [store.objects[f"/{url.removeprefix('upload:')}"] for url in urls] == list(contents.values())
    assert [entry.prompt for entry in sent.spec.validation] == ["a car accelerating down a road", ""]


async def test_a_wrong_spec_is_told_before_anything_is_uploaded(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    wrong = violations(("spec.rank", "FIELD_NOT_ALLOWED", "rank is one of 8, 16, 32, 64, 128"))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(b"zip")
    done = await ltxtrain("submit", sheet, "--data", tmp_path / "clips.zip", code=2)
    assert "spec.rank: rank is one of 8, 16, 32, 64, 128 (FIELD_NOT_ALLOWED)" in done.stderr
    assert store.requests == [] and far.jobs == {}


async def test_what_stands_for_a_file_that_comes_later_is_no_fault(
    far: FarSide, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    wrong = violations(("spec.training_data_url", "URL_NOT_ALLOWED", "no such upload"))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(b"zip")
    await ltxtrain("submit", sheet, "--data", tmp_path / "clips.zip")
    assert len(far.jobs) == 1


async def test_a_wrong_sheet_is_told_with_every_fault(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("submit", sheet, "--set", "rnk=64", "--set", "resolution=huge", code=2)
    assert "rnk: is not known; did you mean rank?" in done.stderr
    assert 'resolution: must be one of "low", "medium", "high", not "huge"' in done.stderr
    assert [request.validate_only for request in far.requests("CreateJob")] == [True]


async def test_data_and_a_dataset_exclude_each_other(ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path) -> None:
    sheet.write_text('{"dataset": "datasets/1"}')
    (tmp_path / "clips.zip").write_bytes(b"zip")
    done = await ltxtrain("submit", sheet, "--data", tmp_path / "clips.zip", code=2)
    assert "dataset: cannot be given together with --data" in done.stderr


async def test_validate_only_shows_the_sheet_and_starts_nothing(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("submit", sheet, "--validate-only", "--json")
    assert json.loads(done.stdout).items() >= {"rank": 32, "resolution": "medium", "aspect_ratio": "1:1"}.items()
    assert far.jobs == {}


@pytest.mark.parametrize(
    ("ending", "code"), [(State.STATE_SUCCEEDED, 0), (State.STATE_FAILED, 1), (State.STATE_CANCELLED, 3)]
)
async def test_the_exit_code_is_the_jobs_end(
    far: FarSide, ltxtrain: Ltxtrain, sheet: Path, ending: "State", code: int
) -> None:
    far.events = progress_events(4, ending)
    done = await ltxtrain("submit", sheet, "--watch", code=code)
    assert "train: 1/4" in done.stdout
    assert State.Name(ending).removeprefix("STATE_").lower() in done.stdout.splitlines()[-1]


async def test_submit_out_brings_the_files(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    far.events = progress_events(3)
    files = add_results(far, store)
    await ltxtrain("submit", sheet, "--out", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == files


async def test_watch_from_a_cursor_in_json(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far)
    far.events = progress_events(5)
    far.acts.append(Act(send=1, then=end_ok))
    done = await ltxtrain("watch", "1", "--after", 2, "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["sequence"] for line in lines[:-1]] == [3, 4, 5]
    assert lines[-1]["ended"]["lifecycle"]["state"] == "succeeded"


async def test_datasets_are_watched_too(far: FarSide, ltxtrain: Ltxtrain) -> None:
    far.events = progress_events(2, State.STATE_FAILED)
    done = await ltxtrain("watch", "datasets/9", code=1)
    assert done.stdout.splitlines()[-1] == "datasets/9 failed"


async def test_a_job_that_is_not_there(ltxtrain: Ltxtrain) -> None:
    for command in ("job", "fetch", "report"):
        done = await ltxtrain(command, "nowhere", code=5)
        assert "no such job (RESOURCE_NOT_FOUND)" in done.stderr


async def test_names_of_other_kinds_are_wrong_usage(ltxtrain: Ltxtrain) -> None:
    for arguments in (
        ("job", "datasets/1"),
        ("watch", "clips/1"),
        ("cancel", "jobs/1/artifacts/x"),
        ("jobs", "--state", "x"),
    ):
        await ltxtrain(*arguments, code=2)


async def test_jobs_as_a_table_and_as_json(far: FarSide, ltxtrain: Ltxtrain) -> None:
    for number, state in enumerate((State.STATE_RUNNING, State.STATE_FAILED, State.STATE_RUNNING)):
        far.jobs[f"jobs/{number}"] = Job(name=f"jobs/{number}", lifecycle=Lifecycle(state=state))
    done = await ltxtrain("jobs")
    assert [line.split()[:2] for line in done.stdout.splitlines()] == [
        ["JOB", "STATE"],
        ["jobs/0", "running"],
        ["jobs/1", "failed"],
        ["jobs/2", "running"],
    ]
    done = await ltxtrain("jobs", "--state", "running", "--json", "--limit", 1)
    assert [json.loads(line)["name"] for line in done.stdout.splitlines()] == ["jobs/0"]


async def test_jobs_say_how_far_they_are_and_why_they_failed(far: FarSide, ltxtrain: Ltxtrain) -> None:
    """A job that has succeeded is in no stage, whatever its last progress counted."""
    running, done, failed = (
        Lifecycle(state=state) for state in (State.STATE_RUNNING, State.STATE_SUCCEEDED, State.STATE_FAILED)
    )
    failed.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "no videos", "NO_VIDEOS"))
    counted = Progress(completed=100, total=100)
    far.jobs["jobs/0"] = Job(name="jobs/0", lifecycle=running, stage=Stage.STAGE_TRAIN, progress=counted)
    far.jobs["jobs/1"] = Job(name="jobs/1", lifecycle=done, stage=Stage.STAGE_PUBLISH, progress=counted)
    far.jobs["jobs/2"] = Job(name="jobs/2", lifecycle=failed, stage=Stage.STAGE_INGEST)
    lines = (await ltxtrain("jobs")).stdout.splitlines()
    assert [line.split() for line in lines] == [
        ["JOB", "STATE", "STAGE", "CREATED", "REASON"],
        ["jobs/0", "running", "train", "100/100", "steps"],
        ["jobs/1", "succeeded"],
        ["jobs/2", "failed", "ingest", "NO_VIDEOS"],
    ]
    assert "publish" not in (await ltxtrain("job", "1")).stdout


async def test_a_job_is_shown_with_its_sheet(far: FarSide, ltxtrain: Ltxtrain) -> None:
    job = add_job(far, State.STATE_FAILED)
    job.effective_spec.rank = 64
    job.lifecycle.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "no videos", "NO_VIDEOS"))
    done = await ltxtrain("job", JOB)
    assert "failed" in done.stdout and "no videos (NO_VIDEOS)" in done.stdout and '"rank": 64' in done.stdout
    document = json.loads((await ltxtrain("job", JOB, "--json")).stdout)
    assert document["lifecycle"]["error"]["reason"] == "NO_VIDEOS"


async def test_a_job_is_shown_with_all_that_it_left(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain) -> None:
    job = add_job(far)
    job.billable_units, job.price_usd = 100, 0.62
    far.add_artifact(JOB, "lora-000050.safetensors", b"x" * 1500, Artifact.KIND_LORA, "")
    add_results(far, store)
    rows = (await ltxtrain("job", JOB)).stdout.splitlines()
    assert [row.split() for row in rows[-5:]] == [
        ["FILE", "KIND", "SIZE", "BROUGHT", "BY"],
        ["lora.safetensors", "lora", "7", "B", "fetch"],
        ["config.json", "config", "2", "B", "fetch"],
        ["metrics.jsonl", "metrics", "3", "B", "fetch"],
        ["lora-000050.safetensors", "lora", "1.5", "kB", "fetch", "--all"],
    ]
    assert any("100 billable units (0.62 USD at the unit price" in row for row in rows)
    document = json.loads((await ltxtrain("job", JOB, "--json")).stdout)
    assert [item["blob"]["size_bytes"] for item in document["artifacts"]] == [1500, 7, 2, 3]


async def test_cancel_and_delete(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_RUNNING)
    assert (await ltxtrain("cancel", "1")).stdout == f"{JOB} cancelling\n"
    await ltxtrain("delete", "1", "--yes")
    assert far.jobs == {}


@pytest.mark.parametrize("answer", ["n\n", "y\n", ""])
async def test_nothing_is_deleted_unasked(far: FarSide, ltxtrain: Ltxtrain, answer: str) -> None:
    add_job(far)
    assert "Add --yes" in (await ltxtrain("delete", "1", code=2, stdin=answer)).stderr
    assert far.calls == []
    done = await ltxtrain("delete", "1", "--yes", "--json")
    assert json.loads(done.stdout) == {"deleted": JOB} and far.jobs == {}


async def test_deleting_what_still_runs_is_refused(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_RUNNING)
    far.fail("DeleteJob", status(grpc.StatusCode.FAILED_PRECONDITION, "it runs", "RESOURCE_NOT_READY"))
    assert "RESOURCE_NOT_READY" in (await ltxtrain("delete", "1", "--yes", code=5)).stderr


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


async def test_an_object_store_that_refuses_is_unreachable(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    add_job(far)
    add_results(far, store)
    store.faults.append(Fault(status=403))
    done = await ltxtrain("fetch", JOB, "--out", tmp_path, code=4)
    assert "lora.safetensors" in done.stderr


def line(path: str, outcome: "Outcome", *reasons: "ReportReason", text: str = "", decoded: bool = False) -> ReportLine:
    numbers = ClipNumbers(width=768) if decoded else None
    return ReportLine(path=path, outcome=outcome, reasons=reasons, description=text, numbers=numbers)


async def test_a_report_says_of_each_file_what_became_of_it(far: FarSide, ltxtrain: Ltxtrain) -> None:
    job = add_job(far)
    job.dataset, job.training_set = "datasets/1", "trainingSets/1"
    kept, changed, skipped = Outcome.OUTCOME_KEPT, Outcome.OUTCOME_KEPT_CHANGED, Outcome.OUTCOME_SKIPPED
    too_short = ReportReason.REPORT_REASON_CLIP_TOO_SHORT
    far.report = [
        *(line(f"{name}.mp4", kept, decoded=True) for name in ("c", "b", "a/[1]")),
        *(line(f"{name}.txt", kept) for name in ("c", "b", "a/[1]")),
        line("__MACOSX/._b.mp4", Outcome.OUTCOME_IGNORED, ReportReason.REPORT_REASON_IGNORED_FILE),
        line("broken.mp4", skipped, ReportReason.REPORT_REASON_UNDECODABLE),
        line("", kept, ReportReason.REPORT_REASON_FEW_CLIPS, text="3 clips; 10 or more are recommended"),
    ]
    far.training_report = [
        line("c.mp4", changed, ReportReason.REPORT_REASON_SPLIT, decoded=True),
        line("c.mp4", kept, text="frames 0 to 60", decoded=True),
        line("c.mp4", skipped, ReportReason.REPORT_REASON_SCENE_TOO_SHORT, decoded=True),
        line("b.mp4", kept, decoded=True),
        line("a/[1].mp4", skipped, too_short, text="61 frames, 89 needed", decoded=True),
        line("opening.mp4", kept, decoded=True),
    ]
    told = [row.rstrip() for row in (await ltxtrain("report", JOB)).stdout.splitlines()]
    assert told[0] == "2 of 4 videos train, 2 do not"
    assert "datasets/1: 4 videos: 3 kept, 1 skipped; 4 other files: 3 kept, 1 ignored" in told
    header = "trainingSets/1: 3 videos: 1 kept, 1 changed, 1 skipped; for validation 1 video: 1 kept"
    assert header in told
    assert "  At 57 frames 1 more clip would fit." in told
    columns = [row.split()[:2] for row in told if row.startswith(("kept", "changed", "skipped", "ignored"))]
    assert columns == [
        *(["skipped", "broken.mp4"], ["ignored", "__MACOSX/._b.mp4"]),
        *(["kept", path] for path in ("a/[1].mp4", "a/[1].txt", "b.mp4", "b.txt", "c.mp4", "c.txt")),
        *(["skipped", "a/[1].mp4"], ["skipped", "c.mp4"], ["changed", "c.mp4"]),
        *(["kept", path] for path in ("b.mp4", "c.mp4", "opening.mp4")),
    ]
    assert any(row.startswith("note") and "FEW_CLIPS" in row for row in told)
    assert any("CLIP_TOO_SHORT" in row and row.endswith("61 frames, 89 needed") for row in told)


async def test_a_report_in_json_has_the_contracts_names(far: FarSide, ltxtrain: Ltxtrain) -> None:
    skipped = line("a.mp4", Outcome.OUTCOME_SKIPPED, ReportReason.REPORT_REASON_CLIP_TOO_SHORT)
    far.report = [skipped, *(line(f"{number}.mp4", Outcome.OUTCOME_KEPT) for number in range(3))]
    lines = [json.loads(text) for text in (await ltxtrain("report", "datasets/1", "--json")).stdout.splitlines()]
    assert [item["line"]["path"] for item in lines] == ["a.mp4", "0.mp4", "1.mp4", "2.mp4"]
    assert lines[0]["line"]["reasons"] == ["CLIP_TOO_SHORT"]


async def test_an_estimate(ltxtrain: Ltxtrain, sheet: Path) -> None:
    text = (await ltxtrain("estimate", sheet)).stdout
    assert "1 h 00 min to 2 h 01 min" in text and "60.0 GB on each GPU" in text and "12.40 USD" in text
    assert json.loads((await ltxtrain("estimate", sheet, "--json")).stdout)["tokens_per_clip"] == 6912


async def test_nobody_there(ltxtrain: Ltxtrain) -> None:
    done = await ltxtrain("--train", "127.0.0.1:1", "jobs", code=4)
    assert "ltxtrain up" in done.stderr


async def test_wrong_settings(ltxtrain: Ltxtrain) -> None:
    assert "host and a port" in (await ltxtrain("--train", "localhost", "jobs", code=2)).stderr
