import codecs

import pytest

from services.ingest.captions import NotText, decode_caption, pair
from services.ingest.directory import Entry
from services.ingest.names import kind_of


def entries(*paths: str) -> list[Entry]:
    return [
        Entry(
            index=index,
            path=path,
            kind=kind_of(path),
            size=1,
            compressed_size=1,
            method=0,
            crc=0,
            offset=0,
            encrypted=False,
            unsafe="",
        )
        for index, path in enumerate(paths)
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a cat", "a cat"),
        (b"  a cat \r\n", "a cat"),
        (codecs.BOM_UTF8 + b"a cat", "a cat"),
        (b"line one\r\nline two\n\n  line three", "line one line two line three"),
        (codecs.BOM_UTF16_LE + "snow 雪".encode("utf-16-le"), "snow 雪"),
        (codecs.BOM_UTF16_BE + "snow 雪".encode("utf-16-be"), "snow 雪"),
        ("naïve 猫".encode(), "naïve 猫"),
        (b"", ""),
        (b" \n\t ", ""),
        (codecs.BOM_UTF8, ""),
        (b"tab\tstays, bell \x07goes", "tab\tstays, bell goes"),
    ],
)
def test_documented_encodings(data: bytes, text: str) -> None:
    assert decode_caption(data) == (text, "")


@pytest.mark.parametrize(
    ("data", "text"),
    [("café".encode("cp1252"), "café"), ("cat".encode("utf-16-le"), "cat"), ("cat".encode("utf-16-be"), "cat")],
)
def test_repaired_encodings_say_so(data: bytes, text: str) -> None:
    found, repair = decode_caption(data)
    assert found == text
    assert repair


def test_bytes_that_are_no_text() -> None:
    with pytest.raises(NotText):
        decode_caption(b"\xff\x81\x8d\x90")


@pytest.mark.parametrize(
    ("paths", "captions", "repaired"),
    [
        (["a.mp4", "a.txt"], {"a.mp4": "a.txt"}, set()),
        (["x/a.mp4", "y/a.mp4", "x/a.txt", "y/a.txt"], {"x/a.mp4": "x/a.txt", "y/a.mp4": "y/a.txt"}, set()),
        (["x/a.mp4", "a.txt", "y/a.txt"], {}, set()),
        (["a.mp4", "A.mp4", "a.txt", "A.txt"], {"a.mp4": "a.txt", "A.mp4": "A.txt"}, set()),
        (["a.mp4", "a.mov", "a.txt"], {"a.mp4": "a.txt", "a.mov": "a.txt"}, set()),
        (["a.mp4", "a.mp4.txt"], {"a.mp4": "a.mp4.txt"}, {"a.mp4.txt"}),
        (["a.mp4", "a.mp4.txt", "a.txt"], {"a.mp4": "a.txt"}, set()),
        (["a.v2.mp4", "a.v2.txt", "a.txt"], {"a.v2.mp4": "a.v2.txt"}, set()),
        (["CLIP.MP4", "CLIP.TXT"], {"CLIP.MP4": "CLIP.TXT"}, set()),
        (["Clip.mp4", "clip.txt"], {"Clip.mp4": "clip.txt"}, {"clip.txt"}),
        (["Clip.mp4", "clip.txt", "CLIP.txt"], {}, set()),
        (["a.mp4", "b.txt", "c.mp4"], {}, set()),
    ],
)
def test_pairing_is_by_path(paths: list[str], captions: dict[str, str], repaired: set[str]) -> None:
    found = pair(entries(*paths))
    assert {path: entry.path for path, entry in found.captions.items()} == captions
    assert set(found.repaired) == repaired
