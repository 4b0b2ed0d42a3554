"""Speeds measured on this cluster: the newest of each kind, and the quantiles that an estimate ranges between."""

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

# Newest measurements that count: a slow job of last year widens no range for ever.
WINDOW = 200
LOW, HIGH = 0.1, 0.9


@dataclass(frozen=True)
class Range:
    """Seconds that a tenth of the measurements stayed below, and those that a tenth exceeded."""

    low: float
    high: float

    def times(self, amount: float) -> "Range":
        return Range(self.low * amount, self.high * amount)

    def plus(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)


NOTHING = Range(0.0, 0.0)


@dataclass(frozen=True)
class Conditions:
    """How a training was held, as far as it changes its speed a token and a GPU.

    workers_per_clip: GPUs that share each clip's tokens, and wait on each other. compiled: the transformer's blocks.
    fastest: attention, which is exact otherwise.
    """

    precision: str
    optimizer: str
    workers_per_clip: int = 1
    compiled: bool = False
    fastest: bool = False

    @property
    def key(self) -> str:
        shared = f"/{self.workers_per_clip}" if self.workers_per_clip > 1 else ""
        how = "/compiled" * self.compiled + "/fastest" * self.fastest
        return f"{self.precision}/{self.optimizer}{shared}{how}"


class Measurements:
    """Windows of measurements by kind, kept in a file; begun anew where it cannot be read, or is of something else.

    measured_of: the model and the device.
    """

    def __init__(self, path: Path, measured_of: str) -> None:
        self._path = path
        self._measured_of = measured_of
        self._windows: dict[str, deque[float]] = {}
        for kind, values in _read(path, measured_of).items():
            self._windows[kind] = deque(values, WINDOW)

    def add(self, kind: str, seconds: float) -> None:
        """Keep a measurement, and drop the oldest of its kind when there are enough."""
        # Re-inserted: kinds are in the order of their newest measurement.
        window = self._windows.pop(kind, None) or deque(maxlen=WINDOW)
        window.append(seconds)
        self._windows[kind] = window
        windows = {name: list(values) for name, values in self._windows.items()}
        self._path.write_text(json.dumps({"of": self._measured_of, "windows": windows}))

    def range_of(self, kind: str) -> Range | None:
        """Quantiles of a kind; None before its first measurement."""
        window = self._windows.get(kind)
        return Range(quantile(window, LOW), quantile(window, HIGH)) if window else None

    def newest(self, fits: Callable[[str], bool]) -> str | None:
        """Kind of the newest measurement among those that fit."""
        return next((kind for kind in reversed(self._windows) if fits(kind)), None)


def quantile(values: Iterable[float], share: float) -> float:
    """Value below which this share of the values lies, on the straight line between neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _read(path: Path, measured_of: str) -> dict[str, list[float]]:
    try:
        kept = json.loads(path.read_text())
        if kept["of"] != measured_of:
            return {}
        return {str(kind): [float(value) for value in values] for kind, values in kept["windows"].items()}
    except (OSError, ValueError, TypeError, AttributeError, LookupError):
        return {}
