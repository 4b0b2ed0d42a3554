"""Faults of a sheet file, and commands that do without one."""

from pathlib import Path

import pytest
from ltxtrain.v1.extend_prefix_pb2 import Resolution

from tests.clients.commands import Ltxtrain, clips_zip
from tests.clients.far_side import FarSide

NONE = {
    "clips.zip": (b"PK\x03\x04\xff\xfe", "is not a JSON sheet; give the zip with --data"),
    "opening.mp4": (b"\0\0\0\x20ftypisom", "is not a JSON sheet; give an opening clip with --validation"),
    "empty.json": (b"", "is not a JSON sheet: it is empty; {} is a sheet with every default"),
    "list.json": (b"[1]", "is not a JSON sheet: a sheet is a JSON object, this is a list"),
    "cut.json": (b'{"rank": ', "is not a JSON sheet: Expecting value in line 1, column 10"),
    "latin.json": (b'{"trigger_phrase": "\xe4"}', "is not a JSON sheet: it is not text (UTF-8 is expected)"),
}


@pytest.mark.parametrize("name", NONE)
@pytest.mark.parametrize("command", ["submit", "estimate"])
async def test_a_file_that_is_no_sheet(
    far: FarSide, ltxtrain: Ltxtrain, tmp_path: Path, command: str, name: str
) -> None:
    content, told = NONE[name]
    path = tmp_path / name
    path.write_bytes(content)
    done = await ltxtrain(command, path, code=2)
    assert done.stderr == f"{path} {told}\n"
    assert far.calls == []


async def test_a_folder_and_a_file_that_is_not_there(ltxtrain: Ltxtrain, tmp_path: Path) -> None:
    done = await ltxtrain("submit", tmp_path, code=2)
    assert done.stderr == f"{tmp_path} is a folder; the sheet is a JSON file\n"
    done = await ltxtrain("submit", tmp_path / "job.json", code=2)
    assert done.stderr == f"{tmp_path / 'job.json'} cannot be read: No such file or directory\n"


async def test_stdin_that_is_no_sheet(ltxtrain: Ltxtrain) -> None:
    done = await ltxtrain("submit", "-", stdin=b"PK\x03\x04\xff", code=2)
    assert done.stderr == "stdin is not a JSON sheet; give the zip with --data\n"
    assert "is not a JSON sheet: it is empty" in (await ltxtrain("submit", "-", stdin=b"", code=2)).stderr


async def test_data_and_settings_need_no_sheet(far: FarSide, ltxtrain: Ltxtrain, tmp_path: Path) -> None:
    (tmp_path / "clips.zip").write_bytes(clips_zip())
    await ltxtrain("submit", "--data", tmp_path / "clips.zip", "--set", "resolution=low")
    _, sent = far.requests("CreateJob")
    assert sent.spec.extend_prefix.training_data_url.startswith("upload:")
    assert sent.spec.extend_prefix.resolution == Resolution.RESOLUTION_LOW


async def test_nothing_at_all_is_wrong_usage(far: FarSide, ltxtrain: Ltxtrain) -> None:
    assert "ltxtrain submit job.json --data clips.zip" in (await ltxtrain("submit", code=2)).stderr
    assert far.calls == []
