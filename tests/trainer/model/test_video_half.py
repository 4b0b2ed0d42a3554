"""The model of video alone: the whole model's numbers, and none of its audio."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import load_report, load_transformer
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.model.video_half import VideoTransformer, is_audio
from ltxtrain_trainer.training.lora import adapter, add_lora
from ltxtrain_trainer.training.losses import clip_loss, training_draw
from tests.trainer.golden import LATENT_SHAPE, golden_transformer, run, same, samples, settings

TOKENS = 16


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model), components=["transformer"])


def half_of(whole: Any) -> Any:
    half: Any = VideoTransformer.from_config(whole.config)
    half.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if not is_audio(name)})
    return half.eval()


def video_stream() -> Stream:
    generator = torch.Generator().manual_seed(0)
    level = torch.tensor([0.6])
    tokens = torch.randn(1, TOKENS, 128, generator=generator)
    timesteps = level.expand(1, TOKENS).clone()
    timesteps[:, :4] = 0
    return Stream(tokens, torch.randn(1, 8, 64, generator=generator), timesteps, level)


@pytest.mark.parametrize("skipped", [(), (1,)])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, Precision.INT8])
def test_it_is_the_whole_model_to_the_last_bit(folder: ModelFolder, precision: Precision, skipped: tuple[int]) -> None:
    whole, half = (load_transformer(folder, "cpu", precision, video_only=only) for only in (False, True))
    expected, found = (
        VelocityModel(model)(
            video_stream(), None, frame_rate=24.0, latent_shape=LATENT_SHAPE, skip_self_attention=skipped
        )
        for model in (whole, half)
    )
    assert torch.equal(expected[0], found[0]) and found[1] is None
    assert load_report(half).size_bytes < load_report(whole).size_bytes
    assert not [name for name in half.state_dict() if is_audio(name)]


def test_a_training_on_it_ends_with_the_same_bytes() -> None:
    wanted = settings(with_audio=False, gradient_checkpointing=True, steps=3)
    _, expected = run(wanted, data=samples(with_audio=False))
    half = half_of(golden_transformer())
    add_lora(half, rank=wanted.rank, with_audio=False, seed=wanted.seed)
    _, found = run(wanted, data=samples(with_audio=False), transformer=half)
    assert same(expected, found)


def test_it_refuses_audio(folder: ModelFolder) -> None:
    model = VelocityModel(load_transformer(folder, "cpu", Precision.FP32, video_only=True))
    with pytest.raises(ValueError, match="without its audio half"):
        model(video_stream(), video_stream(), frame_rate=24.0, latent_shape=LATENT_SHAPE)


def dtypes_of_blocks(transformer: Any, compute: Callable[[], Any]) -> set[torch.dtype]:
    seen: set[torch.dtype] = set()
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
        for block in transformer.transformer_blocks
        for module in (block, block.attn1, block.attn2, block.ff)
    ]
    compute()
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8, Precision.FP8])
def test_the_stream_has_one_dtype_whatever_the_base(
    folder: ModelFolder, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformer = load_transformer(folder, "cpu", precision, video_only=True)
    add_lora(transformer, rank=4, with_audio=False, seed=0)
    clip, prompt = samples(1, with_audio=False)[0]
    draw = training_draw(clip, 0, 1, 0)

    def step() -> None:
        clip_loss(VelocityModel(transformer), clip, prompt, draw, 9).total.backward()

    assert dtypes_of_blocks(transformer, step) == {torch.bfloat16}
    assert {parameter.grad.dtype for parameter in adapter(transformer).values() if parameter.grad is not None} == {
        torch.float32
    }

    # Autocast on CUDA widens rms_norm. Were it on, an int8 base's stream would be float32, and twice as large.
    norm = torch.nn.functional.rms_norm

    def as_under_cuda_autocast(input: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            input = input.float()
            arguments = tuple(item.float() if isinstance(item, torch.Tensor) else item for item in arguments)
        return norm(input, *arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "rms_norm", as_under_cuda_autocast)
    assert dtypes_of_blocks(transformer, step) == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        widened = dtypes_of_blocks(transformer, step)
    assert (torch.float32 in widened) == (precision is Precision.INT8)
