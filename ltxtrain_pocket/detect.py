"""Read clips of the world back: where the shape is, its colour, size and kind, the ground, clicks and pitch.

Nothing here knows the scene; what is read can be held against it. Letters: T frames, H W picture, S samples.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ltxtrain_pocket.world import DUSK, Colour, Shape

Levels = NDArray[np.float64]

GRID = 4  # pixels between those that the ground is fitted to
CLEAR = 40.0  # levels from the ground, below which nothing is seen to lie on it
FARTHEST = 110.0  # pixels from the centre that a shape reaches
BAR_ELONGATION = 1.7
CORNERS = 1.12  # farthest point over radius of equal area: 1 of a disc, 1.25 of a square
CLICK_SECONDS = 0.03
CLICK_LEVEL = 0.1


@dataclass(frozen=True)
class Sight:
    """The shape as seen in one frame: centre in pixels, radius of a disc of equal area, median colours in levels."""

    x: float
    y: float
    radius: float
    colour: Colour
    shape: Shape
    ground: Colour


def see(frame: NDArray[np.uint8]) -> Sight | None:
    """The shape on the ground of one frame [H, W, 3]; None when nothing stands out."""
    pixels = frame.astype(np.float64)
    ground = _ground(pixels)
    distance = np.linalg.norm(pixels - ground, axis=2)
    height, width = distance.shape
    # Blocks rather than pixels, so that no speck counts as a shape.
    rows, columns = height // GRID, width // GRID
    blocks = distance[: rows * GRID, : columns * GRID].reshape(rows, GRID, columns, GRID).mean(axis=(1, 3))
    highest = np.partition(blocks.ravel(), -20)[-20]
    if highest < CLEAR:
        return None
    inside = distance > highest * 0.7
    colour = np.median(pixels[inside], axis=0)
    # How much of the way from ground to colour each pixel has gone.
    way = colour - ground
    cover = ((pixels - ground) * way).sum(axis=2) / np.maximum((way**2).sum(axis=2), 1.0)
    near = np.linalg.norm(pixels - ground - cover[..., None] * way, axis=2) < np.maximum(60.0, 0.6 * highest)
    mask = (cover > 0.5) & near
    y, x = np.nonzero(mask)
    if len(x) < 100:
        return None
    centre = np.array([np.median(x), np.median(y)])
    for _ in range(3):
        keep = np.hypot(x - centre[0], y - centre[1]) < FARTHEST
        if not keep.any():
            return None
        centre = np.array([x[keep].mean(), y[keep].mean()])
    x, y = x[keep] - centre[0], y[keep] - centre[1]
    return Sight(
        x=float(centre[0]) + 0.5,
        y=float(centre[1]) + 0.5,
        radius=math.sqrt(len(x) / math.pi),
        colour=_colour(colour),
        shape=_shape(x, y),
        ground=_colour(ground.reshape(-1, 3).mean(axis=0)),
    )


def dusk_level(first: Colour, last: Colour) -> float:
    """How far a ground has gone from its colour to that of dusk, 0..1 and beyond."""
    way = np.subtract(DUSK, first)
    return float(np.dot(np.subtract(last, first), way) / max(float(np.dot(way, way)), 1.0))


def clicks(sound: NDArray[np.float32], sample_rate: int) -> list[float]:
    """Seconds at which something clicks, in a sound [2, S]."""
    # A tone changes little from one sample to the next, a click much.
    change = np.abs(np.diff(sound.mean(axis=0), n=2))
    times: list[float] = []
    for index in np.nonzero(change > CLICK_LEVEL)[0]:
        seconds = float(index) / sample_rate
        if not times or seconds - times[-1] > CLICK_SECONDS:
            times.append(seconds)
    return times


def pitch(sound: NDArray[np.float32], sample_rate: int, seconds: float, window: float = 0.1) -> float:
    """The strongest frequency in Hz of a window about a time of a sound [2, S]."""
    middle, half = round(seconds * sample_rate), round(window * sample_rate / 2)
    part = sound.mean(axis=0)[max(middle - half, 0) : middle + half].astype(np.float64)
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part)), n=8 * len(part)))
    return float(np.argmax(spectrum)) * sample_rate / (8 * len(part))


def _ground(pixels: Levels) -> Levels:
    """[H, W, 3]: a plane through each channel, after what does not lie on it has been left out."""
    height, width, _ = pixels.shape
    y, x = np.mgrid[0:height, 0:width]
    plane = np.stack([np.ones((height, width)), x / width - 0.5, y / height - 0.5], axis=2)
    inputs, outputs = plane[::GRID, ::GRID].reshape(-1, 3), pixels[::GRID, ::GRID].reshape(-1, 3)
    middle = np.median(outputs, axis=0)
    weight = (np.linalg.norm(outputs - middle, axis=1) < 90).astype(np.float64)
    solution = np.zeros((3, 3))
    for _ in range(4):
        weighted = inputs * weight[:, None]
        solution = np.linalg.lstsq(weighted.T @ inputs, weighted.T @ outputs, rcond=None)[0]
        residual = np.linalg.norm(outputs - inputs @ solution, axis=1)
        weight = (residual < max(float(np.median(residual)) * 3, 12.0)).astype(np.float64)
    ground: Levels = plane @ solution
    return ground


def _shape(x: Levels, y: Levels) -> Shape:
    """The shape that points about their centre form."""
    spread = np.linalg.eigvalsh(np.cov(np.stack([x, y])))
    if math.sqrt(spread[1] / max(spread[0], 1e-9)) > BAR_ELONGATION:
        return Shape.BAR
    radius = np.hypot(x, y)
    if np.quantile(radius, 0.999) / math.sqrt(len(x) / math.pi) < CORNERS:
        return Shape.DISC
    # Corners at 45 degrees or at 0: the fourth harmonic of the outline has one sign or the other.
    corners = np.exp(4j * np.arctan2(y, x)) * radius**4
    return Shape.DIAMOND if corners.sum().real > 0 else Shape.SQUARE


def _colour(levels: Levels) -> Colour:
    return float(levels[0]), float(levels[1]), float(levels[2])
