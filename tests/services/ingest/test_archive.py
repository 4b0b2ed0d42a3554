import bz2
import hashlib
import lzma
import random
import resource
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.ingest.archive import Archive, Stopped, hash_file
from ltxtrain_services.ingest.directory import ArchiveRefused, Entry, check_directory, read_directory
from ltxtrain_services.ingest.inflate import METHODS, EntryCorrupt, inflate
from ltxtrain_services.ingest.names import Kind
from ltxtrain_services.runtime.errors import reason_name
from ltxtrain_services.runtime.settings import Settings
from tests.services.ingest.zips import PACKERS, build, deflate, make_zip

DATA = random.Random(1).randbytes(70_000) + b"again and again " * 20_000


def directory(tmp_path: Path, data: bytes, **settings: object) -> list[Entry]:
    path = tmp_path / "archive.zip"
    path.write_bytes(data)
    chosen = Settings(**settings)  # type: ignore[arg-type]
    entries = read_directory(path, chosen)
    check_directory(entries, path.stat().st_size, chosen)
    return entries


def refusal(tmp_path: Path, data: bytes, **settings: object) -> ArchiveRefused:
    with pytest.raises(ArchiveRefused) as error:
        directory(tmp_path, data, **settings)
    return error.value


def unpacked(tmp_path: Path, data: bytes) -> bytes:
    (only,) = directory(tmp_path, data)
    with Archive(tmp_path / "archive.zip") as archive:
        found = archive.unpack(only, tmp_path / "out")
    written = found.path.read_bytes()[found.offset :][: found.size]
    assert (found.size, found.sha256) == (only.size, hashlib.sha256(written).hexdigest())
    # What is stored as it is, is not written again.
    assert (tmp_path / "out").exists() == (only.method != 0)
    if only.method != 0:
        assert hash_file(tmp_path / "out") == found
    return written


@pytest.mark.parametrize("method", [0, 8, 12, 14])
def test_what_zipfile_writes(tmp_path: Path, method: int) -> None:
    make_zip(tmp_path / "made.zip", {"a.mp4": DATA}, method)
    assert unpacked(tmp_path, (tmp_path / "made.zip").read_bytes()) == DATA


