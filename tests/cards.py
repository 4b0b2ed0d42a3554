"""Reads the test card that every frame of the cases shows: its number, its colours, and which way it lies.

8 x 8 cells in the centred square; the middle sixteen are a number, most significant bit first, white = 1.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

CELLS = 8
# First row, first column, rows, columns; the colour as drawn.
PATCHES: dict[str, tuple[tuple[int, int, int, int], tuple[int, int, int]]] = {
    "tl_red": ((0, 0, 2, 2), (200, 40, 40)),
    "tr_green": ((0, 6, 2, 2), (40, 170, 60)),
    "bl_blue": ((6, 0, 2, 2), (50, 70, 200)),
    "br_yellow": ((6, 6, 2, 2), (210, 200, 50)),
    "top_grey": ((0, 2, 2, 4), (128, 128, 128)),
    "bottom_teal": ((6, 2, 2, 4), (30, 150, 160)),
    "left_white": ((2, 0, 2, 2), (235, 235, 235)),
    "left_black": ((4, 0, 2, 2), (20, 20, 20)),
    "right_orange": ((2, 6, 2, 2), (220, 130, 40)),
    "right_purple": ((4, 6, 2, 2), (120, 50, 150)),
}
WHITE, BLACK = 235, 20


def square(picture: Picture) -> Picture:
    side = min(picture.shape[:2])
    top, left = (picture.shape[0] - side) // 2, (picture.shape[1] - side) // 2
    return picture[top : top + side, left : left + side]


def cell(picture: Picture, row: int, column: int, rows: int = 1, columns: int = 1) -> NDArray[np.float64]:
    """Mean colour of the middle half of a cell, where neighbours do not bleed in."""
    card = square(picture)
    size = card.shape[0] / CELLS
    top, bottom = (row + rows * 0.25) * size, (row + rows * 0.75) * size
    left, right = (column + columns * 0.25) * size, (column + columns * 0.75) * size
    middle = card[round(top) : max(round(bottom), round(top) + 1), round(left) : max(round(right), round(left) + 1)]
    mean: NDArray[np.float64] = middle.reshape(-1, 3).mean(axis=0, dtype=np.float64)
    return mean


def bits(picture: Picture) -> NDArray[np.float64]:
    """Brightness of the sixteen cells of the number, 0 (black) to 1 (white)."""
    levels = np.array([cell(picture, 2 + place // 4, 2 + place % 4).mean() for place in range(16)])
    return (levels - BLACK) / (WHITE - BLACK)


def number(picture: NDArray[Any]) -> int:
    """clip * 512 + frame; an AssertionError where a cell is neither black nor white."""
    levels = bits(picture)
    assert np.all(np.abs(levels - 0.5) > 0.25), f"unclear cells: {np.round(levels, 2)}"
    return int(sum(1 << (15 - place) for place in range(16) if levels[place] > 0.5))


def frame_number(picture: Picture) -> int:
    return number(picture) % 512


def colour_errors(picture: NDArray[Any]) -> dict[str, float]:
    """The greatest difference of a channel from what was drawn, of each patch."""
    return {
        name: float(np.abs(cell(picture, *place) - np.array(colour)).max()) for name, (place, colour) in PATCHES.items()
    }
