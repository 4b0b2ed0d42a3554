"""Captions in metadata.jsonl and metadata.csv: every row counts, or is told."""

import codecs
import json
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from ltxtrain.v1.work_pb2 import Outcome, ReportLine, ReportReason

from ltxtrain_services.ingest import table_text
from ltxtrain_services.ingest.archive import Archive, Stopped
from ltxtrain_services.ingest.caption_rows import BadRow, Row, read_rows
from ltxtrain_services.ingest.caption_tables import MAX_TABLE_BYTES, CaptionTables
from ltxtrain_services.ingest.caption_text import NotText
from ltxtrain_services.ingest.directory import read_directory
from ltxtrain_services.ingest.names import Kind, kind_of
from ltxtrain_services.ingest.table_text import MAX_LINE_BYTES, LineUnreadable, text_lines
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES
from ltxtrain_services.runtime.settings import Settings
from tests.properties import bounded
from tests.services.ingest.zips import make_zip

CLIPS = ("a.mp4", "day/b.mp4", "day/C.MOV", "day/ü.mp4", "z.mp4", "Z.mp4")


def read(folder: Path, name: str, table: bytes, clips: tuple[str, ...] = CLIPS) -> tuple[dict[str, str], ReportLine]:
    """The captions that a table has for the clips, and its line of the report."""
    path = make_zip(folder / "data.zip", {name: table})
    with Archive(path) as archive, CaptionTables(folder / "spool", clips) as tables:
        found = tables.read(archive, read_directory(path, Settings())[0])
        captions = {clip: tables.captions(clip) for clip in clips}
        assert all(one.source.startswith(f"{name}, line ") for some in captions.values() for one in some)
    assert not (folder / "spool").exists()
    return {clip: found[0].text for clip, found in captions.items() if found}, found


def reasons(line: ReportLine) -> list[str]:
    return [ReportReason.Name(reason).removeprefix("REPORT_REASON_") for reason in line.reasons]


def rows(table: bytes, name: str = "metadata.csv", piece: int = 7) -> list[tuple[int, str, str]]:
    """Line, file name and caption of each row; of a bad one its fault."""

    def pieces() -> Iterator[bytes]:
        return (table[start : start + piece] for start in range(0, len(table), piece))

    found, _ = read_rows(pieces, comma_separated=name.endswith("csv"))
    return [
        (row.line, row.file_name, row.caption) if isinstance(row, Row) else (row.line, "", row.why) for row in found
    ]


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_tables_are_known_by_their_whole_name() -> None:
    assert kind_of("x/metadata.jsonl") is kind_of("METADATA.CSV") is Kind.TABLE
    assert kind_of("my-metadata.jsonl") is kind_of("metadata.tsv") is Kind.OTHER
    assert kind_of("__MACOSX/metadata.csv") is kind_of(".x/metadata.csv") is Kind.JUNK


@pytest.mark.parametrize(
    "table",
    [
        b'{"file_name": "a.mp4", "text": "a cat"}\n{"file_name": "day/b.mp4", "caption": "a dog"}\n',
        b'{"file_name": "./a.mp4", "text": "a cat"}\r\n\r\n{"caption": "a dog", "file_name": "day\\\\b.mp4"}',
        b'{"text": "a cat", "file_name": "a.mp4"}\r{"caption": "a dog", "file_name": "day//b.mp4"}\r',
        codecs.BOM_UTF8 + b'{"file_name":"a.mp4","text":" a cat\\n"}\n{"file_name":"day/b.mp4","text":"a\\tdog"}',
    ],
)
def test_json_lines(tmp_path: Path, table: bytes) -> None:
    captions, line = read(tmp_path, "metadata.jsonl", table)
    assert {clip: " ".join(text.split()) for clip, text in captions.items()} == {"a.mp4": "a cat", "day/b.mp4": "a dog"}
    assert (line.outcome, reasons(line), line.description) == (Outcome.OUTCOME_KEPT, [], "captions of 2 clips")


