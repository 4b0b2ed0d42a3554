"""Inputs of the loops that bench/train.py compares, and the process that each of them runs in."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "train.py"


@dataclass(frozen=True)
class Shape:
    """Latent frames, height and width of each clip, and clips a step."""

    latents: tuple[int, int, int]
    batch: int

    @property
    def tokens(self) -> int:
        frames, height, width = self.latents
        return frames * height * width

    @classmethod
    def parse(cls, text: str) -> "Shape":
        frames, height, width, batch = map(int, text.split("x"))
        return cls((frames, height, width), batch)

    def __str__(self) -> str:
        return "x".join(map(str, (*self.latents, self.batch)))


@dataclass(frozen=True)
class Block:
    """Seconds a step of some steps, and the loss of the last."""

    seconds: float
    loss: float


class Worker:
    """A process of bench/train.py that does so many steps each time it is asked."""

    def __init__(self, way: str, model: Path, shape: Shape) -> None:
        command = [sys.executable, str(SCRIPT), "--way", way, "--shape", str(shape), "--model", str(model)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def steps(self, count: int) -> Block:
        assert self._process.stdin is not None
        print(count, file=self._process.stdin, flush=True)
        return Block(**json.loads(self._read()))

    def stop(self) -> float:
        """Ends the process; its peak memory in MB."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        peak = float(self._read())
        self._process.wait()
        return peak

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()
