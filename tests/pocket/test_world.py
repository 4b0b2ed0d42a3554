"""The world tells the truth about itself: what is drawn and heard is read back from pictures and sound."""

import math

import numpy as np
import pytest

from ltxtrain_pocket.detect import clicks, dusk_level, pitch, see
from ltxtrain_pocket.drawing import DUSK_DEPTH, render
from ltxtrain_pocket.world import (
    FRAME_RATE,
    LOW,
    Motion,
    Shape,
    State,
    Style,
    draw_scene,
    reach,
    sound,
    styled,
    tone_hertz,
    turning,
)

SCENES = 24
LENGTH = 33


def test_a_seed_is_a_scene() -> None:
    assert draw_scene([1, 2]) == draw_scene([1, 2])
    assert draw_scene([1, 2]) != draw_scene([1, 3])


@pytest.mark.parametrize("picture", LOW.values(), ids=LOW)
def test_what_is_drawn_is_seen(picture: tuple[int, int]) -> None:
    seen_shapes = 0
    for seed in range(SCENES):
        scene = draw_scene([7, seed], width=picture[0], height=picture[1], frame_count=LENGTH)
        for frame in (0, LENGTH - 1):
            state, sight = scene.state(frame), see(render(scene, 1, first=frame)[0])
            assert sight is not None
            assert math.hypot(sight.x - state.x, sight.y - state.y) < 1.5, scene
            assert math.dist(sight.colour, scene.colour) < 6
            assert math.dist(sight.ground, scene.ground) < 12
            if scene.motion is not Motion.SPIN:
                seen_shapes += 1
                assert sight.shape is scene.shape, scene
    assert seen_shapes > SCENES / 2


def test_a_turning_ground_is_on_its_way_in_the_opening_and_leaves_the_shape_as_it_is() -> None:
    for seed in range(SCENES):
        still = draw_scene([15, seed], frame_count=LENGTH)
        scene = turning(still, [15, seed, 1])
        assert scene.turning is not None and scene.turning == turning(still, [15, seed, 1]).turning
        assert math.dist(scene.ground_at(8), scene.ground_at(-24)) > 5
        assert scene.ground_at(LENGTH) == pytest.approx(scene.turning.ground)
        for frame in (0, 8, LENGTH - 1):
            sight = see(render(scene, 1, first=frame)[0])
            assert sight is not None
            assert math.dist(sight.ground, scene.ground_at(frame)) < 12
            assert math.dist(sight.colour, scene.colour) < 8


def test_all_stays_within_the_picture_and_moves_as_said() -> None:
    for seed in range(60):
        scene = draw_scene([8, seed], frame_count=49)
        for frame in range(49):
            state = scene.state(frame)
            reach_x, reach_y = reach(scene.shape, state)
            assert reach_x - 1 <= state.x <= scene.width - reach_x + 1
            assert reach_y - 1 <= state.y <= scene.height - reach_y + 1
        assert str(scene.motion) in scene.caption and scene.colour_name in scene.caption
        assert bool(scene.bounces(49)) or scene.motion not in (Motion.BOUNCE,)


def test_a_bounce_is_where_the_motion_turns() -> None:
    for seed in range(20):
        scene = draw_scene([9, seed], frame_count=49, motions=[Motion.BOUNCE])
        turns = [
            frame
            for frame in range(1, 48)
            for axis in ("x", "y")
            if _step(scene.state(frame - 1), scene.state(frame), axis)
            * _step(scene.state(frame), scene.state(frame + 1), axis)
            < 0
        ]
        bounces = scene.bounces(49)
        assert all(min(abs(turn - bounce) for bounce in bounces) <= 1 for turn in turns)
        assert len(bounces) >= 1


def _step(before: State, after: State, axis: str) -> float:
    return float(getattr(after, axis) - getattr(before, axis))


def test_part_of_a_picture_is_that_part() -> None:
    scene = styled(draw_scene([10, 1]), Style.TRAIL, 4)
    whole = render(scene, 4, first=6)
    assert np.array_equal(render(scene, 4, first=6, window=(100, 40, 200, 160)), whole[:, 40:200, 100:300])


@pytest.mark.parametrize("style", Style)
def test_a_style_begins_after_its_frame(style: Style) -> None:
    scene = draw_scene([11, 5], motions=[Motion.DRIFT])
    plain, with_style = render(scene, 25), render(styled(scene, style, 9), 25)
    assert np.array_equal(plain[:10], with_style[:10])
    assert not np.array_equal(plain[24], with_style[24])


def test_dusk_is_measured() -> None:
    scene = draw_scene([12, 3])
    frames = render(styled(scene, Style.DUSK, 9), 25)
    first, last = see(frames[0]), see(frames[24])
    assert first is not None and last is not None
    assert dusk_level(first.ground, last.ground) == pytest.approx(DUSK_DEPTH, abs=0.1)
    assert dusk_level(first.ground, first.ground) == 0


def test_an_empty_ground_shows_nothing() -> None:
    assert see(np.full((288, 512, 3), 120, np.uint8)) is None


def test_sound_follows_height_and_bounces() -> None:
    heard = 0
    for seed in range(10):
        scene = draw_scene([13, seed], frame_count=49, motions=[Motion.BOUNCE, Motion.FALL])
        wave = sound(scene, 49)
        bounces = [frame / FRAME_RATE for frame in scene.bounces(49)]
        assert clicks(wave, 48_000) == pytest.approx(bounces, abs=0.01)
        heard += len(bounces)
        # Away from clicks, whose pitch is their own.
        quiet = [t for t in (0.4, 0.8, 1.2, 1.6) if all(abs(t - bounce) > 0.1 for bounce in bounces)]
        for time in quiet:
            expected = float(tone_hertz(scene.state(time * FRAME_RATE).y, scene.height))
            assert pitch(wave, 48_000, time) == pytest.approx(expected, rel=0.05)
    assert heard >= 10


def test_shapes_are_told_apart_in_every_size() -> None:
    kinds = {draw_scene([14, seed]).shape for seed in range(40)}
    assert kinds == set(Shape)
