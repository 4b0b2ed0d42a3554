import csv
import ipaddress
import random
import time
from pathlib import Path

import pytest

from ltxtrain_services.runtime.addresses import MAX_URL_CHARS, Address, check_url, is_public, shown

IANA = Path(__file__).parents[2] / "data/iana/special-purpose.csv"
SPECIAL = [ipaddress.ip_network(row["block"]) for row in csv.DictReader(IANA.read_text().splitlines())]
# Blocks whose addresses are dialled as the IPv4 addresses in them.
DIALLED_AS_IPV4 = {ipaddress.ip_network("::ffff:0:0/96"), ipaddress.ip_network("64:ff9b::/96")}
PRIVATE = ("127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.1.1", "172.31.0.9", "100.64.0.1", "198.18.0.1")
PUBLIC_V4 = "93.184.216.34"
PUBLIC = (
    PUBLIC_V4, "1.1.1.1", "8.8.8.8", "100.63.255.255", "172.32.0.1", "192.0.1.1", "198.20.0.1", "223.255.255.254",
    "2606:4700:4700::1111", "2001:4860:4860::8888", "2620:fe::fe", "2a00:1450:4001:80b::200e", "2a00::1", "2400::",
    "2001:200::1", "2003:0:2::1", "2a01:4f8:c17:b0f::2", "2a02:6b8::2:242", "2606:4700::6810:84e5",
)  # fmt: skip

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


def embedded(prefix: str, bits: int, ipv4: str) -> ipaddress.IPv6Address:
    """An IPv4 address behind a prefix of so many bits, as RFC 6052 has it: byte 8 is left out."""
    packed = bytearray(ipaddress.IPv6Address(prefix).packed)
    place = bits // 8
    for value in ipaddress.IPv4Address(ipv4).packed:
        place += place == 8
        packed[place] = value
        place += 1
    return ipaddress.IPv6Address(bytes(packed))


@pytest.mark.parametrize("text", PUBLIC)
def test_hosts_of_the_internet_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("block", [block for block in SPECIAL if block not in DIALLED_AS_IPV4], ids=str)
def test_no_address_of_a_special_block_is_public(block: ipaddress.IPv4Network | ipaddress.IPv6Network) -> None:
    dice = random.Random(str(block))
    inside = [block[0], block[-1], *(block[dice.randrange(block.num_addresses)] for _ in range(20))]
    assert [address for address in inside if is_public(address)] == []


def test_only_unicast_is_public() -> None:
    dice = random.Random(6)
    for _ in range(2_000):
        address: Address = ipaddress.IPv6Address(dice.getrandbits(128))
        if address not in ipaddress.ip_network("2000::/3"):
            assert not is_public(address), address
    for text in ("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "fec0::1", "::2", "::127.0.0.1", "4000::1"):
        assert not is_public(ipaddress.ip_address(text))


def test_a_special_block_ends_where_the_registry_ends_it() -> None:
    """The addresses beside a block are public unless another block has them: nothing is closed by mistake."""
    closed = [*SPECIAL, ipaddress.ip_network("224.0.0.0/4")]
    for block in SPECIAL:
        if block.version == 4:
            for number in (int(block[0]) - 1, int(block[-1]) + 1):
                if 0 <= number < 2**32 and not any(ipaddress.IPv4Address(number) in other for other in closed):
                    assert is_public(ipaddress.IPv4Address(number)), number


@pytest.mark.parametrize("bits", [32, 40, 48, 56, 64, 96])
@pytest.mark.parametrize("private", PRIVATE)
def test_a_private_address_behind_any_prefix_is_none_of_the_internet(bits: int, private: str) -> None:
    prefix = {96: "2a01:4f8:1:2::"}.get(bits, "2a01:4f8::")
    assert not is_public(embedded(prefix, bits, private))
    assert is_public(embedded(prefix, bits, PUBLIC_V4))


@pytest.mark.parametrize("private", PRIVATE)
def test_what_is_dialled_as_ipv4_is_judged_as_such(private: str) -> None:
    for form in ("::ffff:{}", "64:ff9b::{}", "2a01:4f8::5efe:{}", "2a01:4f8::200:5efe:{}"):
        assert not is_public(ipaddress.ip_address(form.format(private))), form
        assert is_public(ipaddress.ip_address(form.format(PUBLIC_V4))), form
    for form in ("::{}", "::ffff:0:{}", "64:ff9b:1::{}", "2001:0:{0}::1"):
        ipv4 = form.format(PUBLIC_V4) if form != "2001:0:{0}::1" else "2001:0:5db8:d822::1"
        assert not is_public(ipaddress.ip_address(ipv4)), form
    assert not is_public(ipaddress.ip_address("2002:5db8:d822::1"))


@pytest.mark.parametrize(
    "host",
    [
        "\u0300\u0315",
        "\u0345\u035c\u0315\u0300\u0327\u05b0",
        "\ufdfa",
        "a.",
        "[::1]",
        "%",
        ":",
        "@",
        "xn--",
        "0x",
        "１",
    ],
)
def test_a_url_takes_no_longer_than_its_length(host: str) -> None:
    """Texts that Python's URLs and Unicode's normal forms make quadratic: CPU time, of a hundred URLs each."""
    began = time.process_time()
    for index in range(100):
        for url in (f"https://{index}" + host * MAX_URL_CHARS, f"https://h/{index}" + host * MAX_URL_CHARS):
            check_url(url[:MAX_URL_CHARS], ())
            shown(url[:MAX_URL_CHARS])
    assert time.process_time() - began < 1.0
