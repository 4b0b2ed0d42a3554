"""Zips as tools in the wild leave them: what other readers take is taken, and what is said of the rest is true."""

import io
import itertools
import random
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ltxtrain_services.ingest.archive import Archive
from ltxtrain_services.ingest.captions import pair
from ltxtrain_services.ingest.directory import ArchiveRefused, Entry, check_directory, read_directory
from ltxtrain_services.ingest.inflate import EntryCorrupt
from ltxtrain_services.ingest.names import MAX_PATH_CHARS, Kind, kind_of
from ltxtrain_services.ingest.zip_format import MAX_FIELDS
from ltxtrain_services.runtime.settings import Settings
from tests.services.ingest.zips import archive_bytes, build, deflate
from tests.services.ingest.zips import entry as zip_entry

CLIP = random.Random(1).randbytes(3000)
PLAIN = build((b"a.mp4", CLIP, {}), (b"a.txt", b"a caption", {}))
END = b"PK\5\6"


def end_record(count: int = 0, size: int = 0, offset: int = 0, comment: bytes = b"", comment_bytes: int = -1) -> bytes:
    length = len(comment) if comment_bytes < 0 else comment_bytes
    return struct.pack("<4s4H2LH", END, 0, 0, count, count, size, offset, length) + comment


def read(tmp_path: Path, data: bytes, **changes: object) -> list[Entry]:
    path = tmp_path / "archive.zip"
    path.write_bytes(data)
    settings = Settings(**changes)  # type: ignore[arg-type]
    entries = read_directory(path, settings)
    check_directory(entries, len(data), settings)
    return entries


def contents(tmp_path: Path, data: bytes) -> dict[str, bytes | None]:
    """Files by path; None for one that is skipped alone."""
    found: dict[str, bytes | None] = {}
    entries = read(tmp_path, data)
    with Archive(tmp_path / "archive.zip") as archive:
        for entry in entries:
            try:
                found[entry.path] = archive.read(entry)
            except EntryCorrupt:
                found[entry.path] = None
    return found


def refusal(tmp_path: Path, data: bytes, **changes: object) -> str:
    with pytest.raises(ArchiveRefused) as error:
        read(tmp_path, data, **changes)
    return str(error.value)


WHOLE = {"a.mp4": CLIP, "a.txt": b"a caption"}


@pytest.mark.parametrize(
    "extra",
    [
        struct.pack("<HH", 0x5455, 900) + b"\1",  # claims more bytes than there are
        struct.pack("<HH", 0x7075, 60000) + b"\1abc",
        struct.pack("<HHQ", 0x0001, 8, 7),  # Zip64 values that nobody asks for
        struct.pack("<HH", 0x0001, 3) + b"\0\0\0",
        struct.pack("<HHBL", 0x7075, 8, 1, 77) + b"\xff\xff\xff",
        b"\0",
        b"\0\0\0",
        b"\xff" * 65535,
    ],
)
def test_an_extra_field_refuses_nothing(tmp_path: Path, extra: bytes) -> None:
    data = build((b"a.mp4", CLIP, {"extra": extra}), (b"a.txt", b"a caption", {}))
    assert contents(tmp_path, data) == WHOLE


def test_sizes_that_are_lost_with_their_field_cost_their_entry(tmp_path: Path) -> None:
    lost = {"size": 0xFFFFFFFF, "compressed_size": 0xFFFFFFFF, "extra": struct.pack("<HHL", 1, 4, 0)}
    data = build((b"b.mp4", CLIP, lost), (b"a.mp4", CLIP, {}), (b"a.txt", b"a caption", {}))
    assert contents(tmp_path, data) == WHOLE | {"b.mp4": None}
    with Archive(tmp_path / "archive.zip") as archive, pytest.raises(EntryCorrupt, match="Zip64"):
        archive.read(read(tmp_path, data)[0])


def test_an_entry_beyond_the_end_costs_itself_alone(tmp_path: Path) -> None:
    data = build((b"b.mp4", CLIP, {"compressed_size": 1 << 30, "size": 1 << 30}), *[(b"a.mp4", CLIP, {})])
    assert contents(tmp_path, data) == {"a.mp4": CLIP, "b.mp4": None}