@pytest.mark.parametrize(
    ("table", "is_repaired"),
    [
        (b"file_name,text\na.mp4,a cat\nday/b.mp4,a dog\n", False),
        (b'"file_name","caption"\r\n"a.mp4","a cat"\r\n"day/b.mp4","a dog"\r\n', False),
        (codecs.BOM_UTF8 + b"id,File_Name, Text ,more\n1,a.mp4,a cat,\n2,day/b.mp4,a dog\n", False),
        (b"sep=;\nfile_name;text\na.mp4;a cat\nday\\b.mp4;a dog", True),
        ("file_name\ttext\na.mp4\ta cat\nday/b.mp4\ta dog\n".encode("utf-16"), True),
        (b'text,file_name\ra cat,a.mp4\r\r"a\rdog",day/b.mp4\r', False),
    ],
)
def test_comma_separated_values(tmp_path: Path, table: bytes, is_repaired: bool) -> None:
    captions, line = read(tmp_path, "metadata.csv", table)
    assert captions == {"a.mp4": "a cat", "day/b.mp4": "a dog"}
    assert reasons(line) == (["CAPTION_REPAIRED"] if is_repaired else [])


def test_quotes_hold_separators_lines_and_quotes() -> None:
    table = b'file_name,text\na.mp4,"a cat, ""Tom"",\r\n\r\non a mat; so"\nb.mp4,"open\nc.mp4,x\n'
    assert rows(table) == [(2, "a.mp4", 'a cat, "Tom", on a mat; so'), (5, "b.mp4", "open c.mp4,x")]
    told = rows(b"file_name,text\na.mp4,a cat, on a mat\n")
    assert told == [(2, "", "3 cells under 2 columns: quote texts with ','")]


def test_an_open_quote_ends_with_the_longest_row() -> None:
    table = b'file_name,text\na.mp4,"open\n' + b"b.mp4,x\n" * 20_000 + b"last.mp4,the end\n"
    found = rows(table, piece=1 << 16)
    assert found[0][2] == "its quotes are not closed" or "limit" in found[0][2]
    assert found[-1][1:] == ("last.mp4", "the end")
    # Rows that go on for ever in quotes, cell after cell.
    worst = b'file_name,text\na.mp4,"x\n' + b'","x\n' * 40_000
    assert peak_bytes(lambda: rows(worst, piece=1 << 16)) < 60 * MAX_LINE_BYTES


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ("{", "line 1: not JSON"),
        ("[" * 60_000, "line 1: not JSON"),
        ('["a.mp4", "a cat"]', "line 1: a list, not an object"),
        ("null", "line 1: null, not an object"),
        ('{"media_path": "a.mp4", "caption": "x"}', "line 1: no file_name, only media_path, caption"),
        ("{}", "line 1: no file_name"),
        ('{"file_name": 7, "text": "x"}', "line 1: its file_name is a number, not text"),
        ('{"file_name": "a.mp4", "text": ["x"]}', "line 1: its text is a list, not text"),
        ('{"file_name": "a.mp4", "text": true}', "line 1: its text is a boolean, not text"),
        ('{"file_name": "../a.mp4", "text": "x"}', "line 1: its file_name is a path that leads out of the archive"),
        (r'{"file_name": "..\\a.mp4", "text": "x"}', "line 1: its file_name is a path that leads out of the archive"),
        (r'{"file_name": "C:\\a.mp4", "text": "x"}', "line 1: its file_name is an absolute path"),
        ('{"file_name": "/a.mp4", "text": "x"}', "line 1: its file_name is an absolute path"),
        ('{"file_name": "a\\u0000.mp4", "text": "x"}', "line 1: its file_name is a name with a NUL character"),
        ('{"file_name": "a.mp4", "text": "<p>x</p>"}', "line 1: HTML"),
        (json.dumps({"file_name": "a.mp4", "text": "x" * (MAX_TEXT_BYTES + 1)}), "bytes; a text has"),
        (json.dumps({"file_name": "a.mp4", "text": "x" * MAX_LINE_BYTES}), "bytes; a row has"),
    ],
)
def test_a_bad_row_is_told_and_costs_no_other(tmp_path: Path, row: str, told: str) -> None:
    table = f'{row}\n{{"file_name": "day/b.mp4", "text": "a dog"}}\n'.encode()
    captions, line = read(tmp_path, "metadata.jsonl", table)
    assert captions == {"day/b.mp4": "a dog"}
    assert (line.outcome, reasons(line)) == (Outcome.OUTCOME_KEPT_CHANGED, ["CAPTION_UNREADABLE"])
    assert told in line.description


