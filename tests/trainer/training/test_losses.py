"""The draws of a clip, and its loss."""

from dataclasses import replace

import pytest
import torch

from ltxtrain_trainer.data.encoded import EncodedClip
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.training.losses import Draw, Noise, clip_loss, draw_levels, fixed_draw, token_count, training_draw
from tests.trainer.golden import golden_transformer, sample


@pytest.fixture(scope="module")
def clip() -> EncodedClip:
    return sample(0)[0]


def sound(draw: Draw) -> Noise:
    assert draw.audio is not None
    return draw.audio


def levels(clip: EncodedClip, count: int) -> torch.Tensor:
    draws = [training_draw(clip, 42, step, 0) for step in range(count)]
    return torch.stack([torch.cat([draw.video.level, sound(draw).level]) for draw in draws]).T


def test_video_and_audio_have_levels_of_their_own(clip: EncodedClip) -> None:
    assert abs(torch.corrcoef(levels(clip, 400))[0, 1]) < 0.15


def test_each_level_follows_the_length_of_its_modality() -> None:
    """With one channel, so that only the token count is large."""
    frames = 121
    clip = EncodedClip(
        video=torch.zeros(1, 16, 24, 24),
        audio=torch.zeros(audio_latents(frames, 24.0), 1),
        frame_rate=24.0,
        frame_count=frames,
    )
    video, audio = levels(clip, 1500).mean(dim=1).tolist()
    many = torch.Generator().manual_seed(0)
    for found, tokens in ((video, 16 * 24 * 24), (audio, 126)):
        assert found == pytest.approx(draw_levels(200_000, tokens, many).mean().item(), abs=0.02)
    assert video - audio > 0.2


def test_draws_belong_to_step_and_index(clip: EncodedClip) -> None:
    draws = [training_draw(clip, 42, step, index) for step, index in ((1, 0), (1, 1), (2, 0))]
    assert len({draw.video.noise[0, 0, 0].item() for draw in draws}) == 3
    again = training_draw(clip, 42, 1, 1)
    assert torch.equal(again.video.noise, draws[1].video.noise) and torch.equal(
        sound(again).level, sound(draws[1]).level
    )


def test_the_video_s_draw_does_not_depend_on_audio(clip: EncodedClip) -> None:
    silent = training_draw(replace(clip, audio=None), 42, 1, 0)
    assert silent.audio is None
    assert torch.equal(silent.video.noise, training_draw(clip, 42, 1, 0).video.noise)


def test_a_fixed_draw_is_the_given_level_and_the_position_s_noise(clip: EncodedClip) -> None:
    low, high, other = fixed_draw(clip, 0.125, 3), fixed_draw(clip, 0.875, 3), fixed_draw(clip, 0.125, 4)
    assert (low.video.level.item(), sound(high).level.item()) == (0.125, 0.875)
    assert torch.equal(low.video.noise, high.video.noise)
    assert not torch.equal(low.video.noise, other.video.noise)


def test_noise_has_the_shape_of_the_tokens(clip: EncodedClip) -> None:
    draw = training_draw(clip, 42, 1, 0)
    assert draw.video.noise.shape == (1, 16, 128)
    assert sound(draw).noise.shape == (1, 26, 128)
    assert token_count(clip) == 16 + 26
    assert token_count(replace(clip, audio=None)) == 16


def test_the_loss_of_a_joint_clip_is_the_sum_of_its_modalities() -> None:
    clip, prompt = sample(0)
    model = VelocityModel(golden_transformer())
    with torch.no_grad():
        joint = clip_loss(model, clip, prompt, training_draw(clip, 42, 1, 0), 9)
        silent = replace(clip, audio=None)
        alone = clip_loss(model, silent, prompt, training_draw(silent, 42, 1, 0), 9)
    assert joint.audio is not None
    assert joint.total.item() == pytest.approx(joint.video.item() + joint.audio.item())
    assert alone.audio is None and torch.equal(alone.total, alone.video)
    assert joint.video.item() != alone.video.item(), "sound changes the picture"
