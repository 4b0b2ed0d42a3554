"""A world of moving shapes: endless clips from a seed, with the truth of every frame.

One shape (disc, square, diamond or bar) of one colour moves over a shaded ground. It drifts, bounces off the edges,
falls, grows, or spins as it goes; the caption says so. The ground may turn into another one (`turning`). The pocket
model is trained on this world, and `.detect` reads its clips back. x to the right, y down, in pixels; angles in
radians; 24 frames a second.

A style is something that the world itself never does and that a LoRA can learn: see Style.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]  # RGB, levels 0..255

FRAME_RATE = 24.0
LOW = {"16:9": (512, 288), "1:1": (512, 512), "9:16": (288, 512)}

GRAVITY = 0.35  # pixels a frame, a frame
RESTITUTION = 0.8
COLOUR_JITTER = 10.0
# Euclidean distance in levels between shape and ground, so that both people and detectors tell them apart.
LEAST_CONTRAST = 130.0
# Of a turning ground: frames that it takes, the last frame to begin at, and levels between first and last colour.
TURNING_FRAMES, TURNING_BEGUN, LEAST_TURNING = (8.0, 24.0), 4.0, 60.0

COLOURS: dict[str, Colour] = {
    "red": (222, 58, 50),
    "orange": (240, 148, 40),
    "yellow": (245, 216, 70),
    "green": (64, 190, 92),
    "cyan": (80, 208, 222),
    "blue": (56, 104, 226),
    "pink": (240, 122, 180),
    "white": (240, 240, 234),
}
GROUNDS: dict[str, Colour] = {
    "pale blue": (150, 190, 220),
    "dark blue": (36, 46, 92),
    "grey": (124, 124, 130),
    "green": (46, 88, 66),
    "sandy": (204, 184, 146),
    "dark red": (96, 40, 50),
    "plum": (82, 56, 106),
}
DUSK: Colour = (22, 12, 58)
LOWEST_HERTZ, TONE_LEVEL = 220.0, 0.2
CLICK_HERTZ, CLICK_SECONDS, CLICK_LEVEL = 3000.0, 0.004, 0.7


class Shape(StrEnum):
    DISC = "disc"
    SQUARE = "square"
    DIAMOND = "diamond"
    BAR = "bar"


class Motion(StrEnum):
    DRIFT = "drifts"
    BOUNCE = "bounces"
    FALL = "falls"
    GROW = "grows"
    SPIN = "spins"


class Style(StrEnum):
    """DUSK: after its frame, night falls over the ground. HALO: a ring of light opens around the shape.

    TRAIL: the shape leaves a fading trail.
    """

    DUSK = "dusk"
    HALO = "halo"
    TRAIL = "trail"


@dataclass(frozen=True)
class State:
    """Where the shape is in one frame: its centre, size (radius, or half of a side) and angle."""

    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True)
class Turning:
    """The ground that comes, evenly, in so many frames from frame `begin` on, which may be before the clip."""

    ground: Colour
    begin: float
    frames: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One clip of any length. velocity, growth and spin are a frame; style begins after frame `turn`."""

    width: int
    height: int
    shape: Shape
    colour_name: str
    colour: Colour
    ground_name: str
    ground: Colour
    shade: tuple[float, float]
    motion: Motion
    start: State
    velocity: tuple[float, float]
    growth: float = 0.0
    spin: float = 0.0
    turning: Turning | None = None
    style: Style | None = None
    turn: int = 0

    @property
    def caption(self) -> str:
        article = "an" if self.colour_name[0] in "aeiou" else "a"
        return f"{article} {self.colour_name} {self.shape} {self.motion} over a {self.ground_name} ground"

    def state(self, frame: float) -> State:
        """The truth of a frame; times between frames are defined too."""
        start = self.start
        size = start.size + self.growth * frame
        angle = start.angle + self.spin * frame
        x, y = start.x + self.velocity[0] * frame, start.y + self.velocity[1] * frame
        if self.motion is Motion.BOUNCE:
            reach_x, reach_y = reach(self.shape, start)
            x = _reflected(x, reach_x, self.width - reach_x)[0]
            y = _reflected(y, reach_y, self.height - reach_y)[0]
        elif self.motion is Motion.FALL:
            y = _fallen(start.y, self.velocity[1], self.height - reach(self.shape, start)[1], frame)[0]
        return State(x, y, size, angle)

    def ground_at(self, frame: float) -> Colour:
        if self.turning is None:
            return self.ground
        level = min(max((frame - self.turning.begin) / self.turning.frames, 0.0), 1.0)
        red, green, blue = (
            old + level * (new - old) for old, new in zip(self.ground, self.turning.ground, strict=True)
        )
        return red, green, blue

    def bounces(self, frame_count: int) -> list[float]:
        """Times in frames, below frame_count, at which the shape meets an edge."""
        start = self.start
        reach_x, reach_y = reach(self.shape, start)
        end = float(frame_count)
        if self.motion is Motion.BOUNCE:
            return sorted(
                _reflections(start.x, self.velocity[0], reach_x, self.width - reach_x, end)
                + _reflections(start.y, self.velocity[1], reach_y, self.height - reach_y, end)
            )
        if self.motion is Motion.FALL:
            return _fallen(start.y, self.velocity[1], self.height - reach_y, end)[1]
        return []