def test_rows_for_files_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    table = b"file_name,text\na.mp4,x\n" + b"".join(b"lost-%d.mp4,y\n" % index for index in range(500))
    captions, line = read(tmp_path, "metadata.csv", table)
    assert captions == {"a.mp4": "x"} and reasons(line) == ["CAPTION_ORPHAN"]
    assert line.description.endswith(
        "500 rows for no clip beside or below this table: lost-0.mp4; lost-1.mp4; lost-2.mp4 and 497 more"
    )
    _, line = read(tmp_path, "metadata.csv", b"file_name,text\nb.mp4,x\n")
    assert line.outcome == Outcome.OUTCOME_IGNORED and line.description.startswith(
        "captions of 0 clips; 1 row for no clip"
    )
    _, line = read(tmp_path, "metadata.csv", b"file_name,text\n")
    assert (line.outcome, reasons(line)) == (Outcome.OUTCOME_IGNORED, ["CAPTION_MISSING"])


def test_names_are_relative_to_the_table_and_composed(tmp_path: Path) -> None:
    table = b"".join(
        json.dumps({"file_name": name, "text": text}).encode() + b"\n"
        for name, text in {"b.mp4": "1", "c.mov": "2", "u\u0308.mp4": "3", "a.mp4": "4", "day/b.mp4": "5"}.items()
    )
    captions, line = read(tmp_path, "day/metadata.jsonl", table)
    assert captions == {"day/b.mp4": "1", "day/C.MOV": "2", "day/ü.mp4": "3"}
    assert reasons(line) == ["CAPTION_REPAIRED", "CAPTION_ORPHAN"]
    # Two clips differ in letter case alone: neither is meant by a third spelling.
    assert read(tmp_path, "metadata.csv", b"file_name,text\nZ.MP4,x\nz.mp4,y\n")[0] == {"z.mp4": "y"}


def test_the_last_row_of_a_file_counts_and_a_difference_is_known(tmp_path: Path) -> None:
    path = make_zip(
        tmp_path / "data.zip",
        {"metadata.csv": b"file_name,text,caption\na.mp4,x,\na.mp4,y,\na.mp4,,\nz.mp4,x,x\nz.mp4,x,\nZ.mp4,x,other\n"},
    )
    with Archive(path) as archive, CaptionTables(tmp_path / "spool", CLIPS) as tables:
        tables.read(archive, read_directory(path, Settings())[0])
        found = {clip: tables.captions(clip)[0] for clip in ("a.mp4", "z.mp4", "Z.mp4")}
    assert {clip: (one.text, one.disputed) for clip, one in found.items()} == {
        "a.mp4": ("y", True),
        "z.mp4": ("x", False),
        "Z.mp4": ("x", True),
    }
    assert (found["a.mp4"].source, found["z.mp4"].source) == ("metadata.csv, line 3", "metadata.csv, line 6")


@pytest.mark.parametrize(
    ("text", "encoding", "repair"),
    [
        ("naïve 猫", "utf-8", False),
        ("naïve 猫", "utf-16", False),
        ("naïve 猫", "utf-32", False),
        ("naïve", "utf-16-le", True),
        ("café", "cp1252", True),
        ("一只狗在草地上奔跑，镜头缓慢推进。", "gb18030", True),
        ("カメラが右にパンする。", "cp932", True),
    ],
)
def test_encodings_are_those_of_captions(tmp_path: Path, text: str, encoding: str, repair: bool) -> None:
    """One for the whole table, told by its lines together."""
    table = f"file_name,text\nz.mp4,plain\na.mp4,{text}\n".encode(encoding)
    captions, line = read(tmp_path, "metadata.csv", table)
    assert captions == {"z.mp4": "plain", "a.mp4": text}
    assert reasons(line) == (["CAPTION_REPAIRED"] if repair else [])


@pytest.mark.parametrize(
    "table",
    [
        "file_name,text\na.mp4,красный угол, цифры\n".encode("cp1251"),
        codecs.BOM_UTF16_LE + "file_name,text\n".encode("utf-16-le") + b"a\0\0\xd8\0\xd8" * 9000,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40,
        b"name,words\na.mp4,a cat\n",
        b"",
        b"\n" * (MAX_LINE_BYTES + 100),
        b'"file_name' + b"x" * MAX_LINE_BYTES,
    ],
)
def test_a_table_that_cannot_be_read_has_no_captions(tmp_path: Path, table: bytes) -> None:
    captions, line = read(tmp_path, "metadata.csv", table)
    assert not captions
    assert (line.outcome, reasons(line)) == (Outcome.OUTCOME_IGNORED, ["CAPTION_UNREADABLE"])


