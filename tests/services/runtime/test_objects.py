"""The object store's client against a real store."""

import asyncio
import dataclasses
import hashlib
import io
import pickle
import random
import secrets
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import aclosing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from ltxtrain_services.runtime import bucket
from ltxtrain_services.runtime import objects as module
from ltxtrain_services.runtime.object_keys import checked_key, content_key
from ltxtrain_services.runtime.objects import (
    ObjectCorrupt,
    ObjectMissing,
    Objects,
    ObjectStore,
    ObjectStoreUnavailable,
    StoreAddress,
)

HELLO = b"hello"
HELLO_SHA256 = hashlib.sha256(HELLO).hexdigest()
MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def objects(object_store: StoreAddress) -> Objects:
    return Objects(object_store)


@pytest.fixture
def key() -> str:
    return f"tests/{secrets.token_hex(8)}"


def plain_client(address: StoreAddress) -> Minio:
    return Minio(address.endpoint, address.access_key, address.secret_key, secure=False, region=address.region)


def big_file(path: Path, parts: float) -> Path:
    """A file of so many upload parts, whose bytes do not repeat."""
    path.write_bytes(random.Random(parts).randbytes(int(parts * module.PART_BYTES)))
    return path


def fetched(url: str) -> tuple[bytes, str | None]:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read(), response.headers["Content-Disposition"]


def test_bytes_come_back_with_their_digest(objects: Objects, key: str) -> None:
    blob = objects.put_bytes(key, HELLO, "text/plain")
    assert blob == module.StoredBlob(key, 5, HELLO_SHA256, "text/plain")
    assert objects.stat(key) == blob
    assert objects.get_bytes(key) == HELLO
    assert objects.get_bytes(key, sha256=HELLO_SHA256) == HELLO


