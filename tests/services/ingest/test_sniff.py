import pytest

from ltxtrain_services.ingest.sniff import archive_format, is_web_page, link_advice


@pytest.mark.parametrize(
    "head",
    [
        b"<!DOCTYPE html>",
        b"<!doctype HTML PUBLIC",
        b"\xef\xbb\xbf\r\n<html>",
        b'<?xml version="1.0"?>\n<html xmlns="x">',
        b"<!-- a note --><head>",
        b"<script>location = 1</script>",
    ],
)
def test_pages(head: bytes) -> None:
    assert is_web_page(head)


@pytest.mark.parametrize("head", [b"", b"PK\3\4", b"<htmlish", b"<svg>", b"<?xml version='1.0'?><rss>", b"\0<html>"])
def test_no_pages(head: bytes) -> None:
    assert not is_web_page(head)


# Comments that never lead to a tag: 26 of them took 20 s, each one more twice as long.
WORST = [b"<!---->" * 146, b"<!--" * 256, b"<!-->" * 204, b"<!-- -->" * 128, b"<?xml" + b" " * 1019, b" " * 1024]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("head", WORST)
def test_heads_without_an_end_cost_their_bytes(head: bytes) -> None:
    assert not is_web_page(head)
    assert not archive_format(head)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://drive.google.com/file/d/abc/view?usp=sharing", "Google Drive"),
        ("https://www.dropbox.com/s/abc/clips.zip?dl=0", "dl=1"),
        ("https://mine-my.sharepoint.com/:u:/g/abc", "download=1"),
        ("https://huggingface.co/datasets/a/b/blob/main/clips.zip", "resolve"),
        ("https://example.com/clips.zip", "downloads the file itself"),
        ("https://notdropbox.com/clips.zip", "downloads the file itself"),
    ],
)
def test_what_to_do_about_a_page(url: str, word: str) -> None:
    text = link_advice(url)
    assert word in text
    assert text.endswith("upload the file.")
    assert ("Dropbox" in text) == ("www.dropbox.com" in url)
