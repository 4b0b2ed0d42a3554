"""Local data are looked into before a byte is sent."""

import io
import zipfile
from pathlib import Path

import pytest
from ltxtrain_client.local_data import (
    CAPTION_SUFFIXES,
    CAPTION_TABLES,
    IMAGE_SUFFIXES,
    VIDEO_SUFFIXES,
    DataInvalid,
    LocalData,
    check_video,
    open_local_data,
)

from ltxtrain_services.ingest import names
from tests.clients.commands import MP4, clips_zip

FILES = {
    "a.mp4": MP4,
    "a.txt": b"a caption",
    "day one/B.MOV": MP4,
    "day one/b.txt": b"another, in other letters",
    "day one/B.MOV.txt": b"a third",
    "notes.txt": b"of no video",
    ".DS_Store": b"x",
    "__MACOSX/._a.mp4": b"x",
    "list.csv": b"x",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "clips", FILES)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def content(data: LocalData) -> list[str]:
    archive = io.BytesIO(b"".join(data.source.read(0, data.source.size_bytes)))
    return zipfile.ZipFile(archive).namelist()


def test_a_folder_brings_videos_and_their_captions(folder: Path) -> None:
    data = open_local_data([folder])
    sent = ["a.mp4", "a.txt", "day one/B.MOV", "day one/B.MOV.txt", "day one/b.txt"]
    assert sorted(content(data)) == sorted(sent)
    assert data.videos == ("a.mp4", "day one/B.MOV") and set(data.left_out) == {"notes.txt", "list.csv"}
    assert data.source.name == "clips.zip" and data.size_bytes == data.source.size_bytes
    assert data.summary().startswith("clips.zip: 2 videos, 3 caption files, ")
    assert "not sent: list.csv, notes.txt" in data.summary()


def test_single_videos_bring_their_captions(folder: Path) -> None:
    write(folder.parent / "more", {"a.mp4": MP4, "c.mkv": MP4})
    data = open_local_data([folder / "a.mp4", folder.parent / "more" / "a.mp4"])
    assert sorted(content(data)) == ["clips/a.mp4", "clips/a.txt", "more/a.mp4"]
    assert content(open_local_data([folder / "day one" / "B.MOV"])) == ["B.MOV"]
    mixed = open_local_data([folder, folder.parent / "more" / "c.mkv"])
    assert {"clips/a.mp4", "more/c.mkv"} <= set(content(mixed))


def test_captions_of_every_form_are_sent_and_counted(tmp_path: Path) -> None:
    files = {
        "a.mp4": MP4,
        "a.caption": b"x",
        "a.json": b"{}",
        "sub/b.mp4": MP4,
        "other.json": b"{}",
        "metadata.jsonl": b"",
        "sub/Metadata.CSV": b"",
        "notes.jsonl": b"",
    }
    folder = write(tmp_path / "clips", files)
    data = open_local_data([folder])
    assert set(data.left_out) == {"other.json", "notes.jsonl"}
    assert sorted(content(data)) == sorted(files.keys() - {"other.json", "notes.jsonl"})
    assert ": 2 videos, 2 caption files, captions in metadata.jsonl, sub/Metadata.CSV, " in data.summary()
    assert sorted(content(open_local_data([folder / "a.mp4"]))) == ["a.caption", "a.json", "a.mp4", "metadata.jsonl"]
    (folder / "a.caption").unlink()
    (folder / "a.json").unlink()
    assert ": 2 videos, captions in metadata.jsonl" in open_local_data([folder]).summary()


def test_a_zip_travels_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "data.zip"
    path.write_bytes(clips_zip(a_txt=b"a caption", readme_md=b"x"))
    data = open_local_data([path])
    assert b"".join(data.source.read(0, data.source.size_bytes)) == path.read_bytes()
    assert (data.videos, data.captions) == (("a.mp4",), ("a.txt",))


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.zip", b"just some text\n", "is text, not a zip"),
        ("data.zip", b"<!DOCTYPE html><html>", "is an HTML page, not a zip"),
        ("data.zip", MP4, "is a video, not a zip"),
        ("data.zip", clips_zip()[:60], "its end is missing or damaged"),
        ("data.tar.gz", b"\x1f\x8b\x08\0\0\0", "is a gzip archive, not a zip"),
        ("data.rar", b"Rar!\x1a\x07", "is a RAR archive, not a zip"),
        ("data.txt", b"", "is empty, not a zip"),
        ("clip.mp4", b"no video at all", "no file with a video's name is a video (clip.mp4 is text)"),
        ("data.zip", clips_zip(photo_jpg=b"x"), "has 1 image (photo.jpg): images cannot be trained on"),
    ],
)
def test_other_files_are_refused_with_what_they_are(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataInvalid) as refused:
        open_local_data([tmp_path / name])
    assert told in str(refused.value) and str(tmp_path / name) in str(refused.value)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    data = bytearray(clips_zip())
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "data.zip").write_bytes(data)
    with pytest.raises(DataInvalid, match="is encrypted"):
        open_local_data([tmp_path / "data.zip"])


def test_folders_that_cannot_be_trained_on(tmp_path: Path) -> None:
    for number, (files, told) in enumerate(
        (
            ({}, "has no video"),
            ({"a.txt": b"x", "b.csv": b"x"}, "only b.csv, a.txt"),
            ({"a.mp4": MP4, "b.HEIC": b"x"}, r"has 1 image \(b.HEIC\)"),
        )
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        with pytest.raises(DataInvalid, match=told):
            open_local_data([write(folder, files)])


def test_a_zip_stands_alone(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "data.zip").write_bytes(clips_zip())
    with pytest.raises(DataInvalid, match="a zip is given alone"):
        open_local_data([tmp_path / "data.zip", folder])


def test_an_opening_clip_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"\x47" + bytes(400))  # a container that is not known here may be one that Ingest knows
    check_video(path)
    path.write_bytes(b"hello")
    with pytest.raises(DataInvalid, match="is text, not a video"):
        check_video(path)


def test_kinds_are_those_of_ingest() -> None:
    assert IMAGE_SUFFIXES == names.IMAGES
    assert VIDEO_SUFFIXES == names.VIDEOS
    assert CAPTION_SUFFIXES == names.CAPTIONS
    assert CAPTION_TABLES == names.TABLES
