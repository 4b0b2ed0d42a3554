"""Listing, showing, cancelling and deleting, and what became of the data."""

import json

import grpc
import pytest
from google.type.money_pb2 import Money
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import ContinueFrom, ContinueMode, Job
from ltxtrain.v1.work_pb2 import ClipNumbers, Lifecycle, Outcome, Progress, ReportLine, ReportReason, Stage, State
from ltxtrain_client.cli.fetch import folder_of
from ltxtrain_client.cli.show import print_named

from tests.clients.commands import JOB, Ltxtrain, add_job, add_results
from tests.clients.far_side import FarSide, status
from tests.clients.object_host import ObjectHost


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


async def test_jobs_are_found_and_told_by_name_and_label(far: FarSide, ltxtrain: Ltxtrain) -> None:
    far.jobs["jobs/1"] = Job(name="jobs/1", display_name="Drone style", labels={"project": "film"})
    far.jobs["jobs/2"] = Job(name="jobs/2")
    filters = ("--label", "project=film", "--label", "take", "--text", "drone")
    head, named, bare = (await ltxtrain("jobs", *filters)).stdout.splitlines()
    assert head.split()[:3] == ["JOB", "NAME", "STATE"] and named.split()[:3] == ["jobs/1", "Drone", "style"]
    assert bare.startswith("jobs/2")
    asked = far.requests("ListJobs")[0]
    assert ([*asked.labels], asked.text) == (["project=film", "take"], "drone")
    shown = (await ltxtrain("job", "1")).stdout
    assert "Drone style" in shown and "project=film" in shown


async def test_every_line_about_a_job_has_the_name_that_people_gave_it(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_CANCELLED).display_name = "Drone style"
    shown = f"Drone style ({JOB})"
    for command in ("checkpoint", "preview"):
        assert (await ltxtrain(command, "1")).stdout.startswith(f"{shown}: ")
    assert (await ltxtrain("fetch", "1", code=5)).stderr.startswith(f"{shown} was cancelled")
    assert (await ltxtrain("watch", "1", code=3)).stdout.splitlines()[-1].startswith(f"{shown} cancelled")
    assert (await ltxtrain("delete", "1", "--yes")).stdout == f"{shown} deleted\n"


def test_a_column_of_names_is_shown_where_there_are_any(capsys: pytest.CaptureFixture[str]) -> None:
    for name, head in (("Drone style", ["DATASET", "NAME", "STATE"]), ("", ["DATASET", "STATE"])):
        print_named(("DATASET", "NAME", "STATE"), [("datasets/1", name, "running"), ("datasets/2", "", "failed")])
        first, *rows = capsys.readouterr().out.splitlines()
        assert first.split() == head and rows[0].split() == ["datasets/1", *name.split(), "running"]


async def test_a_job_is_submitted_with_a_name_and_its_files_go_to_a_folder_of_it(
    far: FarSide, ltxtrain: Ltxtrain
) -> None:
    await ltxtrain("submit", "--set", "dataset=datasets/1", "--name", "Drone style", "--label", "project=film")
    (sent,) = far.requests("CreateJob")
    assert (sent.display_name, dict(sent.labels)) == ("Drone style", {"project": "film"})
    folders = {"Drone style": "drone-style", "": ".", "../x/..": "x", "車 7": "車-7", "!!": "."}
    assert {name: str(folder_of(Job(display_name=name))) for name in folders} == folders


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
    job.effective_spec.extend_prefix.rank = 64
    job.lifecycle.error.CopyFrom(status(grpc.StatusCode.FAILED_PRECONDITION, "no videos", "NO_VIDEOS"))
    done = await ltxtrain("job", JOB)
    assert "failed" in done.stdout and "no videos (NO_VIDEOS)" in done.stdout and '"rank": 64' in done.stdout
    document = json.loads((await ltxtrain("job", JOB, "--json")).stdout)
    assert document["lifecycle"]["error"]["reason"] == "NO_VIDEOS"


async def test_a_job_is_shown_with_all_that_it_left(far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain) -> None:
    job = add_job(far)
    job.billable_units = 100
    job.price.CopyFrom(Money(currency_code="USD", nanos=620_000_000))
    far.add_artifact(JOB, "lora-000050.safetensors", b"x" * 1500, Artifact.KIND_LORA, "")
    add_results(far, store)
    rows = (await ltxtrain("job", JOB)).stdout.splitlines()
    assert [row.split() for row in rows[-5:]] == [
        ["FILE", "KIND", "SIZE", "DOWNLOADED", "BY"],
        ["lora.safetensors", "lora", "7", "B", "fetch"],
        ["config.json", "config", "2", "B", "fetch"],
        ["metrics.jsonl", "metrics", "3", "B", "fetch"],
        ["lora-000050.safetensors", "lora", "1.5", "kB", "fetch", "--all"],
    ]
    assert any("100 billable units (0.62 USD)" in row for row in rows)
    document = json.loads((await ltxtrain("job", JOB, "--json")).stdout)
    assert [item["blob"]["size_bytes"] for item in document["artifacts"]] == [1500, 7, 2, 3]


