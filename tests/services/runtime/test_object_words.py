"""Words of a store that failed, and remains of a killed process in it."""

import io
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

from ltxtrain_services.runtime import bucket
from ltxtrain_services.runtime import objects as module
from ltxtrain_services.runtime.object_types import ObjectStoreFull
from ltxtrain_services.runtime.objects import Objects, ObjectStoreUnavailable, StoreAddress

ADDRESS = StoreAddress(
    endpoint="",
    public_endpoint="",
    access_key="AKIAEXAMPLEKEY",
    secret_key="a secret of the store",
    region="us-east-1",
    bucket="clips",
    secure=False,
)
S3_ERROR = "<Error><Code>{code}</Code><Message>{text}</Message><Resource>/clips/a</Resource></Error>"


@contextmanager
def answering(status: int, body: str, kind: str) -> Iterator[Objects]:
    """A store that gives one answer to everything."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            data = body.encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{server.server_address[1]}"
        yield Objects(replace(ADDRESS, endpoint=host, public_endpoint=host))
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (507, "the volume is full", "text/plain", ["507", "the volume is full"]),
        (507, S3_ERROR.format(code="InsufficientStorage", text="out of disk"), "application/xml", ["out of disk"]),
        (
            403,
            S3_ERROR.format(code="QuotaExceeded", text="100 GB used"),
            "application/xml",
            ["QuotaExceeded", "100 GB"],
        ),
        (503, S3_ERROR.format(code="SlowDown", text="too many requests"), "application/xml", ["SlowDown", "too many"]),
        (502, "<html>bad gateway</html>", "text/html", ["502", "bad gateway"]),
    ],
)
def test_the_stores_own_words(
    status: int, body: str, kind: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket._client, "__defaults__", (bucket.RETRY.new(total=1, backoff_factor=0.0),))
    with answering(status, body, kind) as objects, pytest.raises(ObjectStoreUnavailable) as error:
        objects.put_bytes("a", b"x", "text/plain")
    assert [word for word in words if word not in str(error.value)] == []


FULL_ANSWERS = [
    (507, "the volume is full", "text/plain"),
    (507, S3_ERROR.format(code="Whatever", text="out of disk"), "application/xml"),
    (403, S3_ERROR.format(code="QuotaExceeded", text="100 GB used"), "application/xml"),
    (400, S3_ERROR.format(code="XMinioStorageFull", text="minimum free drive threshold"), "application/xml"),
]


@pytest.mark.parametrize(("status", "body", "kind"), FULL_ANSWERS)
def test_a_store_that_is_full_is_told_as_such(status: int, body: str, kind: str) -> None:
    with answering(status, body, kind) as objects, pytest.raises(ObjectStoreFull, match="no space left"):
        objects.put_bytes("a", b"x", "text/plain")


def test_an_embedded_store_that_fails_on_a_full_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers InternalError, whatever it lacks: its folder tells."""
    monkeypatch.setattr(bucket._client, "__defaults__", (bucket.RETRY.new(total=0),))
    body = S3_ERROR.format(code="InternalError", text="We encountered an internal error")
    for short, folder in ((2**62, tmp_path), (0, tmp_path), (2**62, None), (2**62, tmp_path / "gone")):
        monkeypatch.setattr(bucket, "SHORT_BYTES", short)
        with answering(500, body, "application/xml") as plain:
            objects = Objects(replace(plain.address, folder=folder))
            with pytest.raises(ObjectStoreUnavailable) as error:
                objects.put_bytes("a", b"x", "text/plain")
        full = short > 0 and folder == tmp_path
        assert isinstance(error.value, ObjectStoreFull) is full
        assert (str(tmp_path) in str(error.value)) is full


def test_the_words_hold_no_secret_and_have_an_end() -> None:
    text = f"{ADDRESS.access_key} with {ADDRESS.secret_key}\nhttp://host/x?X-Amz-Signature=abc123 " + "x" * 9000
    with answering(507, text, "text/plain") as objects, pytest.raises(ObjectStoreUnavailable) as error:
        objects.put_bytes("a", b"x", "text/plain")
    told = str(error.value)
    assert len(told) < 1000 and "\n" not in told
    assert not [word for word in (ADDRESS.access_key, ADDRESS.secret_key, "abc123") if word in told]


