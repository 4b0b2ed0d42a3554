"""The demo's files: what is in them, and that they are the same each time."""

import hashlib
import io
import zipfile
from pathlib import Path

import av

from services.local.demo_data import HEIGHT, WIDTH, make_demo_clips, make_validation_clip

DEMO_FRAMES = 17


def frames_of(clip: bytes | Path) -> list[tuple[int, int]]:
    """Width and height of every frame that decodes."""
    source = io.BytesIO(clip) if isinstance(clip, bytes) else str(clip)
    with av.open(source, "r") as container:
        assert container.streams.video[0].average_rate == 24
        return [(frame.width, frame.height) for frame in container.decode(video=0)]


def test_four_clips_to_train_on_and_every_oddity_of_the_demo(tmp_path: Path) -> None:
    with zipfile.ZipFile(make_demo_clips(tmp_path)) as archive:
        names = archive.namelist()
        clips = {name: frames_of(archive.read(name)) for name in names if name.endswith(".mp4") and "/._" not in name}
        captions = {archive.read(name) for name in names if name.endswith(".txt")}
    assert {size for frames in clips.values() for size in frames} == {(WIDTH, HEIGHT)}
    assert sorted(len(frames) >= DEMO_FRAMES for frames in clips.values()) == [False, True, True, True, True]
    assert len(captions) == len(clips) == 5
    assert {name for name in clips if name.endswith("/drift.mp4")} == {"day/drift.mp4", "night/drift.mp4"}
    assert any(name.startswith("__MACOSX/") for name in names)


def test_a_moving_shape_is_in_every_clip(tmp_path: Path) -> None:
    with zipfile.ZipFile(make_demo_clips(tmp_path)) as archive:
        for name in archive.namelist():
            if name.endswith(".mp4") and "/._" not in name:
                with av.open(io.BytesIO(archive.read(name)), "r") as container:
                    first, *_, last = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
                assert (abs(first.astype(int) - last).max(axis=2) > 60).mean() > 0.01, name


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


def test_the_opening_is_long_enough_to_be_continued(tmp_path: Path) -> None:
    assert len(frames_of(make_validation_clip(tmp_path))) >= DEMO_FRAMES
