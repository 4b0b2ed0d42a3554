"""Scratch folders: gone with the block, and with a process that was killed as soon as another one begins."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ltxtrain_services.runtime.disk import scratch_folder

HOLDING = """
import sys
from ltxtrain_services.runtime.disk import scratch_folder

with scratch_folder("held") as folder:
    (folder / "inputs").mkdir()
    (folder / "inputs/clip").write_bytes(b"clip")
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, here and in children."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_a_scratch_folder_goes_with_its_block(place: Path) -> None:
    with pytest.raises(KeyError), scratch_folder("train") as folder:
        (folder / "clip").write_bytes(b"clip")
        raise KeyError
    assert list(place.iterdir()) == []


def test_what_a_killed_process_leaves_goes_with_the_next_and_what_is_in_use_stays(place: Path) -> None:
    kept = place / "kept"
    kept.mkdir()
    (place / "ltxtrain-scratch-elsewhere").symlink_to(kept)
    others = [
        subprocess.Popen([sys.executable, "-c", HOLDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    left, used = [Path((other.stdout and other.stdout.readline().strip()) or "") for other in others]
    others[0].kill()
    others[0].wait()
    assert (left / "inputs/clip").exists(), "nothing but the next one deletes it"
    with scratch_folder("train") as own:
        assert own.is_dir() and not left.exists() and (used / "inputs/clip").exists()
    others[1].communicate("")
    assert others[1].returncode == 0 and not used.exists()
    assert kept.is_dir()