def reach(shape: Shape, state: State) -> tuple[float, float]:
    """Half of the width and of the height of the shape's bounding box."""
    size = state.size
    if shape is Shape.DISC:
        return size, size
    half_width, half_height, angle = rectangle(shape, state)
    cosine, sine = abs(math.cos(angle)), abs(math.sin(angle))
    return half_width * cosine + half_height * sine, half_width * sine + half_height * cosine


def rectangle(shape: Shape, state: State) -> tuple[float, float, float]:
    """Half width, half height and angle of what is not a disc; a diamond is a square on its corner."""
    size = state.size
    if shape is Shape.BAR:
        return size * 0.5, size * 1.3, state.angle
    if shape is Shape.DIAMOND:
        return size * 0.9, size * 0.9, state.angle + math.pi / 4
    return size * 0.9, size * 0.9, state.angle


def draw_scene(
    seed: Sequence[int] | int,
    *,
    width: int = 512,
    height: int = 288,
    frame_count: int = 25,
    motions: Sequence[Motion] = tuple(Motion),
) -> Scene:
    """A scene from a seed (one number or several), whose shape stays within the picture for frame_count frames."""
    generator = np.random.default_rng(seed)
    while True:
        scene = _drawn(generator, width, height, frame_count, motions)
        if scene is not None:
            return scene


def _drawn(
    generator: np.random.Generator, width: int, height: int, frame_count: int, motions: Sequence[Motion]
) -> Scene | None:
    """One try; None where the shape would leave the picture or look like the ground."""
    shape = list(Shape)[generator.integers(len(Shape))]
    motion = motions[int(generator.integers(len(motions)))]
    colour_name = list(COLOURS)[generator.integers(len(COLOURS))]
    ground_name = list(GROUNDS)[generator.integers(len(GROUNDS))]
    colour, ground = (
        np.clip(np.array(base) + generator.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3), 0, 255)
        for base in (COLOURS[colour_name], GROUNDS[ground_name])
    )
    size = generator.uniform(30, 50)
    direction, speed = generator.uniform(0, 2 * math.pi), generator.uniform(2.0, 5.0)
    velocity = [speed * math.cos(direction), speed * math.sin(direction)]
    growth, spin, angle = 0.0, 0.0, 0.0
    if motion is Motion.FALL:
        velocity = [generator.uniform(-3.0, 3.0), generator.uniform(-2.0, 2.0)]
    elif motion is Motion.GROW:
        growth = generator.uniform(0.4, 0.9)
        velocity = [component * 0.4 for component in velocity]
    elif motion is Motion.SPIN:
        shape = list(Shape)[generator.integers(1, len(Shape))]  # a disc cannot be seen to spin
        spin = generator.choice([-1.0, 1.0]) * generator.uniform(0.04, 0.08)
        angle = generator.uniform(0, math.pi)
        velocity = [component * 0.5 for component in velocity]
    start = State(generator.uniform(0, width), generator.uniform(0, height), size, angle)
    scene = Scene(
        width=width,
        height=height,
        shape=shape,
        colour_name=colour_name,
        colour=_colour(colour),
        ground_name=ground_name,
        ground=_colour(ground),
        shade=(generator.uniform(-0.25, 0.25), generator.uniform(-0.25, 0.25)),
        motion=motion,
        start=start,
        velocity=(velocity[0], velocity[1]),
        growth=growth,
        spin=spin,
    )
    if math.dist(scene.colour, scene.ground) < LEAST_CONTRAST:
        return None
    if motion is Motion.BOUNCE and not scene.bounces(frame_count):
        return None
    for frame in range(frame_count):
        state = scene.state(frame)
        reach_x, reach_y = reach(shape, state)
        if not (reach_x - 1 <= state.x <= width - reach_x + 1 and reach_y - 1 <= state.y <= height - reach_y + 1):
            return None
    return scene