async def test_a_job_is_continued_from_the_command_line(far: FarSide, ltxtrain: Ltxtrain) -> None:
    done = await ltxtrain("submit", "--continue-from", "1", "--set", "number_of_steps=400")
    [request] = far.requests("CreateJob")
    assert request.continue_from == ContinueFrom(source=JOB, mode=ContinueMode.CONTINUE_MODE_EXACT)
    assert (request.spec.extend_prefix.number_of_steps, request.spec.extend_prefix.HasField("rank")) == (400, False)
    assert "jobs/1 from its beginning" in (await ltxtrain("job", done.stdout.strip())).stdout
    await ltxtrain("submit", "--continue-from", f"{JOB}/artifacts/lora.safetensors", "--weights")
    origin = far.requests("CreateJob")[-1].continue_from
    assert origin.source == f"{JOB}/artifacts/lora.safetensors"
    assert origin.mode == ContinueMode.CONTINUE_MODE_WEIGHTS
    for wrong in (("--weights", "--set", "rank=8"), ("--continue-from", "1", "--like", "1")):
        assert "--continue-from" in (await ltxtrain("submit", *wrong, code=2)).stderr
    assert "not a job" in (await ltxtrain("submit", "--continue-from", "datasets/1", code=2)).stderr


async def test_retry_checkpoint_and_preview(far: FarSide, ltxtrain: Ltxtrain) -> None:
    add_job(far, State.STATE_CANCELLED).checkpoint_step = 22
    assert (await ltxtrain("retry", "1")).stdout == "jobs/1again pending, from step 22\n"
    document = json.loads((await ltxtrain("retry", "1", "--json")).stdout)
    assert document["job"]["continue_from"]["source"] == JOB
    assert (await ltxtrain("checkpoint", "1")).stdout == "jobs/1: a checkpoint after the present step\n"
    assert (await ltxtrain("preview", JOB)).stdout == "jobs/1: previews after the present step\n"
    assert "a checkpoint and previews" in (await ltxtrain("job", "1")).stdout


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


async def test_what_unfinished_work_reads_is_not_deleted(far: FarSide, ltxtrain: Ltxtrain) -> None:
    job = add_job(far, State.STATE_RUNNING)
    job.display_name, job.dataset, job.training_set = "Drone style", "datasets/1", "trainingSets/1"
    job.validation_dataset = "datasets/2"
    far.jobs["jobs/2"] = Job(name="jobs/2", lifecycle=Lifecycle(state=State.STATE_PENDING))
    far.jobs["jobs/2"].continue_from.source = "jobs/3/artifacts/lora.safetensors"
    far.jobs["jobs/2"].effective_spec.continue_clips.SetInParent()
    far.jobs["jobs/3"] = Job(name="jobs/3", lifecycle=Lifecycle(state=State.STATE_SUCCEEDED))
    for name in ("datasets/1", "trainingSets/1", "datasets/2"):
        told = (await ltxtrain("delete", name, "--yes", code=5)).stderr
        assert "RESOURCE_IN_USE" in told and f"Drone style (jobs/1) has not ended and uses {name}" in told
    assert "jobs/2 has not ended and uses jobs/3" in (await ltxtrain("delete", "3", "--yes", code=5)).stderr
    refused = json.loads((await ltxtrain("datasets", "delete", "1", "--yes", "--json", code=5)).stderr)["error"]
    assert (refused["reason"], refused["metadata"]) == ("RESOURCE_IN_USE", {"name": "jobs/1"})
    job.lifecycle.state = State.STATE_CANCELLED
    for state, code in ((State.STATE_RUNNING, 5), (State.STATE_SUCCEEDED, 0)):
        far.training_state = state
        done = await ltxtrain("datasets", "delete", "1", "--yes", code=code)
    assert done.stdout == "datasets/1 deleted\n"


async def test_datasets_are_told_by_the_files_that_they_were(far: FarSide, ltxtrain: Ltxtrain) -> None:
    rows = [row.split() for row in (await ltxtrain("datasets", "list")).stdout.splitlines()]
    assert rows[0][-1] == "SOURCE" and rows[1][-1] == "holiday.zip"
    assert rows[2][-2:] == ["https://a/b.mp4,", "opening.mp4"]
    # Of a file without a name the upload is all that is known.
    assert rows[3][-1] == "upload:uploads/1"


async def test_a_job_like_one_whose_data_is_gone_asks_for_it(far: FarSide, ltxtrain: Ltxtrain) -> None:
    job = add_job(far)
    job.dataset, job.validation_dataset = "datasets/1", "datasets/2"
    gone = status(grpc.StatusCode.NOT_FOUND, "datasets/1 does not exist.", "RESOURCE_NOT_FOUND")
    far.fail("GetDataset", gone, None, gone)
    told = (await ltxtrain("submit", "--like", "1", code=5)).stderr
    assert told == "datasets/1 of jobs/1 was deleted. Give its files with --data.\n"
    refused = json.loads((await ltxtrain("submit", "--like", "1", "--json", code=5)).stderr)["error"]
    assert refused["reason"] == "RESOURCE_NOT_FOUND"
    assert refused["message"] == "datasets/2 of jobs/1 was deleted. Give its files with --validation."


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
    assert told[0] == "2 of 4 videos are used for training, 2 are not"
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
