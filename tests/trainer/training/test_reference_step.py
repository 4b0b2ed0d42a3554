"""One training step beside an independent one in double precision: same loss, same gradient of every adapter tensor."""

from typing import Any

import pytest
import torch

from ltxtrain_trainer.data.dataset import read_sample
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.seeds import sample_at
from ltxtrain_trainer.training.loop import train
from ltxtrain_trainer.training.lora import adapter
from ltxtrain_trainer.training.losses import training_draw
from tests.trainer import reference
from tests.trainer.golden import IDENTITY, LATENT_SHAPE, RATE, golden, golden_shape, samples, settings, with_lora

TOLERANCE = 1e-5
BATCH = 2


def base_weights(transformer: Any) -> dict[str, torch.Tensor]:
    return {
        name.replace(".base_layer", ""): parameter.detach().double()
        for name, parameter in transformer.named_parameters()
        if ".lora_" not in name
    }


def test_the_reference_model_is_the_reference() -> None:
    """So that what follows compares with the published model."""
    values, numbers = golden(), golden_shape()
    model = reference.Reference(base_weights(with_lora(settings())), {})
    shape = (numbers["latent_frames"], numbers["latent_height"], numbers["latent_width"])
    prefixes = (numbers["prefix_latent_frames"] * shape[1] * shape[2], numbers["prefix_audio_latents"])
    for row in range(numbers["batch"]):
        parts = []
        for modality, prefix in zip(("video", "audio"), prefixes, strict=True):
            level = values[f"sigma_{modality}"][row].double()
            tokens = values[f"{modality}_latents"][row].double()
            timesteps = level.expand(len(tokens)).clone()
            timesteps[:prefix] = 0
            positions = values[f"{modality}_positions"][row].double().mean(-1)
            context = values[f"{modality}_context"][row].double()
            parts.append(
                {"tokens": tokens, "context": context, "timesteps": timesteps, "sigma": level, "positions": positions}
            )
        for modality, velocity in zip(("video", "audio"), model.velocities(*parts), strict=True):
            expected = values[f"both_prefixes_two_sigmas.{modality}"][row].double()
            torch.testing.assert_close(velocity, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("with_audio", [False, True])
def test_loss_and_gradients_of_a_step(with_audio: bool) -> None:
    wanted = settings(with_audio=with_audio, batch_size=BATCH)
    data = samples(4, with_audio)
    transformer = with_lora(wanted)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in adapter(transformer).values():  # B too, else the gradients of A are zero
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    start = {name: parameter.detach().double() for name, parameter in adapter(transformer).items()}
    model = reference.Reference(
        base_weights(transformer), {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    )

    report = next(iter(train(transformer, data, wanted, identity=IDENTITY)))
    assert isinstance(report, Step)
    assert report.gradient_norm < 1, "clipping would hide what is compared"

    losses: dict[str, list[torch.Tensor]] = {"video": [], "audio": []}
    for index in range(BATCH):
        clip, prompt = read_sample(data, sample_at(wanted.seed, index, len(data)), with_audio)
        draw = training_draw(clip, wanted.seed, 1, index)
        video: reference.Part = {
            "clean": clip.video.double().permute(1, 2, 3, 0).reshape(-1, 128),
            "noise": draw.video.noise[0].double(),
            "sigma": draw.video.level,
            "prefix": 2 * LATENT_SHAPE[1] * LATENT_SHAPE[2],  # 9 frames are 2 latent frames
            "context": prompt.video.double(),
            "positions": reference.video_positions(*LATENT_SHAPE, RATE),
        }
        audio = None
        if with_audio:
            assert clip.audio is not None and draw.audio is not None
            audio = {
                "clean": clip.audio.double(),
                "noise": draw.audio.noise[0].double(),
                "sigma": draw.audio.level,
                "prefix": 9,  # 9 frames at 24 a second are 9.375 audio latents
                "context": prompt.audio.double(),
                "positions": reference.audio_positions(audio_latents(clip.frame_count, RATE)),
            }
        found = reference.masked_step(model, video, audio)
        for modality, loss in zip(("video", "audio"), found, strict=True):
            if loss is not None:
                losses[modality].append(loss)
    means = {modality: torch.stack(values).mean() for modality, values in losses.items() if values}
    total = torch.stack(list(means.values())).sum()
    total.backward()

    assert report.video_loss == pytest.approx(means["video"].item(), abs=TOLERANCE)
    assert report.loss == pytest.approx(total.item(), abs=TOLERANCE)
    if with_audio:
        assert report.audio_loss == pytest.approx(means["audio"].item(), abs=TOLERANCE)
    for name, parameter in adapter(transformer).items():
        expected = model.adapter[name].grad
        assert parameter.grad is not None and expected is not None
        error = parameter.grad - expected
        assert error.abs().max() < TOLERANCE, name
        # The tiny model's gradients are small themselves, so compare by size as well; float32 leaves this much.
        assert error.norm() < 1e-3 * expected.norm(), name