@pytest.mark.parametrize(
    "comment",
    [
        END,
        b"made by " + END + b" and nobody else",
        END * 500,
        end_record(),  # an empty archive, whole
        b"old: " + end_record(comment=b"and its comment"),
        b"old: " + end_record(comment_bytes=40_000),
        b"half: " + end_record()[:15],
        end_record(3, 150, 7),
        archive_bytes({"other.mp4": b"not this one"}),
    ],
)
def test_a_comment_may_hold_the_signature(tmp_path: Path, comment: bytes) -> None:
    data = build((b"a.mp4", CLIP, {}), (b"a.txt", b"a caption", {}), comment=comment)
    assert contents(tmp_path, data) == WHOLE


def test_the_longest_comment(tmp_path: Path) -> None:
    data = build((b"a.mp4", CLIP, {}), (b"a.txt", b"a caption", {}), comment=(END * 16384)[:65535])
    assert contents(tmp_path, data) == WHOLE


@pytest.mark.parametrize(
    "tail",
    [b"\0", bytes(70_000), bytes(3 << 20), b"\n", b"\r\n\r\n", b"-----BEGIN SIGNATURE-----\n" * 40, b"x" * 200_000],
    ids=["zero", "block", "blocks", "newline", "lines", "signature", "much"],
)
def test_bytes_behind_an_archive(tmp_path: Path, tail: bytes) -> None:
    assert contents(tmp_path, PLAIN + tail) == WHOLE
    commented = build((b"a.mp4", CLIP, {}), (b"a.txt", b"a caption", {}), comment=b"ends in zeros\0\0")
    assert contents(tmp_path, commented + tail) == WHOLE


def test_bytes_behind_a_streamed_archive_that_is_cut_off(tmp_path: Path) -> None:
    """A count that cannot be known is not told."""
    streamed = build((b"a.mp4", deflate(CLIP), {"method": 8, "size": 0, "flags": 8, "compressed_size": 0}))
    text = refusal(tmp_path, streamed[:-60])
    assert "cut off" not in text and "empty" not in text
    assert "its end is missing, or something else was added" in text


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (PLAIN[:2000], "cut off: its last file needs"),
        (PLAIN[: PLAIN.index(b"PK\1\2") + 60], "cut off: it ends inside of its directory"),
        (PLAIN[: PLAIN.index(END)], "cut off: it ends inside of its directory"),
        (PLAIN[: PLAIN.index(b"PK\1\2")] + b"x" * 300 + end_record(2, 300, 9000), "not where the archive's end says"),
        (PLAIN.replace(b"PK\1\2", b"PK\1\3"), "not where the archive's end says"),
    ],
)
def test_words_for_what_was_seen(tmp_path: Path, data: bytes, words: str) -> None:
    assert words in refusal(tmp_path, data)


def test_a_whole_directory_before_half_an_end_record(tmp_path: Path) -> None:
    assert contents(tmp_path, PLAIN[: PLAIN.index(END) + 10]) == WHOLE


def test_an_archive_inside_of_a_broken_one_is_not_taken_for_it(tmp_path: Path) -> None:
    inner = archive_bytes({"inner.mp4": CLIP})
    outer = build((b"inner.zip", inner, {}), (b"a.mp4", CLIP, {}))
    cut = outer[: outer.index(CLIP, len(inner) + 40) + 500]
    assert "cut off" in refusal(tmp_path, cut)
    assert "inner.mp4" not in refusal(tmp_path, cut + bytes(1000))


@pytest.mark.parametrize(
    "fields",
    [{"attributes": 0x10}, {"attributes": 0x30}, {"mode": 0o40755}, {"mode": 0o40755, "attributes": 0x10}, {}],
    ids=["dos", "dos-archive", "unix", "both", "nothing"],
)
def test_folders_without_a_slash(tmp_path: Path, fields: dict[str, object]) -> None:
    folder = (b"set.mp4", b"", {"mode": 0} | fields)
    data = build(folder, (b"set.mp4/a.mp4", CLIP, {}))
    assert contents(tmp_path, data) == {"set.mp4/a.mp4": CLIP}
    # Listed behind what lies in it, and a folder that nothing lies in.
    assert contents(tmp_path, build((b"set.mp4/a.mp4", CLIP, {}), folder)) == {"set.mp4/a.mp4": CLIP}
    assert len(contents(tmp_path, build(folder))) == (0 if fields else 1)


def test_a_file_that_is_marked_as_a_folder_is_a_file(tmp_path: Path) -> None:
    assert contents(tmp_path, build((b"a.mp4", CLIP, {"mode": 0, "attributes": 0x10}))) == {"a.mp4": CLIP}


