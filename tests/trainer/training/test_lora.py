"""Adapters: where they are, how they start, and that any base carries them."""

from typing import Any

import pytest
import torch

from ltxtrain_trainer.model.precision import Precision, quantization_config
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.training.lora import adapter, add_lora, base_model, is_video_module, module_family
from ltxtrain_trainer.training.losses import clip_loss, training_draw
from tests.trainer.golden import GOLDEN, golden_transformer, gradient, same, samples, settings, weights, with_lora

VIDEO_FAMILIES = {"attn1", "attn2", "ff"}
JOINT_FAMILIES = VIDEO_FAMILIES | {
    "audio_attn1",
    "audio_attn2",
    "audio_ff",
    "audio_to_video_attn",
    "video_to_audio_attn",
}


def modules(transformer: Any) -> set[str]:
    return {name.rsplit(".", 2)[0] for name in adapter(transformer)}


@pytest.mark.parametrize(
    ("with_audio", "families", "count"), [(False, VIDEO_FAMILIES, 4 * 10), (True, JOINT_FAMILIES, 4 * 28)]
)
def test_where_the_adapters_are(with_audio: bool, families: set[str], count: int) -> None:
    found = modules(with_lora(settings(with_audio=with_audio)))
    assert {module_family(module) for module in found} == families
    assert len(found) == count


def test_the_video_part_of_a_joint_lora_is_a_video_only_lora() -> None:
    joint, video = (modules(with_lora(settings(with_audio=with_audio))) for with_audio in (True, False))
    assert {module for module in joint if is_video_module(module)} == video


def test_only_the_adapter_learns_and_it_is_float32_on_a_bfloat16_base() -> None:
    transformer = with_lora(settings(), torch.bfloat16)
    learning = {name for name, parameter in transformer.named_parameters() if parameter.requires_grad}
    assert learning and all(".lora_" in name for name in learning)
    assert len(learning) == len(adapter(transformer))
    assert {parameter.dtype for parameter in adapter(transformer).values()} == {torch.float32}


def test_the_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first = weights(with_lora(settings(seed=7)))
    transformer = golden_transformer()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    add_lora(transformer, rank=8, with_audio=True, seed=7)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was used"
    assert same(first, weights(transformer))
    other = weights(with_lora(settings(seed=8)))
    assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)


def test_the_start_changes_nothing() -> None:
    model = VelocityModel(with_lora(settings()))
    clip, prompt = samples(1)[0]
    draw = training_draw(clip, 0, 1, 0)
    with torch.no_grad():
        started = clip_loss(model, clip, prompt, draw, 9)
        plain = clip_loss(VelocityModel(golden_transformer()), clip, prompt, draw, 9)
    assert torch.equal(started.total, plain.total)


def test_the_base_model_is_what_is_left_without_the_adapter() -> None:
    transformer = with_lora(settings())
    model = VelocityModel(transformer)
    clip, prompt = samples(1)[0]
    draw = training_draw(clip, 0, 1, 0)
    with torch.no_grad():
        plain = clip_loss(model, clip, prompt, draw, 9).total
        for parameter in adapter(transformer).values():
            parameter.add_(0.1)
        assert not torch.equal(clip_loss(model, clip, prompt, draw, 9).total, plain)
        with base_model(transformer):
            assert torch.equal(clip_loss(model, clip, prompt, draw, 9).total, plain)
        assert not torch.equal(clip_loss(model, clip, prompt, draw, 9).total, plain)
    assert all(parameter.requires_grad for parameter in adapter(transformer).values())


def test_a_transformer_without_an_adapter_says_so() -> None:
    with pytest.raises(ValueError, match="add_lora comes first"):
        adapter(golden_transformer())


@pytest.mark.parametrize("with_audio", [False, True])
def test_every_adapter_tensor_gets_a_gradient(with_audio: bool) -> None:
    transformer = with_lora(settings(with_audio=with_audio))
    clip, prompt = samples(1, with_audio)[0]
    with torch.no_grad():
        for parameter in adapter(transformer).values():
            parameter.add_(0.01)
    clip_loss(VelocityModel(transformer), clip, prompt, training_draw(clip, 0, 1, 0), 9).total.backward()
    assert all(gradient(parameter).abs().max() > 0 for parameter in adapter(transformer).values())


def quantized(precision: Precision) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    transformer = LTX2VideoTransformer3DModel.from_pretrained(
        GOLDEN / "transformer", dtype=torch.bfloat16, quantization_config=quantization_config(precision)
    )
    add_lora(transformer.eval(), rank=8, with_audio=True, seed=42)
    return transformer


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_quantized_base_trains_as_a_bfloat16_one(precision: str) -> None:
    clip, prompt = samples(1)[0]
    draw = training_draw(clip, 0, 1, 0)
    losses = []
    for transformer in (with_lora(settings(), torch.bfloat16), quantized(Precision(precision))):
        transformer.enable_gradient_checkpointing()
        loss = clip_loss(VelocityModel(transformer), clip, prompt, draw, 9).total
        loss.backward()
        losses.append(loss.item())
        assert all(torch.isfinite(gradient(parameter)).all() for parameter in adapter(transformer).values())
        assert all(
            gradient(parameter).abs().max() > 0 for name, parameter in adapter(transformer).items() if "lora_B" in name
        )
    assert type(transformer.transformer_blocks[0].attn1.to_q.base_layer.weight).__name__ != "Parameter"
    assert losses[1] != losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
