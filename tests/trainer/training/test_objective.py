"""The prefix in tokens, what the model sees of it, and the loss beside it."""

import pytest
import torch

from ltxtrain_trainer.errors import PrefixCoversClip
from ltxtrain_trainer.training.objective import (
    audio_prefix_tokens,
    masked_loss,
    objective,
    pack_video,
    prefix_mask,
    unpack_video,
    video_prefix_tokens,
)


@pytest.mark.parametrize(("frames", "tokens"), [(9, 32), (25, 64), (57, 128), (81, 176)])
def test_the_video_prefix_is_its_latent_frames(frames: int, tokens: int) -> None:
    assert video_prefix_tokens(frames, (12, 4, 4)) == tokens


@pytest.mark.parametrize(
    ("rate", "latents"),
    [
        (24.0, (9, 18, 26, 34, 43, 51, 59, 68, 76, 84, 93, 101, 109, 118, 126)),
        (25.0, (9, 17, 25, 33, 41, 49, 57, 65, 73, 81, 89, 97, 105, 113, 121)),
        (30.0, (8, 14, 21, 28, 34, 41, 48, 54, 61, 68, 74, 81, 88, 94, 101)),
    ],
)
def test_the_audio_prefix_is_as_long_as_the_video_prefix(rate: float, latents: tuple[int, ...]) -> None:
    assert tuple(audio_prefix_tokens(frames, rate) for frames in range(9, 122, 8)) == latents


def test_half_an_audio_latent_rounds_to_even() -> None:
    assert audio_prefix_tokens(25, 50.0) == 12


def test_the_mask_holds_the_first_tokens() -> None:
    mask = prefix_mask(192, video_prefix_tokens(25, (12, 4, 4)))
    assert mask.tolist() == [True] * 64 + [False] * 128


@pytest.mark.parametrize("prefix", [16, 17, 0])
def test_a_prefix_that_leaves_nothing_or_is_nothing_is_refused(prefix: int) -> None:
    with pytest.raises(PrefixCoversClip, match="16 latent tokens"):
        prefix_mask(16, prefix)


def test_tokens_run_through_width_then_height_then_frames() -> None:
    latents = torch.arange(128 * 3 * 2 * 4).view(128, 3, 2, 4)
    tokens = pack_video(latents)
    assert tokens.shape == (24, 128)
    assert torch.equal(tokens[5], latents[:, 0, 1, 1])
    assert torch.equal(tokens[2 * 4 * 2 + 3], latents[:, 2, 0, 3])
    assert torch.equal(unpack_video(tokens, (3, 2, 4)), latents)


def test_the_model_sees_the_prefix_clean_and_the_rest_between_clean_and_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 2, 6, 128, generator=generator)
    sigma = torch.tensor([0.25, 1.0])
    part = objective(clean, noise, sigma, prefix_mask(6, 2), torch.zeros(2, 1, 4))
    assert torch.equal(part.stream.tokens[:, :2], clean[:, :2])
    torch.testing.assert_close(part.stream.tokens[0, 2:], 0.75 * clean[0, 2:] + 0.25 * noise[0, 2:])
    assert torch.equal(part.stream.tokens[1, 2:], noise[1, 2:])
    assert part.stream.timesteps.tolist() == [[0, 0] + [0.25] * 4, [0, 0] + [1.0] * 4]
    assert torch.equal(part.target, noise - clean)


def golden_pair() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 192, 128, generator=generator), torch.randn(2, 192, 128, generator=generator)


def test_the_loss_of_the_reference() -> None:
    velocity, target = golden_pair()
    counts = torch.ones(2, 192, dtype=torch.bool)
    counts[0, :64] = False
    assert masked_loss(velocity, target, counts).tolist() == pytest.approx([2.0158622, 2.0229056], abs=1e-6)
    counts[0, :64] = True
    assert masked_loss(velocity, target, counts)[0].item() == pytest.approx(2.0129445, abs=1e-6)


def test_the_loss_does_not_look_at_the_prefix() -> None:
    velocity, target = golden_pair()
    counts = ~prefix_mask(192, 64).expand(2, -1)
    before = masked_loss(velocity, target, counts)
    velocity[:, :64] = 1e6
    assert torch.equal(masked_loss(velocity, target, counts), before)