def test_a_damaged_or_endless_table_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "data.zip", {"metadata.csv": b"file_name,text\na.mp4,x\n"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"a.mp4,x", b"a.mp4,y"))
    with Archive(path) as archive, CaptionTables(tmp_path / "spool", CLIPS) as tables:
        entry = read_directory(path, Settings())[0]
        assert reasons(tables.read(archive, entry)) == ["ENTRY_CORRUPT"] and not tables.captions("a.mp4")
        archive.stop()
        with pytest.raises(Stopped):
            tables.read(archive, entry)
    monkeypatch.setattr("ltxtrain_services.ingest.caption_tables.MAX_TABLE_BYTES", 20)
    _, line = read(tmp_path, "metadata.csv", b"file_name,text\na.mp4,x\n")
    assert reasons(line) == ["IGNORED_FILE"] and MAX_TABLE_BYTES > 20


def test_memory_is_that_of_the_clips(tmp_path: Path) -> None:
    """A table of 15 MB about files that are elsewhere, and the longest captions for few clips."""
    other = (b'{"file_name": "elsewhere/%06d.mp4", "text": "' % 7) + b"x" * 3000 + b'"}\n'
    ours = b'{"file_name": "a.mp4", "text": "' + b"y" * 60_000 + b'"}\n'
    path = make_zip(tmp_path / "data.zip", {"metadata.jsonl": other * 2500 + ours + other * 2500})
    entry = read_directory(path, Settings())[0]
    with Archive(path) as archive, CaptionTables(tmp_path / "spool", CLIPS) as tables:
        assert peak_bytes(lambda: tables.read(archive, entry)) < 8 << 20
        assert len(tables.captions("a.mp4")[0].text) == 60_000


def lines_of(data: bytes, size: int) -> list[str]:
    def pieces() -> Iterator[bytes]:
        return (data[start : start + size] for start in range(0, len(data), size))

    found, _ = text_lines(pieces)
    return [str(line) for line in found]


@bounded
@given(some.binary(max_size=300), some.integers(1, 20))
def test_any_bytes_as_a_table(data: bytes, size: int) -> None:
    for table in (data, b"file_name,text\n" + data):
        try:
            whole = lines_of(table, len(table) or 1)
        except NotText as error:
            assert str(error)
            continue
        assert lines_of(table, size) == whole
        for name in ("metadata.csv", "metadata.jsonl"):
            try:
                found = rows(table, name, size)
            except NotText as error:
                assert str(error)
                continue
            assert found == rows(table, name, len(table) or 1)
            assert all("\n" not in text and text.encode() is not None for _, _, text in found)


@bounded
@given(some.lists(some.text(max_size=20), max_size=8), some.sampled_from(["utf-8-sig", "utf-16"]), some.integers(1, 9))
def test_lines_are_those_of_the_text(texts: list[str], encoding: str, size: int) -> None:
    lines = [
        f"{text.replace(chr(10), '').replace(chr(13), '')}{end}"
        for text, end in zip(texts, ["\n", "\r\n", "\r"] * 3, strict=False)
    ]
    whole = "".join(lines)
    expected = whole.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    found = lines_of(whole.encode(encoding), size)
    assert [line.rstrip("\r\n") for line in found] == (expected[:-1] if expected[-1] == "" else expected)


def test_a_line_that_is_too_long_is_one_bad_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_text, "MAX_LINE_BYTES", 10)
    found, _ = text_lines(lambda: iter([b"one\n", b"x" * 9, b"y" * 9, b"\ntwo\r", b"\nthree"]))
    listed = list(found)
    assert isinstance(listed[1], LineUnreadable)
    assert [line for line in listed if isinstance(line, str)] == ["one\n", "two\r\n", "three"]


def test_bad_rows_know_their_line() -> None:
    found, _ = read_rows(lambda: iter([b"{}\n\n{]\n"]), comma_separated=False)
    assert [row.line for row in found if isinstance(row, BadRow)] == [1, 3]
