"""A small dataset and an opening clip for tests of the suite: the same bytes on every machine, made when absent."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ltxtrain_services.local.demo_data import HEIGHT, WIDTH, Frame, write_archive, write_opening

Mask = NDArray[np.bool_]

Y, X = np.mgrid[0:HEIGHT, 0:WIDTH]


def disc(x: float, y: float) -> Mask:
    return np.asarray((X - x) ** 2 + (Y - y) ** 2 < 40**2)


def square(x: float, y: float) -> Mask:
    return np.asarray((abs(X - x) < 36) & (abs(Y - y) < 36))


def diamond(x: float, y: float) -> Mask:
    return np.asarray(abs(X - x) + abs(Y - y) < 52)


def bar(x: float, y: float) -> Mask:
    return np.asarray((abs(X - x) < 14) & (abs(Y - y) < 90))


# Path in the archive, shape, its colour, the ground's, frames, caption.
CLIPS: list[tuple[str, Callable[[float, float], Mask], tuple[int, int, int], tuple[int, int, int], int, str]] = [
    ("day/drift.mp4", disc, (230, 90, 60), (110, 160, 200), 36, "a red disc drifts over a pale blue ground"),
    ("day/climb.mp4", square, (250, 210, 70), (90, 130, 90), 30, "a yellow square climbs over a green ground"),
    ("night/drift.mp4", diamond, (120, 200, 250), (30, 30, 60), 36, "a light diamond drifts over a dark ground"),
    ("night/sweep.mp4", bar, (240, 240, 230), (60, 25, 50), 24, "a white bar sweeps over a dark red ground"),
    # Fewer frames than the demo trains on.
    ("night/blink.mp4", disc, (250, 120, 180), (20, 20, 20), 12, "a pink disc blinks on black"),
]
OPENING = (disc, (90, 220, 140), (70, 60, 120), 24)


def make_clips(folder: Path) -> Path:
    """clips.zip: four clips to train on, one that is too short, and what a Mac leaves in archives."""
    path = folder / "clips.zip"
    if not path.exists():
        write_archive(
            path,
            (
                (name, _frames(shape, colour, ground, frame_count, seed=len(name) + frame_count), caption)
                for name, shape, colour, ground, frame_count, caption in CLIPS
            ),
        )
    return path


def make_validation_clip(folder: Path) -> Path:
    """opening.mp4: a second of a green disc, to be continued by previews."""
    path = folder / "opening.mp4"
    if not path.exists():
        write_opening(path, _frames(*OPENING, seed=7))
    return path


def _frames(
    shape: Callable[[float, float], Mask],
    colour: tuple[int, int, int],
    ground: tuple[int, int, int],
    frame_count: int,
    seed: int,
) -> Iterator[Frame]:
    """One shape that moves in a straight line over a shaded ground, frames uint8 [288, 512, 3]."""
    start = np.array([90.0 + 13 * (seed % 7), 80.0 + 11 * (seed % 5)])
    step = np.array([6.0 + seed % 3, 2.0 + seed % 2])
    shade = 0.75 + 0.25 * X / WIDTH - 0.15 * Y / HEIGHT
    scene = np.clip(shade[..., None] * np.array(ground), 0, 255).astype(np.uint8)
    for number in range(frame_count):
        frame = scene.copy()
        x, y = start + number * step
        frame[shape(x, y)] = colour
        yield frame