@pytest.mark.parametrize("parts", [0, 0.5, 1, 1.25], ids=["empty", "less than a part", "one part", "two parts"])
def test_files_of_every_number_of_parts(objects: Objects, key: str, tmp_path: Path, parts: float) -> None:
    source, copy = big_file(tmp_path / "source", parts), tmp_path / "copy"
    blob = objects.put_file(key, source, "application/zip")
    assert blob.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert objects.get_file(key, copy, sha256=blob.sha256) == blob
    assert copy.read_bytes() == source.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_a_wrong_digest_is_told_at_upload_and_leaves_nothing(objects: Objects, key: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(HELLO)
    with pytest.raises(ObjectCorrupt, match=key):
        objects.put_file(key, source, "text/plain", sha256="0" * 64)
    assert objects.stat(key) is None


@pytest.mark.parametrize("told", [None, HELLO_SHA256], ids=["by its metadata", "by the caller"])
def test_bytes_that_were_changed_in_the_store_are_not_handed_out(
    objects: Objects, object_store: StoreAddress, key: str, tmp_path: Path, told: str | None
) -> None:
    metadata: dict[str, Any] = {"sha256": HELLO_SHA256} if told is None else {}
    plain_client(object_store).put_object(object_store.bucket, key, io.BytesIO(b"jello"), 5, metadata=metadata)
    with pytest.raises(ObjectCorrupt, match=HELLO_SHA256):
        objects.get_bytes(key, sha256=told)
    with pytest.raises(ObjectCorrupt):
        objects.get_file(key, tmp_path / "copy", sha256=told)
    assert list(tmp_path.iterdir()) == []


def test_bytes_that_nobody_vouches_for_need_a_digest(objects: Objects, object_store: StoreAddress, key: str) -> None:
    plain_client(object_store).put_object(object_store.bucket, key, io.BytesIO(HELLO), 5)
    with pytest.raises(ObjectCorrupt):
        objects.get_bytes(key)
    assert objects.get_bytes(key, sha256=HELLO_SHA256) == HELLO
    assert b"".join(objects.read(key)) == HELLO


def test_what_is_missing_is_told(objects: Objects, key: str, tmp_path: Path) -> None:
    assert not objects.exists(key)
    with pytest.raises(ObjectMissing, match=key):
        objects.get_bytes(key)
    with pytest.raises(ObjectMissing, match=key):
        objects.get_file(key, tmp_path / "copy")
    with pytest.raises(ObjectMissing, match=key):
        list(objects.read(key))
    objects.delete(key)


def test_content_is_sent_once(
    objects: Objects, object_store: StoreAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.write_bytes(secrets.token_bytes(1000))
    blob = objects.put_content("tests", source, "text/plain")
    assert blob.key == content_key("tests", hashlib.sha256(source.read_bytes()).hexdigest())
    first = plain_client(object_store).stat_object(object_store.bucket, blob.key).last_modified
    again = Objects(object_store)
    monkeypatch.setattr(again, "_put", lambda *_: pytest.fail("it was sent again"))
    assert again.put_content("tests", source.read_bytes(), "text/plain") == blob
    assert plain_client(object_store).stat_object(object_store.bucket, blob.key).last_modified == first


def test_content_whose_bytes_are_wrong_is_sent_again(objects: Objects, object_store: StoreAddress) -> None:
    data = secrets.token_bytes(100)
    key = content_key("tests", hashlib.sha256(data).hexdigest())
    plain_client(object_store).put_object(object_store.bucket, key, io.BytesIO(b"cut off"), 7)
    objects.put_content("tests", data, "text/plain")
    assert objects.get_bytes(key) == data


def test_presigned_urls_work_without_credentials(objects: Objects, object_store: StoreAddress, key: str) -> None:
    request = urllib.request.Request(objects.presign_put(key, MINUTE), data=HELLO, method="PUT")
    with urllib.request.urlopen(request, timeout=10):
        pass
    assert objects.get_bytes(key, sha256=HELLO_SHA256) == HELLO
    body, disposition = fetched(objects.presign_get(key, MINUTE, filename='Über "1".txt'))
    assert (body, disposition) == (
        HELLO,
        "attachment; filename=\"_ber__1_.txt\"; filename*=UTF-8''%C3%9Cber%20%221%22.txt",
    )
    unsigned = f"http://{object_store.endpoint}/{object_store.bucket}/{key}"
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetched(unsigned)
    with pytest.raises(urllib.error.HTTPError, match="403"):
        fetched(objects.presign_get(key, MINUTE).replace(key, f"{key}x"))


def test_presigned_urls_name_the_public_endpoint_and_are_signed_offline(object_store: StoreAddress) -> None:
    elsewhere = dataclasses.replace(
        object_store, endpoint="127.0.0.1:1", public_endpoint="https://objects.example.org", secret_key="of nobody"
    )
    url = Objects(elsewhere).presign_get("a/b", MINUTE)
    assert url.startswith("https://objects.example.org/ltxtrain/a/b?")
    assert "of%20nobody" not in url


def test_only_a_jobs_own_prefix_is_deleted(objects: Objects) -> None:
    job = f"jobs/{secrets.token_hex(8)}"
    for name in (f"{job}/a", f"{job}/b/c", f"{job}x/a"):
        objects.put_bytes(name, HELLO, "text/plain")
    assert [blob.key for blob in objects.list_prefix(f"{job}/")] == [f"{job}/a", f"{job}/b/c"]
    assert objects.delete_prefix(f"{job}/") == 2
    assert objects.delete_prefix(f"{job}/") == 0
    assert objects.exists(f"{job}x/a")
    for prefix in ("", "jobs/", job, "preprocess/sha256/", f"{job}/b/", "jobs/../"):
        with pytest.raises(ValueError, match="prefix"):
            objects.delete_prefix(prefix)


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "a//b", "a/../b", "./a", "a" * 256, "é" * 128, "/".join(["ab"] * 400), "a\nb", "a\0b"]
)
def test_keys_that_a_store_could_refuse_are_refused_here(objects: Objects, name: str) -> None:
    with pytest.raises(ValueError):
        objects.put_bytes(name, HELLO, "text/plain")


def test_keys_that_every_store_takes(objects: Objects) -> None:
    for name in ("tests/ü ß.txt", f"tests/{'a' * 255}"):
        assert checked_key(name) == name
        objects.put_bytes(name, HELLO, "text/plain")
        assert objects.get_bytes(name) == HELLO


