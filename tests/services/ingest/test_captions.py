import codecs
import contextlib
import random

import pytest

from ltxtrain_services.ingest.caption_text import NoCaption, NotText, decode_caption, decode_json_caption
from ltxtrain_services.ingest.captions import pair
from ltxtrain_services.ingest.directory import Entry
from ltxtrain_services.ingest.names import kind_of
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES


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
    [
        ("café".encode("cp1252"), "café"),
        ("“Élan” — l’été à 25 °C…".encode("cp1252"), "“Élan” — l’été à 25 °C…"),
        ("¿Qué? ¡Él! «\xa0déjà\xa0»".encode("cp1252"), "¿Qué? ¡Él! «\xa0déjà\xa0»"),
        ("© Müller, ½ m², 25 €".encode("cp1252"), "© Müller, ½ m², 25 €"),
        ("cat".encode("utf-16-le"), "cat"),
        ("cat".encode("utf-16-be"), "cat"),
        ("雪が降る\n".encode("utf-16-le"), "雪が降る"),
        ("一只狗在草地上奔跑，镜头缓慢推进。".encode("gb18030"), "一只狗在草地上奔跑，镜头缓慢推进。"),
        ("夕阳下的城市街道".encode("gb2312"), "夕阳下的城市街道"),
        ("猫が走る".encode("cp932"), "猫が走る"),
        ("カメラが右にパンする。".encode("shift_jis"), "カメラが右にパンする。"),
        ("naïve 猫".encode()[:-1], "naïve"),
        ("naïve 猫".encode()[:-2] + b"\r\n", "naïve"),
        ("一只狗在草地上".encode()[:-1], "一只狗在草地"),
        (codecs.BOM_UTF16_LE + "snow 雪".encode("utf-16-le")[:-1], "snow"),
        (codecs.BOM_UTF8 + "雪雪".encode()[:-1], "雪"),
        # Its first character is a letter of UTF-8, too; what follows is no beginning of one.
        ("红衣女孩".encode("gb18030"), "红衣女孩"),
        ("女孩走过红色的街道".encode("gb18030"), "女孩走过红色的街道"),
        ("赤い犬".encode("iso2022_jp"), "赤い犬"),
        ("Björk í rauðum kjól, íþróttir".encode("cp1252"), "Björk í rauðum kjól, íþróttir"),
        ("a jalapeño on a façade, 45° from São Paulo".encode("cp1252"), "a jalapeño on a façade, 45° from São Paulo"),
        ("一只狗在草\udcff地上奔跑".encode("utf-8", "surrogateescape"), "一只狗在草地上奔跑"),
    ],
)
def test_repaired_encodings_say_so(data: bytes, text: str) -> None:
    found, repair = decode_caption(data)
    assert found == text
    assert repair


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\x81\x8d\x90",
        "красный угол, цифры меняются".encode("cp1251"),
        "красный угол".encode("koi8-r"),
        "빨간 모서리가 있는 카드".encode("cp949"),
        "狗在草地上跑".encode("big5"),
        "赤い角のあるテスト".encode("euc-jp"),
        "Ελληνικά κείμενο".encode("cp1253"),
        "מכונית אדומה".encode("cp1255"),
        "příliš žluťoučký kůň".encode("cp1250"),
        "Übergröße".encode("cp850"),
        "über den Wolken".encode("mac-roman"),
        "女孩".encode("gb18030"),  # may be Korean as well, but no letter of UTF-8 that is cut off
        "빨간 공".encode("euc-kr"),
        "a bird, 새".encode("euc-kr"),
        "kırmızı köşe".encode("cp1254"),
        "köpek çimlerde koşuyor".encode("cp1254"),
        "yağmurda yürüyen kız".encode("cp1254"),
        "červená růže".encode("cp1250"),
        "modrý vůz jede po cestě".encode("cp1250"),
        "raudonas šuo bėga".encode("cp1257"),
        "赤い犬".encode("iso2022_jp") + b"\x80",
        "Übergröße".encode("mac-roman"),
        "白猫".encode("gb18030"),  # may be Korean as well
        random.Random(1).randbytes(600),
        b"\xff\xd8\xff\xe0\0\x10JFIF\0" + random.Random(2).randbytes(600),
        codecs.BOM_UTF8 + "café crème".encode("cp1252") + b" and so on",
    ],
)
def test_bytes_that_are_not_text_for_sure(data: bytes) -> None:
    """Never Latin letters in place of others."""
    with pytest.raises(NotText):
        decode_caption(data)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (rb"{\rtf1\ansi\ansicpg1252 a cat\par}", "RTF"),
        (b"\r\n" + rb"{\rtf1 a cat}", "RTF"),
        (r"{\rtf1 a cat}".encode("utf-16"), "RTF"),
        (b"<!DOCTYPE html><html><body>a cat</body></html>", "HTML"),
        (b"<!-- saved --><html>a cat", "HTML"),
        (b"<p>a cat</p>", "HTML"),
        (b'<div class="caption">a cat</div>', "HTML"),
        ("<span>чёрный кот</span>".encode(), "HTML"),
    ],
)
def test_markup_is_left_out_by_name(data: bytes, kind: str) -> None:
    with pytest.raises(NotText, match=kind):
        decode_caption(data)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"<trigger> a cat", "<trigger> a cat"),
        (b"a < b and <b>", "a < b and <b>"),
        (b"{a cat|a dog}", "{a cat|a dog}"),
        (b"a cat" + bytes(4000), "a cat"),
        (b"a\0cat in the snow", "acat in the snow"),
        ("雪".encode() + bytes(3), "雪"),
        ("a\x1cb\x85c\u2028d\u2029e\vf\fg".encode(), "a b c d e f g"),
        (b"one\n\x07\n two", "one two"),
    ],
)
def test_text_that_only_looks_odd(data: bytes, text: str) -> None:
    assert decode_caption(data) == (text, "")


