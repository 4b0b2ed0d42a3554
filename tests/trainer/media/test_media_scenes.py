"""Cuts where the picture changes as a whole, and nowhere else."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ltxtrain_trainer.errors import ClipTooShort
from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_scenes
from ltxtrain_trainer.media.frame_schedule import FitSettings
from ltxtrain_trainer.media.scenes import find_scenes
from tests import cards
from tests.clips import Picture, Video, card, write_clip

WIDTH, HEIGHT = 192, 108


def texture(seed: int, width: int = 3 * WIDTH, contrast: float = 60) -> NDArray[np.float64]:
    """A landscape of smooth colours, wider than the picture, that no other seed resembles."""
    chance = np.random.default_rng(seed)
    y, x = np.mgrid[0:HEIGHT, 0:width]
    picture = np.full((HEIGHT, width, 3), 0.0) + chance.uniform(60, 190, 3)
    for _ in range(12):
        frequency, phase, angle = chance.uniform(0.01, 0.12), chance.uniform(0, 6.3), chance.uniform(0, 3.1)
        wave = np.sin(frequency * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        picture += wave[..., None] * chance.normal(0, contrast / 3, 3)
    return picture


def shot(seed: int, count: int, *, speed: float = 1.0, grain: float = 3.0) -> list[Picture]:
    """A camera that pans over a texture, so many pixels a frame."""
    chance, view = np.random.default_rng(seed + 1000), texture(seed)
    pictures = []
    for index in range(count):
        start = round(index * speed) % (2 * WIDTH)
        noisy = view[:, start : start + WIDTH] + chance.normal(0, grain, (HEIGHT, WIDTH, 1))
        pictures.append(np.clip(noisy, 0, 255).astype(np.uint8))
    return pictures


def bounds(path: Path) -> list[tuple[int, int]]:
    return [(scene.start_frame, scene.end_frame) for scene in find_scenes(path)]


def write(path: Path, pictures: Sequence[Picture], times: Sequence[float] | None = None, **options: str) -> Path:
    return write_clip(path, pictures, Video(options=options, times=times))


def test_every_cut_begins_a_scene(tmp_path: Path) -> None:
    lengths = [40, 25, 60, 12, 33]
    pictures = [picture for seed, count in enumerate(lengths) for picture in shot(seed, count)]
    edges = np.cumsum([0, *lengths]).tolist()
    scenes = find_scenes(write(tmp_path / "clip.mp4", pictures, bf="3"))
    assert [(scene.start_frame, scene.end_frame) for scene in scenes] == list(pairwise(edges))
    assert [scene.start_seconds for scene in scenes] == pytest.approx([edge / 24 for edge in edges[:-1]], abs=1e-3)
    assert [scene.end_seconds for scene in scenes] == pytest.approx([edge / 24 for edge in edges[1:]], abs=1e-3)
    assert scenes[0].score == 0 and all(scene.score > 10 for scene in scenes[1:])


@pytest.mark.parametrize("seed", range(6))
def test_scenes_of_like_brightness_are_told_apart(tmp_path: Path, seed: int) -> None:
    pictures = shot(50 + seed, 20) + shot(80 + seed, 20)
    means = [picture.mean() for picture in pictures]
    level = np.clip([p.astype(float) - m + 120 for p, m in zip(pictures, means, strict=True)], 0, 255)
    assert bounds(write(tmp_path / "clip.mp4", list(level.astype(np.uint8)))) == [(0, 20), (20, 40)]


@pytest.mark.parametrize("speed", [0, 2, 6, 12])
def test_motion_is_no_cut(tmp_path: Path, speed: float) -> None:
    assert bounds(write(tmp_path / "clip.mp4", shot(3, 60, speed=speed))) == [(0, 60)]


def test_a_sudden_pan_is_no_cut(tmp_path: Path) -> None:
    pictures = shot(4, 30, speed=0) + shot(4, 30, speed=8)
    assert bounds(write(tmp_path / "clip.mp4", pictures)) == [(0, 60)]


def test_something_small_and_bright_is_no_cut(tmp_path: Path) -> None:
    pictures = shot(5, 40)
    for picture in pictures[20:]:
        picture[30:60, 60:110] = 255 - picture[30:60, 60:110]
    assert bounds(write(tmp_path / "clip.mp4", pictures)) == [(0, 40)]


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_a_flash_is_no_cut(tmp_path: Path, length: int) -> None:
    pictures = shot(6, 40)
    for index in range(20, 20 + length):
        pictures[index] = np.full_like(pictures[index], 250)
    assert bounds(write(tmp_path / "clip.mp4", pictures)) == [(0, 40)]


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_a_frame_of_both_sides_belongs_to_neither(tmp_path: Path, codec: str) -> None:
    before, after = shot(7, 30), shot(8, 30)
    blend = ((before[-1].astype(np.uint16) + after[0]) // 2).astype(np.uint8)
    pixel_format = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    video = Video(codec=codec, pixel_format=pixel_format)
    path = write_clip(tmp_path / "clip.mkv", [*before, blend, *after], video)
    assert bounds(path) == [(0, 30), (31, 61)]


def test_cuts_are_at_the_times_of_their_frames(tmp_path: Path) -> None:
    times = [index / 30 if index < 40 else 40 / 30 + (index - 40) / 8 for index in range(70)]
    pictures = shot(9, 30) + shot(10, 20) + shot(11, 20)
    scenes = find_scenes(write(tmp_path / "clip.mp4", pictures, times))
    assert [scene.start_frame for scene in scenes] == [0, 30, 50]
    assert [scene.start_seconds for scene in scenes] == pytest.approx([times[0], times[30], times[50]], abs=1e-3)
    assert scenes[-1].end_seconds == pytest.approx(times[-1] + 1 / 8, abs=1e-3)


@pytest.mark.parametrize("count", [1, 2, 5, 9])
def test_short_clips_are_one_scene(tmp_path: Path, count: int) -> None:
    (scene,) = find_scenes(write(tmp_path / "clip.mp4", shot(12, count)))
    assert (scene.start_frame, scene.end_frame, scene.start_seconds, scene.score) == (0, count, 0, 0)
    assert scene.seconds == pytest.approx(count / 24, abs=1e-3)


@pytest.mark.parametrize("edge", [2, 3, 38])
def test_cuts_near_the_ends_are_found(tmp_path: Path, edge: int) -> None:
    pictures = shot(13, edge) + shot(14, 40 - edge)
    assert bounds(write(tmp_path / "clip.mp4", pictures)) == [(0, edge), (edge, 40)]


def test_scenes_are_fitted_in_one_pass_and_never_mixed(tmp_path: Path) -> None:
    """Numbered cards on different grounds: what is fitted of a scene shows its own frames only."""
    grounds = [(40, 40, 90), (230, 160, 20), (20, 120, 30)]
    pictures = []
    for clip, ground in enumerate(grounds):
        for index in range((30, 10, 40)[clip]):
            picture = card(clip * 512 + index, WIDTH, HEIGHT)
            picture[:, : (WIDTH - HEIGHT) // 2] = ground
            picture[:, -((WIDTH - HEIGHT) // 2) :] = ground
            pictures.append(picture)
    path = write(tmp_path / "clip.mp4", pictures, bf="3")
    scenes = find_scenes(path)
    assert [(scene.start_frame, scene.end_frame) for scene in scenes] == [(0, 30), (30, 40), (40, 80)]

    def fitted(frames: int, rate: float, auto_scale: bool) -> list[FittedClip | ClipTooShort]:
        geometry = Geometry(width=96, height=96, frame_count=frames, frame_rate=rate)
        settings = FitSettings(
            geometry=geometry, auto_scale=auto_scale, with_audio=False, normalize_audio=True, preserve_pitch=True
        )
        return list(fit_scenes(path, scenes, settings))

    first, second, third = fitted(25, 24, auto_scale=False)
    assert isinstance(first, FittedClip) and isinstance(third, FittedClip)
    assert [cards.number(picture) for picture in first.frames] == list(range(25))
    assert [cards.number(picture) for picture in third.frames] == [1024 + index for index in range(25)]
    assert (third.start_frame, third.end_frame, third.unused_frames) == (40, 65, 15)
    assert isinstance(second, ClipTooShort)
    assert str(second) == "10 frames, 25 needed"

    # Slowed down, sped past, or at the very end: no scene shows a frame of the next one.
    for frames, rate in ((33, 24), (25, 20), (41, 48), (9, 8)):
        for clip, result in enumerate(fitted(frames, rate, auto_scale=True)):
            if isinstance(result, FittedClip):
                assert {cards.number(picture) // 512 for picture in result.frames} == {clip}
                assert len(result.frames) == frames
