"""Ports of this machine for programs that replace a taken one silently, or not at all."""

import contextlib
import json
import random
import socket
from collections.abc import Sequence
from pathlib import Path

HOST = "127.0.0.1"
# Below what Linux gives to outgoing connections (from 32768) and above Ray's workers (to 19999), so that a port is
# still free when its program is started again.
RANGE = range(20_000, 32_000)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # A connection in TIME_WAIT does not matter to a server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Some port that nobody listens on."""
    candidates = random.sample(RANGE, 200)
    return next(port for port in candidates if is_free(port))


def remembered_ports(path: Path, names: Sequence[str]) -> dict[str, int]:
    """A free port for each name: those of the last time where they are free still. They are kept in the file."""
    old: dict[str, int] = {}
    with contextlib.suppress(FileNotFoundError, ValueError):
        old = json.loads(path.read_text())
    ports: dict[str, int] = {}
    for name in names:
        port = old.get(name, 0)
        while port in ports.values() or port not in RANGE or not is_free(port):
            port = free_port()
        ports[name] = port
    path.write_text(json.dumps(ports))
    return ports
