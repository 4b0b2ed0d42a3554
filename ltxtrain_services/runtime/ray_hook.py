"""The hook of `ray start`, here and in the image: RAY_START_HOOK=ltxtrain_services.runtime.ray_hook.trim."""

import os
import threading
import time
from pathlib import Path
from typing import Any

WATCH_SECONDS = 1.0


def trim(parameters: Any, head: bool) -> None:
    """Start no Ray Client server, and end with the raylet."""
    parameters.ray_client_server_port = None
    threading.Thread(target=_end_with_raylet, name="end with raylet", daemon=True).start()


def _end_with_raylet() -> None:
    """End this process when its raylet has ended.

    `ray start --block` does so only after a crash. But a raylet one of whose agents is killed ends in good order, and
    would leave a head that looks alive and never runs an actor.
    """
    seen = False
    while True:
        time.sleep(WATCH_SECONDS)
        running = any(_is_own_raylet(entry.name) for entry in Path("/proc").glob("[0-9]*"))
        if seen and not running:
            os._exit(1)
        seen = seen or running


def _is_own_raylet(pid: str) -> bool:
    try:
        name, _, fields = Path("/proc", pid, "stat").read_text().rpartition(") ")
    except OSError:
        return False
    state, parent = fields.split()[:2]
    return name.endswith("(raylet") and state != "Z" and int(parent) == os.getpid()
