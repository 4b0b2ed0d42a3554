"""Scenes that the demo and the measures of learning share: a style's dataset, and openings that nobody trained on."""

from collections.abc import Iterator
from itertools import count

from ltxtrain_pocket.world import COLOURS, Scene, Style, draw_scene, styled

OPENINGS_SEED, STYLE_SEED = 2401, 2402
PREFIX_FRAMES, FRAMES = 9, 17
TRIGGER = "night falls,"
STYLE_CLIPS = 12
LONGEST = 49
# Grounds that dusk changes much.
BY_DAY = ("pale blue", "grey", "sandy")


def opening(index: int) -> Scene:
    """A scene that neither the model nor a LoRA was trained on, on a ground by day."""
    return next(_by_day(OPENINGS_SEED, index))


def style_scene(index: int) -> Scene:
    """A scene of the style's dataset: night falls after the opening.

    Colours come in turn: what all clips have in common is learned as the style, and what some colours never do as well.
    """
    colour = list(COLOURS)[index % len(COLOURS)]
    scene = next(scene for scene in _by_day(STYLE_SEED, index) if scene.colour_name == colour)
    return styled(scene, Style.DUSK, PREFIX_FRAMES - 1)


def _by_day(seed: int, index: int) -> Iterator[Scene]:
    for attempt in count():
        scene = draw_scene([seed, index, attempt], frame_count=LONGEST)
        if scene.ground_name in BY_DAY:
            yield scene