def test_a_store_that_is_not_there_is_unavailable(
    object_store: StoreAddress, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket._client, "__defaults__", (bucket.RETRY.new(total=0),))
    nobody = Objects(dataclasses.replace(object_store, endpoint="127.0.0.1:1"))
    for call in (
        nobody.ping,
        nobody.ensure_bucket,
        lambda: nobody.put_bytes("a", HELLO, "text/plain"),
        lambda: nobody.get_file("a", tmp_path / "a"),
        lambda: nobody.stat("a"),
        lambda: nobody.delete("a"),
        lambda: list(nobody.list_prefix("a")),
    ):
        with pytest.raises(ObjectStoreUnavailable, match=r"127\.0\.0\.1:1"):
            call()


def test_wrong_credentials_and_a_wrong_bucket_say_what_to_set(object_store: StoreAddress) -> None:
    with pytest.raises(ObjectStoreUnavailable, match="LTXTRAIN_S3_SECRET_KEY") as refused:
        Objects(dataclasses.replace(object_store, secret_key="0" * 40)).put_bytes("a", HELLO, "text/plain")
    assert "0" * 40 not in str(refused.value)
    with pytest.raises(ObjectStoreUnavailable, match="nowhere"):
        Objects(dataclasses.replace(object_store, bucket="nowhere")).ping()


def test_a_bucket_is_made_once(object_store: StoreAddress) -> None:
    other = Objects(dataclasses.replace(object_store, bucket=f"made-{secrets.token_hex(4)}"))
    other.ensure_bucket()
    other.ensure_bucket()
    other.ping()
    assert list(other.list_prefix("")) == []


def test_it_travels_to_other_processes(objects: Objects, key: str) -> None:
    copy = pickle.loads(pickle.dumps(objects))
    copy.put_bytes(key, HELLO, "text/plain")
    assert objects.get_bytes(key) == HELLO
    for error in (ObjectMissing("a"), ObjectCorrupt("b"), ObjectStoreUnavailable("c")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_secrets_are_not_shown(object_store: StoreAddress) -> None:
    assert object_store.secret_key not in repr(object_store)


async def test_an_event_loop_goes_on_meanwhile(object_store: StoreAddress, key: str, tmp_path: Path) -> None:
    store = ObjectStore(object_store)
    await store.ensure_bucket()
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    blob = await store.put_file(key, big_file(tmp_path / "source", 1.5), "application/zip")
    counting.cancel()
    assert turns > 10
    assert await store.stat(key) == blob
    assert await store.exists(key)
    assert [item.size_bytes for item in await store.list_prefix(key)] == [blob.size_bytes]
    received = hashlib.sha256()
    async with aclosing(store.read(key)) as chunks:
        async for chunk in chunks:
            received.update(chunk)
    assert received.hexdigest() == blob.sha256


async def test_many_calls_at_once(object_store: StoreAddress) -> None:
    store = ObjectStore(object_store)
    names = [f"tests/{secrets.token_hex(8)}" for _ in range(40)]
    await asyncio.gather(*(store.put_bytes(name, name.encode(), "text/plain") for name in names))
    assert await asyncio.gather(*(store.get_bytes(name) for name in names)) == [name.encode() for name in names]


def test_the_store_tells_its_own_time(objects: Objects) -> None:
    """An object is as old as its store says, whatever this machine's clock has become."""
    before = objects.now()
    blob = objects.put_bytes("jobs/clock/now", b"now", "text/plain")
    after = objects.now()
    (listed,) = objects.list_prefix(blob.key)
    assert before <= listed.modified.replace(microsecond=0) <= after


async def test_a_read_that_is_cancelled_in_its_midst_is_closed_once_it_can_be(
    object_store: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may be in the generator just then, and Python closes none that is running."""
    entered, go_on, closed = threading.Event(), threading.Event(), threading.Event()

    def slowly(self: Objects, key: str) -> Iterator[bytes]:
        try:
            while True:
                entered.set()
                go_on.wait(60)
                yield b"x"
        finally:
            closed.set()

    monkeypatch.setattr(Objects, "read", slowly)
    store = ObjectStore(object_store)

    async def read() -> None:
        async with aclosing(store.read("jobs/1/slow")) as chunks:
            async for _ in chunks:
                pass

    reading = asyncio.create_task(read())
    await asyncio.to_thread(entered.wait, 60)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not closed.is_set()
    go_on.set()
    assert await asyncio.to_thread(closed.wait, 60)