@pytest.mark.parametrize("method", sorted(set(METHODS) - {14}))  # zipfile writes 14 above
def test_every_method(tmp_path: Path, method: int) -> None:
    packers = PACKERS | {0: bytes, 12: bz2.compress, 95: lzma.compress}
    fields: dict[str, object] = {"method": method, "size": len(DATA), "crc": zlib.crc32(DATA)}
    assert unpacked(tmp_path, build((b"a.mp4", packers[method](DATA), fields))) == DATA


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("seed", range(8))
def test_damaged_bytes_are_told_and_nothing_else_happens(tmp_path: Path, method: int, seed: int) -> None:
    packers = PACKERS | {0: bytes, 12: bz2.compress, 14: bytes, 95: lzma.compress}
    dice = random.Random(f"{method}/{seed}")
    raw = bytearray(packers[method](DATA))
    for _ in range(5):
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    data = build(
        (b"a.mp4", bytes(raw[: dice.randrange(len(raw) // 2, len(raw))]), {"method": method, "size": len(DATA)})
    )
    (only,) = directory(tmp_path, data)
    with Archive(tmp_path / "archive.zip") as archive, pytest.raises(EntryCorrupt):
        archive.unpack(only, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_more_bytes_than_announced_stop_the_unpacking(tmp_path: Path) -> None:
    data = build((b"a.mp4", deflate(bytes(10 << 20)), {"method": 8, "size": 5000}))
    (only,) = directory(tmp_path, data)
    with Archive(tmp_path / "archive.zip") as archive, pytest.raises(EntryCorrupt, match="more than its 5000 bytes"):
        archive.unpack(only, tmp_path / "out")


@pytest.mark.parametrize("method", [8, 9, 12, 93, 95])
def test_a_bomb_comes_in_small_pieces(method: int) -> None:
    packers = PACKERS | {12: bz2.compress, 95: lzma.compress}
    raw = packers[method](bytes(100 << 20))

    def pieces() -> Iterator[bytes]:
        yield raw

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    largest = max(len(piece) for piece in inflate(method, pieces()))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert largest <= 20 << 20
    assert grown < 60_000  # KiB


def test_cancellation_ends_an_unpacking(tmp_path: Path) -> None:
    (only,) = directory(tmp_path, build((b"a.mp4", DATA, {})))
    with Archive(tmp_path / "archive.zip") as archive:
        archive.stop()
        with pytest.raises(Stopped):
            archive.unpack(only, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "name",
    [
        b"../a.mp4",
        b"x/../../a.mp4",
        b"/a.mp4",
        b"C:\\a.mp4",
        b"c:/a.mp4",
        b"..\\a.mp4",
        b"\\\\host\\a.mp4",
        b"a/" * 600 + b"a.mp4",
    ],
)
def test_paths_that_lead_elsewhere(tmp_path: Path, name: bytes) -> None:
    error = refusal(tmp_path, build((b"good.mp4", DATA, {}), (name, DATA, {})))
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_PATH_UNSAFE
    assert len(error.entries) == 1


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o060644, 0o140644])
def test_only_plain_files(tmp_path: Path, mode: int) -> None:
    error = refusal(tmp_path, build((b"a.mp4", b"/etc/passwd", {"mode": mode})))
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_PATH_UNSAFE


@pytest.mark.parametrize("fields", [{"flags": 0x1}, {"flags": 0x41}, {"flags": 0x1, "method": 99}, {"method": 99}])
def test_encryption_is_named(tmp_path: Path, fields: dict[str, object]) -> None:
    error = refusal(tmp_path, build((b"a.mp4", DATA, fields)))
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_ENCRYPTED


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    error = refusal(tmp_path, build((b"a.mp4", DATA, {"method": 98})))
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_UNSUPPORTED
    assert "98" in str(error)


def test_an_unknown_method_of_a_file_that_nobody_needs(tmp_path: Path) -> None:
    assert len(directory(tmp_path, build((b"a.pdf", DATA, {"method": 98})))) == 1


def test_limits_of_the_directory(tmp_path: Path) -> None:
    three = build(*[(f"{index}.txt".encode(), b"x" * 100, {}) for index in range(3)])
    assert len(directory(tmp_path, three, archive_max_entries=3, archive_max_bytes=300)) == 3
    for settings in ({"archive_max_entries": 2}, {"archive_max_bytes": 299}):
        error = refusal(tmp_path, three, **settings)
        assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE


def test_a_directory_that_lies_about_its_length(tmp_path: Path) -> None:
    many = build(*[(f"{index}.txt".encode(), b"", {}) for index in range(50)], count=1)
    error = refusal(tmp_path, many, archive_max_entries=20)
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE


def test_ratio_of_large_entries_only(tmp_path: Path) -> None:
    def zeros(size: int) -> bytes:
        fields: dict[str, object] = {"method": 8, "size": size, "crc": zlib.crc32(bytes(size))}
        return build((b"a.mp4", deflate(bytes(size)), fields))

    assert len(directory(tmp_path, zeros(1 << 20))) == 1
    assert refusal(tmp_path, zeros(20 << 20)).reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE


def test_entries_that_share_their_bytes(tmp_path: Path) -> None:
    data = build((b"a.mp4", DATA, {}))
    at = data.index(b"PK\1\2")
    central = data[at : data.index(b"PK\5\6")]
    bomb = data[:at] + central * 9
    bomb += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 9 * len(central), at, 0)
    assert refusal(tmp_path, bomb).reason == ErrorReason.ERROR_REASON_ARCHIVE_TOO_LARGE


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"", "empty"),
        (b"PK\3\4" + DATA, "cut off"),
        (b"PK\7\x08PK\3\4", "several parts"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\n  <html lang=en>", "web page"),
        (b"Rar!\x1a\x07\x01\0", "RAR"),
        (b"7z\xbc\xaf\x27\x1c", "7-Zip"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\0\0\0\x20ftypisom", "single video"),
        (b"nothing in particular", "not a zip"),
    ],
)
def test_what_is_no_zip_is_named(tmp_path: Path, head: bytes, word: str) -> None:
    error = refusal(tmp_path, head)
    assert error.reason == ErrorReason.ERROR_REASON_ARCHIVE_UNREADABLE
    assert word in str(error)


def test_the_last_part_of_several(tmp_path: Path) -> None:
    data = bytearray(build((b"a.mp4", DATA, {})))
    at = data.rindex(b"PK\5\6")
    data[at + 4 : at + 8] = struct.pack("<HH", 2, 1)
    assert refusal(tmp_path, bytes(data)).reason == ErrorReason.ERROR_REASON_ARCHIVE_UNSUPPORTED


def test_a_comment_and_bytes_in_front(tmp_path: Path) -> None:
    data = b"#!/bin/sh\n" + build((b"a.mp4", DATA, {}), comment=b"made by hand " * 100)
    assert unpacked(tmp_path, data) == DATA


@pytest.mark.parametrize(
    ("raw", "flags", "path"),
    [
        ("vidéo ü.mp4".encode("cp437"), 0, "vidéo ü.mp4"),
        ("vidéo ü.mp4".encode(), 0, "vidéo ü.mp4"),
        ("猫/café.mp4".encode(), 0x800, "猫/café.mp4"),
        (b"set\\sub\\a.mp4", 0, "set/sub/a.mp4"),
        (b"./set//a.mp4", 0, "set/a.mp4"),
        (b"file:x.mp4", 0, "file:x.mp4"),
        (b"-rf $(id).mp4", 0, "-rf $(id).mp4"),
        (b"bell\x07.mp4", 0, "bell�.mp4"),
    ],
)
def test_names(tmp_path: Path, raw: bytes, flags: int, path: str) -> None:
    (only,) = directory(tmp_path, build((raw, DATA, {"flags": flags})))
    assert (only.path, only.kind) == (path, Kind.VIDEO)


def test_a_unicode_path_field_wins_if_it_belongs_to_the_name(tmp_path: Path) -> None:
    def field(name: bytes) -> bytes:
        body = b"\1" + struct.pack("<I", zlib.crc32(name)) + "雪.mp4".encode()
        return struct.pack("<HH", 0x7075, len(body)) + body

    (right,) = directory(tmp_path, build((b"_.mp4", DATA, {"extra": field(b"_.mp4")})))
    (stale,) = directory(tmp_path, build((b"_.mp4", DATA, {"extra": field(b"old.mp4")})))
    assert (right.path, stale.path) == ("雪.mp4", "_.mp4")


def test_folders_are_no_entries(tmp_path: Path) -> None:
    assert directory(tmp_path, build((b"set/", b"", {}), (b"set/a.mp4", DATA, {})))[0].path == "set/a.mp4"


@pytest.mark.parametrize("seed", range(150))
def test_damaged_archives_end_in_a_reason(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    path = make_zip(tmp_path / "made.zip", {"a.mp4": DATA[:5000], "a.txt": b"caption", "b/c.mov": DATA[:300]})
    data = bytearray(path.read_bytes())
    tail = len(data) - 400
    for _ in range(dice.randrange(1, 5)):
        data[dice.randrange(tail, len(data))] ^= 1 << dice.randrange(8)
    if dice.random() < 0.3:
        del data[dice.randrange(len(data)) :]
    try:
        entries = directory(tmp_path, bytes(data))
    except ArchiveRefused as error:
        assert reason_name(error.reason).startswith("ARCHIVE_")
        return
    with Archive(tmp_path / "archive.zip") as archive:
        for item in entries:
            try:
                archive.unpack(item, tmp_path / "out")
            except EntryCorrupt as error:
                assert str(error)


def test_zip64_sizes_and_a_zip64_end(tmp_path: Path) -> None:
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as archive, archive.open("a.mp4", "w", force_zip64=True) as file:
        file.write(DATA)
    assert unpacked(tmp_path, path.read_bytes()) == DATA
    plain = build((b"a.mp4", DATA, {}))
    at = plain.rindex(b"PK\5\6")
    start = plain.index(b"PK\1\2")
    end64 = b"PK\6\6" + struct.pack("<QHHLLQQQQ", 44, 45, 45, 0, 0, 1, 1, at - start, start)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert unpacked(tmp_path, plain[:at] + end64 + locator + end) == DATA
