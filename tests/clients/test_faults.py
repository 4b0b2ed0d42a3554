"""Faults of a sheet: all at once, before any upload, and with the option that mends them."""

from pathlib import Path

import grpc
import pytest
from google.rpc.status_pb2 import Status

from tests.clients.commands import MP4, Ltxtrain, clips_zip
from tests.clients.far_side import FarSide, status, violations
from tests.clients.object_host import ObjectHost

NO_DATA = ("spec.extend_prefix.training_data_url", "FIELD_REQUIRED", "Name a .zip.")
NO_CLIP = ("spec.extend_prefix.validation[0].video_url", "FIELD_REQUIRED", "Name a video.")


def refusal(*fields: tuple[str, str, str]) -> Status:
    text = f"{len(fields)} fields are wrong"
    return status(grpc.StatusCode.INVALID_ARGUMENT, text, "INVALID_SPEC", details=[violations(*fields)])


@pytest.fixture
def sheet(tmp_path: Path) -> Path:
    path = tmp_path / "job.json"
    path.write_text('{"validation": [{"prompt": "a coast"}]}')
    return path


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    path = tmp_path / "clips.zip"
    path.write_bytes(clips_zip())
    return path


async def test_a_missing_clip_is_told_before_the_data_are_uploaded(
    far: FarSide, store: ObjectHost, ltxtrain: Ltxtrain, sheet: Path, clips: Path
) -> None:
    far.fail("CreateJob", refusal(NO_CLIP))
    done = await ltxtrain("submit", sheet, "--data", clips, code=2)
    assert done.stderr.splitlines() == [
        "1 field is wrong. (INVALID_SPEC)",
        "  validation[0].video_url: Name a video. (--validation FILE uploads one) (FIELD_REQUIRED)",
    ]
    assert store.requests == [] and far.jobs == {}


async def test_missing_data_are_told_with_the_option(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    far.fail("CreateJob", refusal(NO_DATA), refusal(NO_DATA))
    for more in ([], ["--validate-only"]):
        assert "(--data FILE uploads one)" in (await ltxtrain("submit", sheet, *more, code=2)).stderr


async def test_what_the_files_fill_is_not_among_the_faults(
    far: FarSide, ltxtrain: Ltxtrain, sheet: Path, clips: Path, tmp_path: Path
) -> None:
    opening = tmp_path / "opening.mp4"
    opening.write_bytes(MP4)
    far.fail(
        "CreateJob", refusal(NO_DATA, NO_CLIP, ("spec.extend_prefix.rank", "FIELD_NOT_ALLOWED", "rank is one of 8"))
    )
    done = await ltxtrain("submit", sheet, "--data", clips, "--validation", opening, code=2)
    assert done.stderr.splitlines()[1:] == ["  rank: rank is one of 8 (FIELD_NOT_ALLOWED)"]


async def test_faults_of_form_and_of_value_come_at_once(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    far.fail(
        "CreateJob",
        refusal(
            NO_DATA,
            ("spec.extend_prefix.resolution", "FIELD_REQUIRED", "follows from what was not sent"),
            ("spec.extend_prefix.conditioning_frames", "PREFIX_COVERS_CLIP", "may follow from what was not sent"),
            ("options.seed", "FIELD_OUT_OF_RANGE", "at least 0"),
        ),
    )
    settings = ("--set", "resolution=huge", "--set", "rnk=3", "--set", "options.seed=-1")
    done = await ltxtrain("submit", sheet, *settings, code=2)
    assert done.stderr.splitlines() == [
        "The sheet is invalid:",
        '  resolution: must be one of "low", "medium", "high", not "huge"',
        "  rnk: is not known; did you mean rank?",
        "  training_data_url: Name a .zip. (--data FILE uploads one) (FIELD_REQUIRED)",
        "  options.seed: at least 0 (FIELD_OUT_OF_RANGE)",
    ]


async def test_faults_of_form_are_told_without_a_service(ltxtrain: Ltxtrain, sheet: Path) -> None:
    done = await ltxtrain("--train", "127.0.0.1:1", "submit", sheet, "--set", "rnk=3", code=2)
    assert done.stderr.splitlines() == ["The sheet is invalid:", "  rnk: is not known; did you mean rank?"]


async def test_an_estimate_needs_no_data(far: FarSide, ltxtrain: Ltxtrain, sheet: Path) -> None:
    await ltxtrain("estimate", sheet)
    await ltxtrain("estimate", "--set", "dataset=datasets/1")
    with_files, with_dataset = (request.spec.extend_prefix for request in far.requests("EstimateJob"))
    assert with_files.training_data_url and with_files.validation[0].video_url
    assert (with_dataset.dataset, with_dataset.training_data_url) == ("datasets/1", "")
