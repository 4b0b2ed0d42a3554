"""Scenes of the world as frames. Letters: T frames, H W picture; x to the right, y down, in pixels."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ltxtrain_pocket.world import DUSK, Colour, Scene, Shape, State, Style, reach, rectangle

Frames = NDArray[np.uint8]  # [T, H, W, 3], RGB
Pixels = NDArray[np.float32]

# Pixels over which an edge fades: a hard edge would cost the video VAE most of its capacity.
EDGE = 8.0
DUSK_FRAMES, DUSK_DEPTH = 8.0, 0.85
HALO: Colour = (255, 252, 230)
HALO_FRAMES = 8.0
TRAIL_GHOSTS = 6
TRAIL_SPACING = 3.0  # frames


def render(
    scene: Scene, frame_count: int, *, first: int = 0, window: tuple[int, int, int, int] | None = None
) -> Frames:
    """Frames first..first + frame_count; window: left, top, width, height of the part to draw, None for all."""
    left, top, width, height = window or (0, 0, scene.width, scene.height)
    x = np.arange(left, left + width, dtype=np.float32)[None, :] + 0.5
    y = np.arange(top, top + height, dtype=np.float32)[:, None] + 0.5
    shade = 1 + scene.shade[0] * (x / scene.width - 0.5) + scene.shade[1] * (y / scene.height - 0.5)
    colour = np.array(scene.colour, np.float32)
    ground = _ground_of(scene, first, shade)
    plain = np.rint(ground).astype(np.uint8)
    frames = np.empty((frame_count, height, width, 3), np.uint8)
    for index in range(frame_count):
        frame = first + index
        state = scene.state(frame)
        if scene.turning is not None:
            ground = _ground_of(scene, frame, shade)
            plain = np.rint(ground).astype(np.uint8)
        picture = ground
        frames[index] = plain
        if style_level(scene, frame) > 0:
            picture = _styled_ground(scene, frame, ground, x, y)
            frames[index] = np.rint(picture)
        # Only where the shape is: a whole picture is thirty times as much.
        rows, columns = _box(scene.shape, state, left, top, width, height)
        cover = _cover(scene.shape, state, x[:, columns], y[rows])[..., None]
        beneath = picture[rows, columns]
        frames[index, rows, columns] = np.rint(beneath + cover * (colour - beneath))
    return frames


def _ground_of(scene: Scene, frame: float, shade: NDArray[np.floating]) -> Pixels:
    ground: Pixels = np.clip(shade[..., None] * np.array(scene.ground_at(frame), np.float32), 0, 255)
    return ground.astype(np.float32)


def style_level(scene: Scene, frame: float) -> float:
    """How far the style has come in a frame, 0..1."""
    frames = {Style.DUSK: DUSK_FRAMES, Style.HALO: HALO_FRAMES, Style.TRAIL: 1.0}
    return 0.0 if scene.style is None else min(max((frame - scene.turn) / frames[scene.style], 0.0), 1.0)


def _styled_ground(scene: Scene, frame: int, ground: Pixels, x: Pixels, y: Pixels) -> Pixels:
    level = style_level(scene, frame)
    if level == 0:
        return ground
    if scene.style is Style.DUSK:
        return ground + np.float32(DUSK_DEPTH * level) * (np.array(DUSK, np.float32) - ground)
    if scene.style is Style.HALO:
        state = scene.state(frame)
        around = replace(state, size=state.size + 10 + 12 * level)
        hole = _cover(scene.shape, replace(around, size=around.size - 12), x, y)
        ring: Pixels = np.float32(level) * np.maximum(_cover(scene.shape, around, x, y) - hole, 0)
        lit: Pixels = ground + ring[..., None] * (np.array(HALO, np.float32) - ground)
        return lit
    picture = ground
    for ghost in range(TRAIL_GHOSTS, 0, -1):
        then = frame - ghost * TRAIL_SPACING
        if then >= scene.turn - TRAIL_SPACING * TRAIL_GHOSTS:
            cover = (
                _cover(scene.shape, scene.state(max(then, 0.0)), x, y)[..., None]
                * 0.6
                * (1 - ghost / (TRAIL_GHOSTS + 1))
            )
            picture = picture + cover * (np.array(scene.colour, np.float32) - picture)
    return picture


def _box(shape: Shape, state: State, left: int, top: int, width: int, height: int) -> tuple[slice, slice]:
    """Rows and columns of a window that the shape and its edges may touch."""
    sides = []
    for centre, half, start, length in zip(
        (state.y, state.x), reversed(reach(shape, state)), (top, left), (height, width), strict=True
    ):
        low, high = math.floor(centre - half - EDGE) - start, math.ceil(centre + half + EDGE) - start
        sides.append(slice(min(max(low, 0), length), min(max(high, 0), length)))
    return sides[0], sides[1]


def _cover(shape: Shape, state: State, x: Pixels, y: Pixels) -> Pixels:
    """[H, W], 1 inside of the shape, 0 outside, between them over EDGE pixels."""
    dx, dy = x - np.float32(state.x), y - np.float32(state.y)
    size = state.size
    if shape is Shape.DISC:
        distance = np.sqrt(dx * dx + dy * dy) - np.float32(size)
    else:
        half_width, half_height, angle = rectangle(shape, state)
        cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        distance = np.maximum(
            np.abs(dx * cosine + dy * sine) - np.float32(half_width),
            np.abs(dy * cosine - dx * sine) - np.float32(half_height),
        )
    cover: Pixels = np.clip(0.5 - distance / np.float32(EDGE), 0, 1)
    return cover
