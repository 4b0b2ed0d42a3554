"""python -m tests.attack.target FOLDER: the runtime's server as a process of its own, to be attacked.

It has tokens (`ann ann-token`), records in SQLite and no work; its log goes to stderr as a service's does. The first
line of its output is its address.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.service import keep_collections_short
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.telemetry import log_to_stderr
from tests.services.runtime.front import serving

TOKEN = "ann-token"
ROOT = Path(__file__).parents[2]


async def serve(folder: Path) -> None:
    (folder / "tokens").write_text(f"ann {TOKEN}\nbob bob-token\n")
    settings = Settings(tokens_file=folder / "tokens", state_dir=folder, max_watches=100, max_calls=100)
    log_to_stderr("INFO")
    database = await Database.open(settings.database, folder)
    keep_collections_short()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with serving(database, settings, heartbeat_seconds=15.0) as front:
        print(front.address, flush=True)
        ends = [asyncio.create_task(event.wait()) for event in (stop, front.server.ended)]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    await database.close()
    sys.exit(0 if stop.is_set() else 1)


class Target:
    """The running process, as an attacker's victim and as its operator sees it."""

    def __init__(self, folder: Path, address: str, process: asyncio.subprocess.Process) -> None:
        self.address = address
        self.token = TOKEN
        self._folder = folder
        self._process = process

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    async def ended(self) -> int:
        """The exit status, once there is one."""
        return await self._process.wait()

    @property
    def log_bytes(self) -> int:
        return self.log_path.stat().st_size

    @property
    def log_path(self) -> Path:
        return self._folder / "log"

    @property
    def resident_bytes(self) -> int:
        return resident_bytes(self._process.pid)

    @property
    def handles(self) -> int:
        return handles(self._process.pid)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def handles(pid: int) -> int:
    """Open file handles of a process."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@asynccontextmanager
async def running_target(folder: Path, *program: str) -> AsyncIterator[Target]:
    """`program` is what Python runs in place of this module."""
    folder.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), *sys.path])
    with (folder / "log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *(program or ("-m", "tests.attack.target")),
            str(folder),
            stdout=subprocess.PIPE,
            stderr=log,
            # As `ltxtrain up` hands it on, whose client has set it.
            env={**os.environ, "PYTHONPATH": path, "GRPC_VERBOSITY": "ERROR"},
            cwd=ROOT,
        )
    assert process.stdout is not None
    try:
        address = (await process.stdout.readline()).decode().strip()
        assert address, (folder / "log").read_text()
        yield Target(folder, address, process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
