"""Headers of hosts: every value is read or passed over."""

import gzip
import random
import zlib
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ltxtrain_services.ingest.headers import (
    ContentRange,
    Damaged,
    Decoder,
    Unsupported,
    content_range,
    retry_after,
    validator,
)
from ltxtrain_services.runtime.dial import location
from tests.properties import bounded

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
DATA = random.Random(3).randbytes(5000) + b"again and again " * 1000
NAMES = ("Retry-After", "Content-Range", "ETag", "Last-Modified", "Location", "Content-Encoding")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 120 ", 120.0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90.0),
        (format_datetime(NOW - timedelta(days=9), usegmt=True), 0.0),
        ("²", 0.0),
        ("٣", 0.0),
        ("１２", 0.0),
        ("-1", 0.0),
        ("1e9", 0.0),
        ("nan", 0.0),
        ("9" * 5000, 0.0),
        ("Fri, 99 Foo 2026 99:99:99 GMT", 0.0),
        ("", 0.0),
    ],
)
def test_when_to_come_back(value: str, seconds: float) -> None:
    assert retry_after({"Retry-After": value}, NOW) == seconds


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("bytes 5-9/10", ContentRange(5, 9, 10)),
        ("bytes 5-9/*", ContentRange(5, 9, None)),
        ("bytes 9-5/10", None),
        ("bytes 5-10/10", None),
        ("bytes ５-9/10", None),
        ("bytes */10", None),
        ("bytes 5-9/" + "9" * 4000, None),
        ("bits 5-9/10", None),
        ("", None),
    ],
)
def test_ranges(value: str, found: ContentRange | None) -> None:
    assert content_range({"Content-Range": value}) == found


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"ETag": '"abc"'}, '"abc"'),
        ({"ETag": 'W/"abc"', "Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT"}, "Wed, 21 Oct 2026 07:28:00 GMT"),
        ({"ETag": '"a\udcffb"'}, ""),
        ({"ETag": '"a"b"'}, ""),
        ({"ETag": '"' + "a" * 9000 + '"'}, ""),
        ({"Last-Modified": "yesterday"}, ""),
        ({"Last-Modified": "Wed, 21 Oct 2026 07:28:00 GMT\udcff"}, ""),
        ({}, ""),
    ],
)
def test_validators_are_what_a_request_may_hold(headers: dict[str, str], found: str) -> None:
    assert validator(headers) == found


def test_redirects_to_raw_bytes() -> None:
    assert location({"Location": "/caf\udce9/猫?x=\udcff"}) == "/caf%E9/猫?x=%FF"
    assert location({}) is None


def decoded(chunks: list[bytes], encoding: str = "gzip") -> tuple[bytes, Decoder]:
    """Everything up to where the decoder has enough."""
    decoder, found = Decoder({"Content-Encoding": encoding}), b""
    for chunk in chunks:
        if decoder.finished:
            break
        found += b"".join(decoder.decode(chunk))
    return found, decoder


def sliced(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(
    ("raw", "right"),
    [
        (gzip.compress(DATA), DATA),
        (gzip.compress(DATA) + gzip.compress(b"") + gzip.compress(b"more"), DATA + b"more"),
        (gzip.compress(DATA) + bytes(50), DATA),
        (gzip.compress(DATA) + b"\x1f", DATA),
        (gzip.compress(DATA) + b"<html>" * 9, DATA),
        (zlib.compress(DATA) + b"tail", DATA),
    ],
)
def test_encoded_data_end_where_they_end(raw: bytes, right: bytes, size: int) -> None:
    found, decoder = decoded(sliced(raw, size))
    assert found == right
    assert decoder.whole


def test_half_of_encoded_data_is_not_whole() -> None:
    assert not decoded([gzip.compress(DATA)[:-20]])[1].whole
    assert not decoded([gzip.compress(DATA) + gzip.compress(DATA)[:30]])[1].whole


def test_nothing_is_decoded_that_is_not_encoded() -> None:
    assert decoded([b"PK\3\4", b"PK"])[0] == b"PK\3\4PK"
    assert decoded([b"\x1f\x8b"], "identity")[0] == b"\x1f\x8b"
    with pytest.raises(Damaged):
        decoded([b"neither", b" nor"])
    for encoding in ("br", "gzip, gzip", "²", "x" * 9000):
        with pytest.raises(Unsupported):
            Decoder({"Content-Encoding": encoding})


@bounded
@given(some.dictionaries(some.sampled_from(NAMES), some.text(max_size=300)))
def test_any_header_is_a_value_or_nothing(headers: dict[str, str]) -> None:
    assert 0 <= retry_after(headers) < float("inf")
    found = content_range(headers)
    assert found is None or 0 <= found.first <= found.last
    assert validator(headers).isascii()
    assert (location(headers) or "").count("\udcff") == 0
    try:
        Decoder(headers)
    except Unsupported as error:
        assert len(str(error)) < 200


@bounded
@given(some.lists(some.binary(max_size=60), max_size=8), some.binary(max_size=40), some.integers(1, 50))
def test_members_of_gzip_and_what_follows(members: list[bytes], tail: bytes, size: int) -> None:
    raw = b"".join(gzip.compress(member) for member in members)
    if not members or tail.startswith(b"\x1f\x8b"):
        return
    found, decoder = decoded(sliced(raw + tail, size))
    assert found == b"".join(members)
    assert decoder.whole