def test_a_flag_of_utf8_that_lies(tmp_path: Path) -> None:
    data = build(("caf\xe9.mp4".encode("latin-1"), CLIP, {"flags": 0x800}), (b"a.mp4", CLIP, {}))
    assert contents(tmp_path, data) == {"caf\ufffd.mp4": CLIP, "a.mp4": CLIP}


def test_a_version_that_is_not_known_yet(tmp_path: Path) -> None:
    data = bytearray(PLAIN)
    data[data.index(b"PK\1\2") + 6] = 99
    assert contents(tmp_path, bytes(data)) == WHOLE


@pytest.mark.parametrize("gap", [b"", b"PK\5\5" + struct.pack("<H", 5) + b"sign!", b"padding"])
def test_a_directory_that_does_not_end_at_its_end_record(tmp_path: Path, gap: bytes) -> None:
    at = PLAIN.index(END)
    assert contents(tmp_path, PLAIN[:at] + gap + PLAIN[at:]) == WHOLE


def zip64(data: bytes, *, record_bytes: int = 44, more: bytes = b"", sentinels: bool = True) -> bytes:
    """The archive with a Zip64 end record."""
    at, start = data.rindex(END), data.index(b"PK\1\2")
    record = b"PK\6\6" + struct.pack("<QHHLLQQQQ", record_bytes + len(more), 45, 45, 0, 0, 2, 2, at - start, start)
    locator = b"PK\6\7" + struct.pack("<LQL", 0, at, 1)
    if sentinels:
        return data[:at] + record + more + locator + end_record(0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    return data[:at] + record + more + locator + data[at:]


@pytest.mark.parametrize(
    "front", [b"------WebKitFormBoundary\r\nContent-Type: application/zip\r\n\r\n", b"HTTP/1.1 200 OK\n\n"]
)
@pytest.mark.parametrize("tail", [b"\r\n------WebKitFormBoundary--\r\n", b"\n"])
def test_a_message_around_an_archive(tmp_path: Path, front: bytes, tail: bytes) -> None:
    assert contents(tmp_path, front + PLAIN + tail) == WHOLE


@pytest.mark.parametrize("place", [0, 77, 2**31])
@pytest.mark.parametrize("front", [b"", b"an unpacker" * 9])
def test_a_directory_whose_own_place_is_wrong(tmp_path: Path, place: int, front: bytes) -> None:
    at = PLAIN.rindex(END)
    data = PLAIN[: at + 16] + struct.pack("<L", place) + PLAIN[at + 20 :]
    found = contents(tmp_path, front + data)
    assert found == (dict.fromkeys(WHOLE) if front else WHOLE)


def test_more_than_four_gigabytes_without_zip64(tmp_path: Path) -> None:
    """macOS keeps 32 bits of each position (thejoshwolfe/yauzl#69)."""
    path, big, small = tmp_path / "archive.zip", 0xFFFFFF00, {"a.mp4": CLIP, "c.mp4": CLIP[:100], "d.txt": b"a caption"}
    directory = b""
    with path.open("wb") as file:
        for name in ("a.mp4", "b.mp4", "c.mp4", "d.txt"):
            raw, place = small.get(name, b""), file.tell()
            size, crc = (len(raw) if raw else big), zlib.crc32(raw)
            local, central = zip_entry(
                name.encode(), raw, size=size, compressed_size=size, crc=crc, offset=place % 2**32
            )
            file.write(local)
            file.seek(place + len(local) - len(raw) + size)
            directory += central
        start = file.tell()
        file.write(directory + end_record(4, len(directory), start % 2**32))
    assert start > 2**32
    entries = read_directory(path, Settings())
    with Archive(path) as archive:
        assert {entry.path: archive.read(entry) for entry in entries if entry.path in small} == small


@pytest.mark.parametrize("attributes", [0x06, 0x26, 0x27])
def test_what_windows_hides_is_its_own(tmp_path: Path, attributes: int) -> None:
    data = build((b"a.mp4", CLIP, {"attributes": 0x20}), (b"Folder.jpg", b"cover", {"attributes": attributes}))
    assert [entry.kind for entry in read(tmp_path, data)] == [Kind.VIDEO, Kind.JUNK]
    data = build((b"a.mp4", CLIP, {"attributes": 0x22}), (b"b.jpg", b"picture", {"attributes": 0x20}))
    assert [entry.kind for entry in read(tmp_path, data)] == [Kind.VIDEO, Kind.IMAGE]


@pytest.mark.parametrize(
    "path",
    [
        "RECYCLER/S-1-5-21/Dc1.mp4", "PRIVATE/M4ROOT/THMBNL/C0001T01.JPG", "$Recycle.Bin/$R1.mp4",
        "System Volume Information/x.mp4", ".Spotlight-V100/x.mp4", "set/.@__thumb/s100a.mp4.jpg", "@Recycle/a.mp4",
        "set/Thumbs.db", ".Trash-1000/files/a.mp4", "__MACOSX/set/._a.mp4", "@eaDir/a.mp4/SYNOVIDEO_SCREENSHOT.jpg",
    ],
)  # fmt: skip
def test_what_tools_leave_behind(path: str) -> None:
    assert kind_of(path) is Kind.JUNK


@pytest.mark.parametrize("more", [b"", b"vendor data"])
@pytest.mark.parametrize("sentinels", [True, False])
@pytest.mark.parametrize("tail", [b"", bytes(70_000)])
def test_zip64_ends(tmp_path: Path, more: bytes, sentinels: bool, tail: bytes) -> None:
    assert contents(tmp_path, zip64(PLAIN, more=more, sentinels=sentinels) + tail) == WHOLE


def test_what_unpacks_to_many_times_the_whole_archive(tmp_path: Path) -> None:
    """Each entry is below what is looked at alone."""
    entries = [
        (f"{index}.mp4".encode(), deflate(bytes(8 << 20)), {"method": 8, "size": 8 << 20, "crc": 0})
        for index in range(4)
    ]
    assert "more than 100 times its size" in refusal(tmp_path, build(*entries))


def test_extra_fields_of_nothing_are_not_walked(tmp_path: Path) -> None:
    """Sixteen thousand of them fit into an entry."""
    empty = struct.pack("<HH", 9, 0)
    size = struct.pack("<HHQ", 1, 8, 5)
    entry = {"size": 0xFFFFFFFF, "crc": zlib.crc32(b"words")}
    for count, found in ((MAX_FIELDS - 1, b"words"), (MAX_FIELDS, None), (16_000, None)):
        data = build((b"a.txt", b"words", entry | {"extra": empty * count + size}))
        assert contents(tmp_path, data) == {"a.txt": found}


def deep(index: int) -> bytes:
    return f"{index}{'/x' * 490}.mp4".encode()


@pytest.mark.parametrize("name", [deep, lambda index: f"{index}".encode() + b"y" * 65_000], ids=["deep", "long"])
def test_a_directory_takes_no_more_memory_than_it_has_bytes(tmp_path: Path, name: Callable[[int], bytes]) -> None:
    """Each folder of a path is not kept, nor what is too long for a path."""
    count = 400
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        for index in range(count):
            archive.writestr(name(index).decode(), b"")
    tracemalloc.start()
    entries = read_directory(tmp_path / "archive.zip", Settings())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(entries) == count
    assert peak < 8 << 20


class Watched:
    """An entry that counts how often it is looked at."""

    looks = 0

    def __init__(self, path: str) -> None:
        self._path = path
        self.kind = kind_of(path)

    @property
    def path(self) -> str:
        Watched.looks += 1
        return self._path


def test_pairing_looks_at_each_file_a_few_times() -> None:
    """Clips and captions whose names differ in letter case alone: each would look through all of the others."""
    choices = itertools.product(*[(letter, letter.upper()) for letter in "abcdefghij"])
    names = ["".join(choice) for choice in choices]
    entries = [Watched(f"{name}.mp4") for name in names] + [Watched(f"{name}\u017f.txt") for name in names]
    entries += [Watched(f"{name}s.mp4") for name in names]
    Watched.looks = 0
    pairing = pair(entries)  # type: ignore[arg-type]
    assert not pairing.captions
    assert Watched.looks < 20 * len(entries)


@pytest.mark.timeout(60)  # minutes where marks are put into their order, which is quadratic
def test_names_of_marks_alone(tmp_path: Path) -> None:
    names = [("\u0316\u0301" * 16_000).encode() + str(index).encode() for index in range(150)]
    (tmp_path / "archive.zip").write_bytes(build(*[(name, b"", {"flags": 0x800}) for name in names]))
    entries = read_directory(tmp_path / "archive.zip", Settings())
    assert len(entries) == 150 and all(len(entry.path) <= MAX_PATH_CHARS and entry.unsafe for entry in entries)


def test_pieces_of_zipfile_itself() -> None:
    """The fixtures of this module are zips."""
    for data in (PLAIN, zip64(PLAIN)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.testzip() is None
            assert zlib.crc32(archive.read("a.mp4")) == zlib.crc32(CLIP)
