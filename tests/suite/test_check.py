"""`ltxtrain check` and the commands around data, against the real suite: from a folder to a report without a GPU."""

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client import NotFound
from ltxtrain_client.check import check_data
from ltxtrain_client.cli import app
from ltxtrain_client.local_data import open_local_data
from ltxtrain_client.sheet import parse_sheet
from ltxtrain_client.sheet_files import SheetFiles
from ltxtrain_client.suite import Suite as SuiteClient
from typer.testing import CliRunner

from ltxtrain_services.local.up import Suite
from tests.clips import numbered, write_clip
from tests.suite.conftest import SHEET, Clients
from tests.suite.trainings import start

FRAMES = 17


class Ltxtrain:
    """Runs the command line against the suite of the session."""

    def __init__(self, suite: Suite) -> None:
        self._environ = {
            "LTXTRAIN_TRAIN": suite.train_address,
            "LTXTRAIN_INGEST": suite.ingest_address,
            "LTXTRAIN_PREPROCESS": suite.preprocess_address,
            "COLUMNS": "300",
        }

    async def __call__(self, *arguments: object, code: int = 0) -> Any:
        runner = CliRunner(env=self._environ)
        done = await asyncio.to_thread(runner.invoke, app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        return done


@pytest.fixture(scope="module")
def ltxtrain(suite: Suite) -> Ltxtrain:
    return Ltxtrain(suite)


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a phone leaves it: wide and upright clips, one too short, one caption, and files of other kinds."""
    folder = tmp_path_factory.mktemp("phone") / "holiday"
    (folder / "second day").mkdir(parents=True)
    wide, upright = (256, 144), (144, 256)
    made = [
        ("a.mp4", wide, FRAMES),
        ("b.mp4", upright, FRAMES),
        ("second day/a.mp4", upright, 2 * FRAMES),
        ("second day/short.mov", upright, 9),
    ]
    for number, (name, size, count) in enumerate(made):
        write_clip(folder / name, numbered(count, clip=number + 40, size=size))
    (folder / "a.txt").write_text("a street by day")
    (folder / "notes.txt").write_text("of nothing")
    (folder / ".DS_Store").write_bytes(b"x")
    return folder


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sheet") / "job.json"
    path.write_text(json.dumps(SHEET | {"trigger_phrase": ""}))
    return path


@pytest.fixture(scope="module")
async def checked(ltxtrain: Ltxtrain, phone: Path, sheet: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The check of that folder: what was printed."""
    out = tmp_path_factory.mktemp("checked")
    done = await ltxtrain("check", phone, sheet, "--out", out)
    (page,) = out.iterdir()
    assert f"Contact sheet: {page}" in done.stdout
    assert page.read_text().startswith("<!doctype html>") and "second day/a.mp4" in page.read_text()
    return done


@pytest.fixture(scope="module")
def dataset(checked: Any) -> str:
    """The dataset that the check made."""
    words: list[str] = checked.stdout.splitlines()[-1].split()
    return words[words.index("--data") + 1]


async def test_a_check_says_it_all_in_one_view(checked: Any) -> None:
    lines = checked.stdout.splitlines()
    assert lines[0].startswith("holiday.zip: 4 videos, 1 caption file, ")
    assert "not sent: notes.txt" in lines[0]
    # One line for each clip: that of the training set.
    assert sum("b.mp4" in line for line in lines) == 1
    assert "3 of 4 videos are used for training, 1 is not" in lines
    assert any("CLIP_TOO_SHORT" in line and "second day/short.mov" in line for line in lines)
    assert any(line.startswith("time ") for line in lines) and any(line.startswith("price ") for line in lines)


async def test_its_suggestions_count(checked: Any) -> None:
    told = checked.stdout
    assert "With number_of_frames = 9" not in told  # the prefix would cover the clip
    assert "With aspect_ratio = 9:16, " in told and "with 16:9 it is" in told
    assert "2 of 3 clips have no caption and would be trained with an empty prompt." in told


async def test_it_ends_with_the_command_that_starts_the_job(checked: Any, ltxtrain: Ltxtrain, clients: Clients) -> None:
    command = checked.stdout.splitlines()[-1].partition("ltxtrain ")[2].split()
    words = command[command.index("submit") :]
    job = (await ltxtrain(*words[:-1], "--validate-only", "--json")).stdout
    dataset = json.loads(job)["dataset"]
    assert dataset.startswith("datasets/")
    clips = [clip async for clip in clients.ingest.list_clips(dataset)]
    assert {clip.path for clip in clips} == {"a.mp4", "b.mp4", "second day/a.mp4", "second day/short.mov"}


async def test_a_second_check_sends_nothing(checked: Any, dataset: str, clients: Clients, phone: Path) -> None:
    """The same through the Python client."""
    both = SuiteClient(clients.train, clients.ingest, clients.preprocess)
    data = open_local_data([phone])
    upload = await clients.ingest.prepare_upload(data.source)
    assert upload.complete
    found = await check_data(both, parse_sheet(SHEET), SheetFiles(data))
    assert found.error is None and found.estimate is not None
    assert found.known and found.dataset.name == dataset and found.dataset.clip_count == 4
    assert found.training_set is not None and found.training_set.settings.fit_only
    assert (found.estimate.cached_samples, found.estimate.total_samples) == (0, 4)
    # Nothing was fitted again either.
    assert found.training_set.report.samples == 3


async def test_data_that_cannot_be_trained_on(ltxtrain: Ltxtrain, phone: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "job.json"
    sheet.write_text(json.dumps(SHEET | {"number_of_frames": 121}))
    done = await ltxtrain("check", phone / "b.mp4", sheet, "--out", tmp_path, code=1)
    assert "All training videos are too short to be trainable" in done.stderr
    assert "CLIP_TOO_SHORT" in done.stdout and "To start the job" not in done.stdout
    told = json.loads((await ltxtrain("check", phone / "b.mp4", sheet, "--json", code=1)).stdout.splitlines()[-1])
    assert told["error"]["reason"] == "ALL_CLIPS_TOO_SHORT" and told["submit"] is None


async def test_an_opening_clip_is_checked_too(ltxtrain: Ltxtrain, phone: Path, sheet: Path, tmp_path: Path) -> None:
    done = await ltxtrain("check", phone, sheet, "--validation", phone / "a.mp4", "--out", tmp_path)
    assert "validation[0].video_url=dataset:datasets/" in done.stdout.splitlines()[-1]
    short = (
        "--set",
        "conditioning_frames=25",
        "--set",
        "number_of_frames=33",
        "--set",
        "validation_number_of_frames=33",
    )
    opening = phone / "second day" / "short.mov"
    done = await ltxtrain("check", phone, sheet, "--validation", opening, *short, "--out", tmp_path, code=1)
    assert "This data cannot be trained on" in done.stderr


async def test_datasets_and_training_sets_are_things(ltxtrain: Ltxtrain, dataset: str, tmp_path: Path) -> None:
    assert dataset in (await ltxtrain("datasets")).stdout
    shown = (await ltxtrain("datasets", "show", dataset.partition("/")[2])).stdout
    assert "second day/short.mov" in shown and "a street by day" in shown and "144x256" in shown
    assert "CAPTION_MISSING" in (await ltxtrain("datasets", "report", dataset)).stdout
    listed = [json.loads(line) for line in (await ltxtrain("training-sets", "list", "--json")).stdout.splitlines()]
    # Other checks of the same folder may have found nothing that fits.
    made = [item for item in listed if item["dataset"] == dataset and item["lifecycle"]["state"] == "succeeded"]
    name = made[0]["name"]
    assert "check" in (await ltxtrain("training-sets", "show", name)).stdout
    await ltxtrain("fetch", name, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["contact-sheet.html"]
    await ltxtrain("training-sets", "delete", name, "--yes")
    await ltxtrain("training-sets", "show", name, code=5)


async def test_files_are_served_by_url_to_anybody(
    ltxtrain: Ltxtrain, dataset: str, clients: Clients, phone: Path
) -> None:
    clips = {clip.path: clip.name async for clip in clients.ingest.list_clips(dataset)}
    url = (await ltxtrain("fetch", clips["b.mp4"], "--url")).stdout.strip()
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert await response.read() == (phone / "b.mp4").read_bytes()
    for name in (f"{dataset}/clips/nothing", "trainingSets/nothing/contact_sheet", "jobs/nothing/artifacts/x"):
        await ltxtrain("fetch", name, "--url", code=5)


async def test_a_sample_can_be_looked_at(clients: Clients, dataset: str) -> None:
    """A preview is served; a field that is no file, or is not set, is not found."""
    both = SuiteClient(clients.train, clients.ingest, clients.preprocess)
    found = await check_data(both, parse_sheet(SHEET | {"dataset": dataset}))
    assert found.training_set is not None
    samples = [sample async for sample in clients.preprocess.list_samples(found.training_set.name)]
    preview = await both.remote_file(f"{samples[0].name}/clip_preview")
    assert preview.blob == samples[0].clip_preview and preview.file_name == "clip.mkv"
    for field in ("latents", "caption", "no_such_field", ""):
        with pytest.raises(NotFound):
            await both.remote_file(f"{samples[0].name}/{field}")
    with pytest.raises(NotFound):
        await both.remote_file(f"{found.training_set.name}/archive")


async def test_a_job_that_fails_has_its_contact_sheet(clients: Clients, dataset: str) -> None:
    """As its first artifact: what was fitted before a clip was left out that must not be."""
    options = {"on_skipped_clip": OnSkippedClip.ON_SKIPPED_CLIP_FAIL}
    job = await start(clients, dataset, options, trigger_phrase="")
    events = [event async for _, event in clients.train.watch_job(job)]
    assert events[-1].lifecycle.state == State.STATE_FAILED
    (made,) = [event.artifact for event in events if event.HasField("artifact")]
    assert made.kind == Artifact.KIND_CONTACT_SHEET and made.name == f"{job}/artifacts/contact-sheet.html"
    found = await clients.train.get_artifact(made.name)
    async with aiohttp.ClientSession() as session, session.get(found.download_url) as response:
        assert "second day/a.mp4" in await response.text()


async def test_no_words_at_all_is_the_headline(ltxtrain: Ltxtrain, phone: Path, sheet: Path, tmp_path: Path) -> None:
    long = json.loads(sheet.read_text()) | {"resolution": "medium", "options": {"batch_size": 8}}
    del long["number_of_steps"]
    (tmp_path / "long.json").write_text(json.dumps(long))
    done = await ltxtrain("check", phone / "b.mp4", tmp_path / "long.json", "--out", tmp_path)
    lines = [line for line in done.stdout.splitlines() if line]
    before, headline, report = done.stdout.partition("WARNING: No clip has a caption and there is no trigger phrase")
    assert headline and "b.mp4" not in before and "b.mp4" in report
    assert done.stdout.count("no words would call the LoRA") == 1
    # 2000 steps take long on a CPU, which is told, and the last command is one that does not.
    assert any("on the CPU: this suite has no GPU" in line for line in lines)
    assert "To start the job on this data (" in lines[-2]
    assert "To try it out without a GPU (" in lines[-1] and "--set number_of_steps=100 --watch" in lines[-1]


async def test_a_job_like_another(ltxtrain: Ltxtrain, dataset: str, sheet: Path) -> None:
    job = (await ltxtrain("submit", sheet, "--data", dataset, "--set", "options.seed=7")).stdout.strip()
    await ltxtrain("cancel", job)
    again = json.loads(
        (await ltxtrain("submit", "--like", job, "--set", "rank=16", "--validate-only", "--json")).stdout
    )
    assert (again["dataset"], again["rank"], again["options"]["seed"]) == (dataset, 16, 7)
    other = await ltxtrain("submit", "--like", job, "--data", "datasets/other", "--validate-only", code=5)
    assert "datasets/other" in other.stderr


async def test_the_same_folder_is_one_dataset_and_frames_that_fit_are_chosen(
    ltxtrain: Ltxtrain, tmp_path: Path
) -> None:
    """Clips of less than two seconds, with no sheet at all: what the default asks for, none of them has."""
    folder = tmp_path / "short"
    folder.mkdir()
    for number, count in enumerate((33, 41, 44)):
        write_clip(folder / f"{number}.mp4", numbered(count, clip=number + 60, size=(128, 128)))
    words = ("check", folder, "--set", "resolution=low", "--out", tmp_path)
    first, again = [(await ltxtrain(*words)).stdout for _ in range(2)]
    told = "Of 3 clips none have the default 89 frames and 3 have 33: fitted with number_of_frames = 33 instead"
    assert f"{told}; --set number_of_frames=89 keeps the default." in first
    assert "3 of 3 videos are used for training" in first and "encoded   nothing yet: the job does it" in first
    *_, command = first.splitlines()
    assert "--set number_of_frames=33" in command
    made = command.split()[command.split().index("--data") + 1]
    assert "looked into before" not in first and f"Sent and looked into before: it is {made}." in again


async def test_one_long_clip_does_not_leave_out_the_short_ones(ltxtrain: Ltxtrain, tmp_path: Path) -> None:
    for number, count in enumerate((97, 36, 41)):
        write_clip(tmp_path / f"{number}.mp4", numbered(count, clip=number + 70, size=(128, 128)))
    told = (await ltxtrain("check", tmp_path, "--set", "resolution=low", "--out", tmp_path)).stdout
    assert "Of 3 clips 1 has the default 89 frames and 3 have 33: fitted with number_of_frames = 33 instead" in told
    assert "3 of 3 videos are used for training" in told and "--set number_of_frames=33" in told
