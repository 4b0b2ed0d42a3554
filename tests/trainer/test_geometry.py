import pytest

from ltxtrain_trainer.geometry import BUCKETS, Geometry, audio_latents, latent_frames, snap_frames

# The public parameter sheet's table.
SIZES = {
    "low": ((512, 288), (512, 512), (288, 512)),
    "medium": ((768, 448), (768, 768), (448, 768)),
    "high": ((960, 544), (960, 960), (544, 960)),
}


def test_the_nine_sizes() -> None:
    shapes = ("16:9", "1:1", "9:16")
    assert {
        (resolution, shape): size
        for resolution, sizes in SIZES.items()
        for shape, size in zip(shapes, sizes, strict=True)
    } == BUCKETS


@pytest.mark.parametrize(
    ("given", "snapped"), [(9, 9), (10, 9), (16, 9), (17, 17), (88, 81), (89, 89), (96, 89), (120, 113), (121, 121)]
)
def test_frame_counts_snap_down(given: int, snapped: int) -> None:
    assert snap_frames(given) == snapped


@pytest.mark.parametrize(("frames", "latents"), [(1, 1), (9, 2), (17, 3), (25, 4), (89, 12), (121, 16)])
def test_latent_frames(frames: int, latents: int) -> None:
    assert latent_frames(frames) == latents


def test_tokens_of_a_clip() -> None:
    clip = Geometry(width=768, height=448, frame_count=89, frame_rate=24)
    assert clip.latent_shape == (12, 14, 24)
    assert (clip.video_tokens, clip.audio_tokens) == (12 * 14 * 24, 93)


@pytest.mark.parametrize(
    ("frames", "rate", "latents"), [(9, 24, 9), (17, 24, 18), (89, 24, 93), (9, 50, 4), (121, 8, 378)]
)
def test_audio_latents_last_as_long_as_the_frames(frames: int, rate: float, latents: int) -> None:
    assert audio_latents(frames, rate) == latents