def test_a_store_that_refuses_connections_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket._client, "__defaults__", (bucket.RETRY.new(total=0),))
    with pytest.raises(ObjectStoreUnavailable, match="Connection refused"):
        Objects(replace(ADDRESS, endpoint="127.0.0.1:1", public_endpoint="127.0.0.1:1")).ping()


def client_of(address: StoreAddress) -> Minio:
    return Minio(address.endpoint, address.access_key, address.secret_key, secure=False, region=address.region)


@pytest.fixture
def own_bucket(object_store: StoreAddress) -> StoreAddress:
    address = replace(object_store, bucket=f"parts{secrets.token_hex(5)}")
    Objects(address).ensure_bucket()
    return address


def begun(address: StoreAddress, key: str) -> str:
    """An upload in parts whose process was killed: its id."""
    client = client_of(address)
    upload = client._create_multipart_upload(address.bucket, key, {})
    client._upload_part(address.bucket, key, bytes(5 << 20), {}, upload, 1)
    return upload


def unfinished(address: StoreAddress) -> set[str]:
    listed = client_of(address)._list_multipart_uploads(address.bucket).uploads
    return {str(upload.upload_id) for upload in listed}


def test_parts_of_uploads_that_nobody_ends_are_given_up(own_bucket: StoreAddress) -> None:
    objects = Objects(own_bucket)
    uploads = {begun(own_bucket, key) for key in ("ingest/sha256/a", "ingest/sha256/a", "jobs/1/b", "preprocess/c")}
    assert unfinished(own_bucket) == uploads
    now = datetime.now(UTC)
    assert objects.abort_stale_uploads(now - timedelta(hours=23)) == 0
    assert unfinished(own_bucket) == uploads
    assert objects.abort_stale_uploads(now + timedelta(minutes=1)) == len(uploads)
    assert unfinished(own_bucket) == set()


def test_an_upload_that_goes_on_is_not_disturbed(own_bucket: StoreAddress) -> None:
    objects = Objects(own_bucket)
    data = bytes(3 * module.PART_BYTES)

    class Reader(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            objects.abort_stale_uploads(datetime.now(UTC) - timedelta(days=1))
            return super().read(size)

    client_of(own_bucket).put_object(own_bucket.bucket, "a", Reader(data), len(data), part_size=module.PART_BYTES)
    assert b"".join(objects.read("a")) == data


def test_stores_that_list_no_uploads_and_take_no_rules_are_borne() -> None:
    for status, kind in ((501, "application/xml"), (403, "application/xml"), (200, "text/html"), (404, "text/plain")):
        with answering(status, S3_ERROR.format(code="NotImplemented", text="no"), kind) as objects:
            assert objects.abort_stale_uploads(datetime.now(UTC)) == 0
            objects.expire_stale_uploads()


def test_a_rule_for_stores_that_take_one(own_bucket: StoreAddress) -> None:
    objects, client = Objects(own_bucket), client_of(own_bucket)
    for _ in range(2):
        objects.expire_stale_uploads()
    config = client.get_bucket_lifecycle(own_bucket.bucket)
    assert config is not None
    (rule,) = config.rules
    assert rule.abort_incomplete_multipart_upload is not None
    assert rule.abort_incomplete_multipart_upload.days_after_initiation == bucket.STALE_UPLOAD_DAYS


def test_an_operators_rules_stay_as_they_are(own_bucket: StoreAddress) -> None:
    client = client_of(own_bucket)
    own = Rule(ENABLED, rule_filter=Filter(prefix="tmp/"), rule_id="mine", expiration=Expiration(days=3))
    client.set_bucket_lifecycle(own_bucket.bucket, LifecycleConfig([own]))
    Objects(own_bucket).expire_stale_uploads()
    config = client.get_bucket_lifecycle(own_bucket.bucket)
    assert config is not None and [rule.rule_id for rule in config.rules] == ["mine"]