# The worst that fits into a caption: each pattern that meets it is linear. Before: minutes, with the interpreter lock.
WORST = [
    b" " * MAX_TEXT_BYTES,
    b"\n" * MAX_TEXT_BYTES,
    b" \n" * (MAX_TEXT_BYTES // 2),
    b"\t" * (MAX_TEXT_BYTES - 1) + b"x",
    b"<" * MAX_TEXT_BYTES,
    b"<p " * (MAX_TEXT_BYTES // 3),
    b"<!---->" * (MAX_TEXT_BYTES // 7),
    b"<!--" * (MAX_TEXT_BYTES // 4),
    b"\xe9" * MAX_TEXT_BYTES,
    b"a\xe9" * (MAX_TEXT_BYTES // 2),
    b"\x94\x93" * (MAX_TEXT_BYTES // 2),
    b"\xb0\xa1" * (MAX_TEXT_BYTES // 2),
    b"\x82\xa0" * (MAX_TEXT_BYTES // 2),
    b"\xd2\xbb" * (MAX_TEXT_BYTES // 2),
    b"\xff\xfe" + b" \0" * (MAX_TEXT_BYTES // 2 - 1),
    "\u0316\u0301".encode() * (MAX_TEXT_BYTES // 4),
    b"\0 " * (MAX_TEXT_BYTES // 2),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("data", WORST, ids=lambda data: repr(data[:6]))
def test_the_worst_captions_cost_their_bytes(data: bytes) -> None:
    with contextlib.suppress(NotText):
        text, _ = decode_caption(data)
        assert "\n" not in text


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
        (["a.mp4", "a.json", "a.caption", "a.txt"], {"a.mp4": "a.txt a.caption a.json"}, set()),
        (["a.mp4", "a.mp4.json", "A.CAPTION"], {"a.mp4": "A.CAPTION a.mp4.json"}, {"a.mp4.json", "A.CAPTION"}),
        (["a.mp4", "b.caption", "x/a.json"], {}, set()),
    ],
)
def test_pairing_is_by_path(paths: list[str], captions: dict[str, str], repaired: set[str]) -> None:
    found = pair(entries(*paths))
    assert {path: " ".join(entry.path for entry in files) for path, files in found.captions.items()} == captions
    assert set(found.repaired) == repaired


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b'{"caption": "a cat"}', "a cat"),
        (b'{"text": "a cat", "tags": ["cat"]}', "a cat"),
        (b'{"caption": "one", "text": "two"}', "one"),
        (b'{"caption": null, "text": "two"}', "two"),
        (codecs.BOM_UTF8 + '{"caption": "雪\\nin two lines"}'.encode(), "雪 in two lines"),
        ('{"caption": "snow 雪"}'.encode("utf-16"), "snow 雪"),
        ('{"caption": "café"}'.encode("cp1252"), "café"),
        (b'{"caption": "half \\ud83d a pair"}', "half  a pair"),
        (b'{"caption": "a", "caption": "the last"}', "the last"),
        (b'{"caption": ""}', ""),
    ],
)
def test_captions_in_json(data: bytes, text: str) -> None:
    found, _ = decode_json_caption(data)
    assert found == text and found.encode().decode() == text


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"caption": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'[{"caption": "a cat"}]', "a list, not an object"),
        (b'"a cat"', "text, not an object"),
        (b'{"caption": ["a cat"]}', "its caption is a list, not text"),
        (b'{"caption": {"en": "a cat"}}', "its caption is an object, not text"),
        (b'{"caption": true}', "its caption is a boolean, not text"),
        (b'{"text": 7}', "its text is a number, not text"),
        (b'{"caption": "<p>a cat</p>"}', "HTML"),
    ],
)
def test_json_that_is_no_caption(data: bytes, told: str) -> None:
    with pytest.raises(NotText, match=told):
        decode_json_caption(data)


@pytest.mark.parametrize("data", [b"{}", b'{"title": "a", "description": "b"}', b'{"caption": null}'])
def test_json_about_something_else(data: bytes) -> None:
    with pytest.raises(NoCaption):
        decode_json_caption(data)
