"""The commands, run in this process against real servers on loopback."""

import json
from pathlib import Path

import grpc
import pytest
from ltxtrain.v1.extend_prefix_pb2 import Resolution
from ltxtrain.v1.work_pb2 import State

from tests.clients.commands import MP4, Ltxtrain, add_job, add_results, clips_zip
from tests.clients.far_side import EXAMPLE, Act, FarSide, end_ok, progress_events, status, violations
from tests.clients.object_host import ObjectHost


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text(EXAMPLE)
    return path


async def test_submit_sends_the_sheet_and_names_the_job(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("submit", sheet, "--set", "rank=64", "--set", "options.seed=7")
    (request,) = far.requests("CreateJob")
    assert request.spec.extend_prefix.resolution == Resolution.RESOLUTION_MEDIUM
    assert (request.spec.extend_prefix.rank, request.options.seed) == (64, 7)
    assert done.stdout.strip() in far.jobs


async def test_submit_reads_stdin(far: FarSide, ltxtrain: Ltxtrain) -> None:
    await ltxtrain("submit", "-", stdin=EXAMPLE)
    assert far.requests("CreateJob")[0].spec.extend_prefix.training_data_url == "https://example.com/clips.zip"


async def test_local_files_are_uploaded_and_named_in_the_spec(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    contents = {"clips.zip": clips_zip(), "a.mp4": MP4 + b"first", "b.mp4": MP4 + b"second"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    data, first, second = (tmp_path / name for name in contents)
    await ltxtrain("submit", sheet, "--data", data, "--validation", first, "--validation", second)
    checked, sent = far.requests("CreateJob")
    assert (checked.validate_only, sent.validate_only) == (True, False)
    urls = [
        sent.spec.extend_prefix.training_data_url,
        *(entry.video_url for entry in sent.spec.extend_prefix.validation),
    ]
    assert [store.objects[f"/{url.removeprefix('upload:')}"] for url in urls] == list(contents.values())
    assert [entry.prompt for entry in sent.spec.extend_prefix.validation] == ["a car accelerating down a road", ""]


async def test_a_wrong_spec_is_told_before_anything_is_uploaded(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    wrong = violations(("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "rank is one of 8, 16, 32, 64, 128"))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(clips_zip())
    done = await ltxtrain("submit", sheet, "--data", tmp_path / "clips.zip", code=2)
    assert "  rank: rank is one of 8, 16, 32, 64, 128 (FIELD_NOT_ALLOWED)" in done.stderr
    assert store.requests == [] and far.jobs == {}


async def test_what_stands_for_a_file_that_comes_later_is_no_fault(
    far: FarSide, ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path
) -> None:
    wrong = violations(("spec.extend_prefix.training_data_url", "URL_NOT_ALLOWED", "no such upload"))
    far.fail("CreateJob", status(grpc.StatusCode.INVALID_ARGUMENT, "1 field is wrong", "INVALID_SPEC", details=[wrong]))
    (tmp_path / "clips.zip").write_bytes(clips_zip())
    await ltxtrain("submit", sheet, "--data", tmp_path / "clips.zip")
    assert len(far.jobs) == 1


async def test_a_wrong_sheet_is_told_with_every_fault(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("submit", sheet, "--set", "rnk=64", "--set", "resolution=huge", code=2)
    assert "rnk: is not known; did you mean rank?" in done.stderr
    assert 'resolution: must be one of "low", "medium", "high", not "huge"' in done.stderr
    assert [request.validate_only for request in far.requests("CreateJob")] == [True]


async def test_data_and_a_dataset_exclude_each_other(ltxtrain: Ltxtrain, sheet: Path, tmp_path: Path) -> None:
    sheet.write_text('{"dataset": "datasets/1"}')
    (tmp_path / "clips.zip").write_bytes(clips_zip())
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


async def test_an_estimate(ltxtrain: Ltxtrain, sheet: Path) -> None:
    text = (await ltxtrain("estimate", sheet)).stdout
    assert "1 h 00 min to 2 h 01 min" in text and "60.0 GB on each GPU" in text and "12.40 USD" in text
    assert json.loads((await ltxtrain("estimate", sheet, "--json")).stdout)["tokens_per_clip"] == 6912


async def test_nobody_there(ltxtrain: Ltxtrain) -> None:
    done = await ltxtrain("--train", "127.0.0.1:1", "jobs", code=4)
    assert "ltxtrain up" in done.stderr


async def test_wrong_settings(ltxtrain: Ltxtrain) -> None:
    assert "host and a port" in (await ltxtrain("--train", "localhost", "jobs", code=2)).stderr
