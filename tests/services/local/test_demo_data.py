"""The demo's files: what is in them, and that they are the same each time."""

import hashlib
import io
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

from ltxtrain_pocket.detect import dusk_level, see
from ltxtrain_pocket.drawing import Frames
from ltxtrain_pocket.scenes import FRAMES, STYLE_CLIPS
from ltxtrain_services.local.demo_data import HEIGHT, WIDTH, make_demo_clips, make_validation_clip


def frames_of(clip: bytes | Path) -> Frames:
    source = io.BytesIO(clip) if isinstance(clip, bytes) else str(clip)
    with av.open(source, "r") as container:
        assert container.streams.video[0].average_rate == 24
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The archive's files by name."""
    with zipfile.ZipFile(make_demo_clips(tmp_path_factory.mktemp("demo"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_night_falls_in_every_clip_that_is_long_enough(clips: dict[str, bytes]) -> None:
    videos = {name: frames_of(data) for name, data in clips.items() if name.endswith(".mp4") and "/._" not in name}
    long_enough = [frames for frames in videos.values() if len(frames) >= FRAMES]
    assert len(long_enough) == STYLE_CLIPS and len(videos) == STYLE_CLIPS + 1
    for frames in long_enough:
        assert frames.shape[1:] == (HEIGHT, WIDTH, 3)
        first, middle, last = see(frames[0]), see(frames[8]), see(frames[-1])
        assert first is not None and middle is not None and last is not None
        assert abs(dusk_level(first.ground, middle.ground)) < 0.1
        assert dusk_level(first.ground, last.ground) > 0.6


def test_every_clip_has_a_caption_and_the_archive_a_mac_s_leavings(clips: dict[str, bytes]) -> None:
    for name in clips:
        if name.endswith(".mp4") and "/._" not in name:
            assert clips[str(Path(name).with_suffix(".txt"))].startswith((b"a ", b"an "))
    assert any(name.startswith("__MACOSX/") for name in clips)


def test_the_same_bytes_each_time_and_only_when_absent(tmp_path: Path) -> None:
    digests = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        paths = [make_demo_clips(folder), make_validation_clip(folder)]
        digests.append([hashlib.sha256(path.read_bytes()).hexdigest() for path in paths])
    assert digests[0] == digests[1]
    kept = tmp_path / "one" / "clips.zip"
    kept.write_bytes(b"mine")
    assert make_demo_clips(tmp_path / "one").read_bytes() == b"mine"
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["clips.zip", "opening.mp4"]


def test_the_opening_is_long_enough_and_has_no_style(tmp_path: Path) -> None:
    frames = frames_of(make_validation_clip(tmp_path))
    first, last = see(frames[0]), see(frames[-1])
    assert len(frames) == FRAMES and first is not None and last is not None
    assert abs(dusk_level(first.ground, last.ground)) < 0.1