def turning(scene: Scene, seed: Sequence[int] | int) -> Scene:
    """The scene on a ground that turns into another one; its turning has begun by frame TURNING_BEGUN.

    So an opening shows what is to come. What turns and what does not is told apart nowhere else: without such scenes
    the model takes a change of the ground for one of all that is seen, and darkens the shape with it.
    """
    generator = np.random.default_rng(seed)
    while True:
        ground = np.array(GROUNDS[list(GROUNDS)[generator.integers(len(GROUNDS))]])
        then = _colour(np.clip(ground + generator.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3), 0, 255))
        frames = generator.uniform(*TURNING_FRAMES)
        turn = Turning(then, generator.uniform(-frames / 2, TURNING_BEGUN), frames)
        turned = replace(scene, turning=turn)
        way = [turned.ground_at(turn.begin + frames * share) for share in (0.25, 0.5, 0.75, 1.0)]
        if math.dist(then, scene.ground) > LEAST_TURNING and all(
            math.dist(scene.colour, seen) > LEAST_CONTRAST / 2 for seen in way
        ):
            return turned


def styled(scene: Scene, style: Style, turn: int) -> Scene:
    """The scene with a style that begins after frame `turn`."""
    return replace(scene, style=style, turn=turn)


def _colour(levels: NDArray[np.float64]) -> Colour:
    return float(levels[0]), float(levels[1]), float(levels[2])


def _reflected(position: float, low: float, high: float) -> tuple[float, bool]:
    """A straight way folded into low..high, and whether it now runs backwards."""
    phase = (position - low) / (high - low) % 2
    return low + (high - low) * min(phase, 2 - phase), phase > 1


def _reflections(start: float, velocity: float, low: float, high: float, end: float) -> list[float]:
    if velocity == 0:
        return []
    times = []
    # The unfolded way meets an edge at every multiple of high - low.
    span = high - low
    first, last = sorted(((start - low) / span, (start + velocity * end - low) / span))
    for edge in range(math.ceil(first), math.floor(last) + 1):
        time = (low + edge * span - start) / velocity
        if 0 < time < end:
            times.append(time)
    return times


def _fallen(y: float, velocity: float, floor: float, frame: float) -> tuple[float, list[float]]:
    """Height after some frames of falling on a floor, and the times at which the floor was met."""
    times: list[float] = []
    elapsed = 0.0
    while True:
        # y + v t + g/2 t^2 = floor
        time = (-velocity + math.sqrt(max(velocity**2 + 2 * GRAVITY * (floor - y), 0.0))) / GRAVITY
        if elapsed + time >= frame:
            rest = frame - elapsed
            return y + velocity * rest + GRAVITY / 2 * rest**2, times
        elapsed += time
        velocity = -RESTITUTION * (velocity + GRAVITY * time)
        if velocity > -GRAVITY:
            return floor, times
        y = floor
        times.append(elapsed)


def sound(scene: Scene, frame_count: int, sample_rate: int = 48_000) -> NDArray[np.float32]:
    """Sound of the clip, [2, S] in -1..1: a tone that is higher the higher the shape is, and a click at each bounce."""
    seconds = np.arange(round(frame_count / FRAME_RATE * sample_rate)) / sample_rate
    frames = range(frame_count + 1)
    heights = np.interp(seconds * FRAME_RATE, frames, [scene.state(frame).y for frame in frames])
    tone = TONE_LEVEL * np.sin(2 * math.pi * np.cumsum(tone_hertz(heights, scene.height)) / sample_rate)
    for frame in scene.bounces(frame_count):
        since = seconds - frame / FRAME_RATE
        tone += np.where(since >= 0, CLICK_LEVEL * np.exp(-since.clip(0) / CLICK_SECONDS), 0) * np.cos(
            2 * math.pi * CLICK_HERTZ * since
        )
    mono = tone.clip(-1, 1).astype(np.float32)
    return np.stack([mono, mono])


def tone_hertz(y: NDArray[np.float64] | float, height: int) -> NDArray[np.float64]:
    """Two octaves from the lower edge to the upper one."""
    return np.asarray(LOWEST_HERTZ * 2 ** (2 * (1 - np.asarray(y) / height)))
