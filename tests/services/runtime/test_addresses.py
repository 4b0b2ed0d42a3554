import pytest

from services.runtime.addresses import check_url, shown

UPLOAD = "upload:uploads/0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/clips.zip",
        "http://example.com:80/clips.zip?signature=a%20b",
        "https://münchen.example/clips.zip",
        "https://93.184.216.34/clips.zip",
        "https://[2606:4700::1111]/clips.zip",
        "http://intra.example:8080/clips.zip",
        "http://[::1]:9000/clips.zip",
        "s3://sets/mine/clips.zip",
        UPLOAD,
    ],
)
def test_accepted(url: str) -> None:
    assert check_url(url, ("Intra.example:8080", "[::1]:9000"), ("sets",)) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "clips.zip",
        "//example.com/clips.zip",
        "https:///clips.zip",
        "file:///etc/hostname",
        "ftp://example.com/clips.zip",
        "gopher://example.com/",
        "data:application/zip;base64,UEs=",
        "https://user:word@example.com/",
        "https://example.com:22/",
        "http://example.com:443/",
        "https://example.com:99999/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://2130706433/",
        "http://１２７.0.0.1/",
        "http://127。0。0。1/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://a.localhost/",
        "http://10.0.0.1/",
        "http://192.168.1.1/",
        "http://172.16.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://100.64.0.1/",
        "http://[::1]/",
        "http://[::]/",
        "http://[fe80::1]/",
        "http://[fd00::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[::127.0.0.1]/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::1]/",
        "http://[fec0::1]/",
        "http://[ff02::1]/",
        "https://example.com/a b.zip",
        "https://example.com\\@127.0.0.1/",
        "https://example.com/\r\nHost: x",
        "s3://other/clips.zip",
        "s3://sets/",
        "s3://sets/clips.zip?versionId=1",
        "upload:uploads/../x",
        "upload:datasets/0123456789abcdef0123456789abcdef",
        "https://example.com/" + "a" * 9000,
    ],
)
def test_refused(url: str) -> None:
    assert check_url(url, ("intra.example:8080", "localhost:9000"), ("sets",))


def test_the_list_opens_one_port_only() -> None:
    assert check_url("http://127.0.0.1:9000/", ("127.0.0.1:9000",)) is None
    assert check_url("http://127.0.0.1:9001/", ("127.0.0.1:9000",))


def test_buckets_are_closed_unless_listed() -> None:
    assert check_url("s3://sets/clips.zip", ())


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://user:word@example.com/a.zip?X-Amz-Signature=secret#part", "https://example.com/a.zip"),
        ("s3://sets/a.zip", "s3://sets/a.zip"),
        ("https://[half", "(not a URL)"),
        (UPLOAD, UPLOAD),
    ],
)
def test_what_is_shown_of_a_url(url: str, text: str) -> None:
    assert shown(url) == text
