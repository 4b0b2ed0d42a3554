"""Ports of this machine for programs that replace a taken one silently, or not at all."""

import contextlib
import errno
import json
import random
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"
# Below what Linux gives to outgoing connections (from 32768) and above Ray's workers (to 19999), so that a port is
# still free when its program is started again.
RANGE = range(20_000, 32_000)

# Ports of this process's programs, by the file that remembers them: one that is chosen is not listened on at once.
_owners: dict[int, Path] = {}
_choosing = threading.Lock()


def is_free(port: int, host: str = HOST) -> bool:
    """Whether nobody listens there. Raises OSError for a host that is not this machine's."""
    with socket.socket() as probe:
        # A connection in TIME_WAIT does not matter to a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            return False
    return True


def remembered_ports(path: Path, names: Sequence[str], offsets: Mapping[str, int] | None = None) -> dict[str, int]:
    """A free port for each name: those of the last time where they are free still. They are kept in the file.

    Where a name has an offset, the port that much above its own is free too. No two files of this process get one port.
    """
    with _choosing:
        return _chosen(path.resolve(), names, offsets or {})


def _chosen(path: Path, names: Sequence[str], offsets: Mapping[str, int]) -> dict[str, int]:
    old: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        old = json.loads(path.read_text())
    ports: dict[str, int] = {}
    allowed = {port for port in RANGE if _owners.get(port, path) == path}
    for name in names:
        offset = offsets.get(name, 0)
        pairs = ({port, port + offset} for port in _candidates(old.get(name, 0)))
        pair = next(pair for pair in pairs if pair <= allowed and all(map(is_free, pair)))
        ports[name] = min(pair)
        allowed -= pair
        _owners.update(dict.fromkeys(pair, path))
    path.write_text(json.dumps(ports))
    return ports


def _candidates(first: int) -> Iterator[int]:
    yield first
    yield from random.sample(RANGE, len(RANGE))
