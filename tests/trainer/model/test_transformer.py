"""The model call beyond the reference's cases: rates, blocks, state and number formats."""

from typing import Any

import pytest
import torch

from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from tests.trainer.golden import LATENT_SHAPE, PROMPT_TOKENS, golden_transformer

TOKENS = 16


@pytest.fixture(scope="module")
def model() -> VelocityModel:
    return VelocityModel(golden_transformer())


def stream(tokens: int, width: int, seed: int, sigma: tuple[float, ...]) -> Stream:
    generator = torch.Generator().manual_seed(seed)
    level = torch.tensor(sigma)
    return Stream(
        torch.randn(len(sigma), tokens, 128, generator=generator),
        torch.randn(len(sigma), PROMPT_TOKENS, width, generator=generator),
        level[:, None].expand(-1, tokens),
        level,
    )


def both(sigma: tuple[float, ...] = (0.7, 0.3)) -> tuple[Stream, Stream]:
    return stream(TOKENS, 64, 0, sigma), stream(10, 32, 1, sigma)


def call(
    model: VelocityModel, video: Stream, audio: Stream | None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor | None]:
    with torch.no_grad():
        return model(video, audio, **{"frame_rate": 24.0, "latent_shape": LATENT_SHAPE, **options})


def both_of(velocities: tuple[torch.Tensor, torch.Tensor | None]) -> tuple[torch.Tensor, torch.Tensor]:
    video, audio = velocities
    assert audio is not None
    return video, audio


def row(stream: Stream, index: int) -> Stream:
    parts = (stream.tokens, stream.context, stream.timesteps, stream.sigma)
    return Stream(*(part[index : index + 1] for part in parts))


def test_each_clip_of_a_batch_has_its_own_frame_rate(model: VelocityModel) -> None:
    video, audio = both()
    rates = (12.0, 30.0)
    together = call(model, video, audio, frame_rate=torch.tensor(rates))
    for index, rate in enumerate(rates):
        alone = call(model, row(video, index), row(audio, index), frame_rate=rate)
        for one, other in zip(both_of(together), both_of(alone), strict=True):
            torch.testing.assert_close(one[index : index + 1], other, rtol=0, atol=1e-5)
    assert not torch.allclose(together[0], call(model, video, audio, frame_rate=24.0)[0], atol=1e-3)


@pytest.mark.parametrize(("latent", "seconds"), [(0, (0.0, 0.041667)), (1, (0.041667, 0.375)), (11, (3.375, 3.708333))])
def test_video_positions_in_seconds(model: VelocityModel, latent: int, seconds: tuple[float, float]) -> None:
    positions = model.video_positions((12, 4, 4), 24.0, 1)
    assert positions.shape == (1, 3, 192, 2)
    assert positions[0, 0, latent * 16].tolist() == pytest.approx(seconds, abs=1e-6)


def test_video_positions_in_pixels(model: VelocityModel) -> None:
    rows, columns = model.video_positions((1, 2, 3), 24.0, 1)[0, 1:]
    assert rows.tolist() == [[0, 32]] * 3 + [[32, 64]] * 3
    assert columns.tolist() == [[0, 32], [32, 64], [64, 96]] * 2


@pytest.mark.parametrize(("latent", "seconds"), [(0, (0.0, 0.01)), (1, (0.01, 0.05)), (92, (3.65, 3.69))])
def test_audio_positions_in_seconds(model: VelocityModel, latent: int, seconds: tuple[float, float]) -> None:
    positions = model.audio_positions(audio_latents(89, 24.0), 1)
    assert positions.shape == (1, 1, 93, 2)
    assert positions[0, 0, latent].tolist() == pytest.approx(seconds, abs=1e-6)


def test_a_block_that_the_model_has_not_is_refused(model: VelocityModel) -> None:
    with pytest.raises(ValueError, match="4 blocks; there is no block 28"):
        call(model, *both(), skip_self_attention=[28])


def test_a_call_leaves_nothing_behind(model: VelocityModel) -> None:
    video, audio = both()
    first = call(model, video, audio)
    call(model, *both(sigma=(0.1, 0.9)))
    with pytest.raises(ValueError, match="no block"):
        call(model, video, audio, skip_self_attention=[4])
    assert all(
        torch.equal(one, other) for one, other in zip(both_of(first), both_of(call(model, video, audio)), strict=True)
    )
    gates = (model.transformer.av_cross_attn_video_a2v_gate, model.transformer.av_cross_attn_audio_v2a_gate)
    assert not any(gate._forward_pre_hooks for gate in gates)


def test_a_bfloat16_base_answers_in_float32(model: VelocityModel) -> None:
    halved = VelocityModel(golden_transformer(torch.bfloat16))
    assert halved.dtype == torch.bfloat16
    velocity, _ = call(halved, *both())
    assert velocity.dtype == torch.float32
    expected, _ = call(model, *both())
    assert (velocity - expected).norm() / expected.norm() < 0.05
