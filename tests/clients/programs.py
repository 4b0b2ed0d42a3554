"""Example programs of other languages, run against a scripted server."""

import asyncio
import os
from dataclasses import dataclass
from pathlib import Path

from tests.clients.far_side import EXAMPLE, FarSide

SECONDS = 60.0


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def sequences(self) -> list[int]:
        """Numbers of the events that were told."""
        return [int(line.split(" ", 1)[0]) for line in self.err.splitlines() if line.split(" ", 1)[0].isdecimal()]


async def run_program(command: list[str], far: FarSide, *arguments: object, **environment: str) -> Ended:
    addresses = {"LTXTRAIN_TRAIN": far.address, "LTXTRAIN_INGEST": far.address}
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("LTXTRAIN_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        *map(str, arguments),
        env=inherited | addresses | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


def sheet(folder: Path, text: str = EXAMPLE) -> Path:
    path = folder / "job.json"
    path.write_text(text)
    return path
