"""Connections to the object store are given back, however a reading ends."""

import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from ltxtrain_services.runtime.objects import CHUNK_BYTES, ObjectCorrupt, ObjectMissing, Objects, StoreAddress


def sockets_to(port: int) -> int:
    """How many connections to a port of loopback this process holds open."""
    own = set()
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            own.add(os.readlink(handle))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[2].split(":")[1], 16) == port and f"socket:[{row[9]}]" in own for row in rows)


def test_reads_leave_no_more_sockets_than_the_pool_holds(object_store: StoreAddress, tmp_path: Path) -> None:
    source, key = tmp_path / "source", f"tests/{secrets.token_hex(8)}"
    source.write_bytes(secrets.token_bytes(4 * CHUNK_BYTES))
    Objects(object_store).put_file(key, source, "application/zip")
    reading = Objects(object_store)

    def broken_off(number: int) -> None:
        with closing(reading.read(key)) as chunks:
            assert 0 < len(next(chunks)) <= CHUNK_BYTES

    def missing(number: int) -> None:
        with pytest.raises(ObjectMissing):
            reading.get_bytes(f"{key}/{number}")

    def corrupt(number: int) -> None:
        with pytest.raises(ObjectCorrupt):
            reading.get_file(key, tmp_path / str(number), sha256="0" * 64)

    def whole(number: int) -> None:
        assert len(reading.get_bytes(key)) == 4 * CHUNK_BYTES

    ways = (broken_off, missing, corrupt, whole)
    port = int(object_store.endpoint.rpartition(":")[2])
    before = sockets_to(port)
    with ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(ways[number % len(ways)], number) for number in range(500)]:
            done.result()
    assert 0 < sockets_to(port) - before <= 16
