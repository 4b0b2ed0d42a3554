"""A zip that is composed while it is sent: whole, the same at every reading, from any place."""

import os
import random
import zipfile
from pathlib import Path

import pytest
from ltxtrain_client import TransferFailed
from ltxtrain_client.upload_source import FileSource, Source, StoredZip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Files of several sizes by their names in the archive."""
    contents = random.Random(3)
    sizes = {"ä/b.mp4": 2_500_000, "z.txt": 20, "empty.txt": 0, "a.mp4": 999, "漢字/c.mov": 70_000}
    made = {}
    for number, (name, size) in enumerate(sizes.items()):
        made[name] = tmp_path / f"file-{number}"
        made[name].write_bytes(contents.randbytes(size))
    return made


def whole(source: Source) -> bytes:
    return b"".join(source.read(0, source.size_bytes))


def test_it_is_a_zip_of_the_files(files: dict[str, Path], tmp_path: Path) -> None:
    source = StoredZip("clips.zip", files)
    content = whole(source)
    assert len(content) == source.size_bytes
    (tmp_path / "made.zip").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {
            name: path.read_bytes() for name, path in files.items()
        }


def test_equal_files_give_equal_bytes_whenever_they_were_written(files: dict[str, Path]) -> None:
    first = whole(StoredZip("clips.zip", files))
    for path in files.values():
        os.utime(path, (1, 1))
    assert whole(StoredZip("clips.zip", dict(reversed(files.items())))) == first


def test_any_span_can_be_read(files: dict[str, Path]) -> None:
    source = StoredZip("clips.zip", files)
    content = whole(source)
    places = random.Random(4)
    for _ in range(300):
        offset = places.randrange(len(content))
        length = places.choice([1, 30, 4000, 1 << 20, len(content)])
        # Another instance, which knows no checksum yet, as after a restart.
        assert b"".join(StoredZip("clips.zip", files).read(offset, length)) == content[offset : offset + length]


def test_files_and_archives_beyond_four_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse files, of which headers and directory are read and checked by zipfile."""
    large, small = tmp_path / "large.mov", tmp_path / "small.txt"
    with large.open("wb") as file:
        file.truncate((4 << 30) + 5)
    small.write_bytes(b"a caption")
    monkeypatch.setattr("ltxtrain_client.upload_source._Entry.crc", lambda entry: 0)
    source = StoredZip("clips.zip", {"a.mov": large, "b.mov": large, "c.txt": small})
    image = tmp_path / "image.zip"
    with image.open("wb") as file:
        offset = 0
        for start, length in ((0, 100), ((4 << 30) + 50, 200), ((8 << 30) + 100, source.size_bytes)):
            file.seek(offset := start)
            for chunk in source.read(offset, min(length, source.size_bytes - offset)):
                file.write(chunk)
    with zipfile.ZipFile(image) as archive:
        assert [(item.filename, item.file_size) for item in archive.infolist()] == [
            ("a.mov", (4 << 30) + 5),
            ("b.mov", (4 << 30) + 5),
            ("c.txt", 9),
        ]
        with archive.open("b.mov") as opened:
            assert opened.read(3) == b"\0\0\0"


def test_more_files_than_the_old_format_counts(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    source = StoredZip("clips.zip", dict.fromkeys((f"{number:05}.txt" for number in range(70_000)), tmp_path / "a.txt"))
    (tmp_path / "made.zip").write_bytes(whole(source))
    with zipfile.ZipFile(tmp_path / "made.zip") as archive:
        assert len(archive.namelist()) == 70_000


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"before")
    for content in (b"after!", b"shorter"[:3], b"much longer than before"):
        source = FileSource(path)
        path.write_bytes(content)
        os.utime(path, (5, 5))
        with pytest.raises(TransferFailed, match="changed while it was read"):
            whole(source)
