"""Lightricks' own outputs, from the same weights and inputs, through the suite's one model call."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.training.objective import masked_loss, objective, prefix_mask
from tests.trainer.golden import golden, golden_shape, golden_transformer

TOLERANCE = 1e-5

Velocities = tuple[torch.Tensor, torch.Tensor | None]


@pytest.fixture(scope="module")
def model() -> VelocityModel:
    return VelocityModel(golden_transformer())


@pytest.fixture(scope="module")
def shape() -> tuple[int, int, int]:
    numbers = golden_shape()
    return numbers["latent_frames"], numbers["latent_height"], numbers["latent_width"]


def streams(*, video_prefix: bool, audio_prefix: bool, two_sigmas: bool) -> tuple[Stream, Stream]:
    numbers, values = golden_shape(), golden()
    video_tokens = numbers["latent_frames"] * numbers["latent_height"] * numbers["latent_width"]
    per_frame = video_tokens // numbers["latent_frames"]
    sigma = values["sigma_video"]
    audio_sigma = values["sigma_audio"] if two_sigmas else sigma

    def stream(modality: str, level: torch.Tensor, tokens: int, prefix: int) -> Stream:
        timesteps = level[:, None].repeat(1, tokens)
        timesteps[:, :prefix] = 0
        return Stream(values[f"{modality}_latents"], values[f"{modality}_context"], timesteps, level)

    video = stream("video", sigma, video_tokens, numbers["prefix_latent_frames"] * per_frame if video_prefix else 0)
    audio_prefix_latents = numbers["prefix_audio_latents"] if audio_prefix else 0
    return video, stream("audio", audio_sigma, numbers["audio_latents"], audio_prefix_latents)


CASES = {
    "plain_same_sigma": (False, False, False),
    "plain_two_sigmas": (False, False, True),
    "video_prefix": (True, False, False),
    "both_prefixes": (True, True, False),
    "both_prefixes_two_sigmas": (True, True, True),
}


def call(
    model: VelocityModel, shape: tuple[int, int, int], video: Stream, audio: Stream | None, **options: Any
) -> Velocities:
    with torch.no_grad():
        return model(video, audio, frame_rate=golden_shape()["fps"], latent_shape=shape, **options)


def difference(velocities: Velocities, name: str) -> float:
    """The largest over the modalities that were computed."""
    pairs = zip(("video", "audio"), velocities, strict=True)
    return max(
        (value - golden()[f"{name}.{modality}"]).abs().max().item() for modality, value in pairs if value is not None
    )


@pytest.mark.parametrize("name", CASES)
def test_velocities_are_those_of_the_reference(model: VelocityModel, shape: tuple[int, int, int], name: str) -> None:
    video_prefix, audio_prefix, two_sigmas = CASES[name]
    inputs = streams(video_prefix=video_prefix, audio_prefix=audio_prefix, two_sigmas=two_sigmas)
    assert difference(call(model, shape, *inputs), name) < TOLERANCE


def test_video_only_is_the_reference_without_an_audio_branch(model: VelocityModel, shape: tuple[int, int, int]) -> None:
    video, _ = streams(video_prefix=True, audio_prefix=False, two_sigmas=False)
    velocity, audio = call(model, shape, video, None)
    assert audio is None
    assert difference((velocity, None), "video_only_prefix") < TOLERANCE


def test_isolation_is_the_reference_without_cross_modal_attention(
    model: VelocityModel, shape: tuple[int, int, int]
) -> None:
    inputs = streams(video_prefix=True, audio_prefix=True, two_sigmas=True)
    assert difference(call(model, shape, *inputs, isolate=True), "isolated") < TOLERANCE


def test_a_skipped_block_is_the_reference_perturbed(model: VelocityModel, shape: tuple[int, int, int]) -> None:
    inputs = streams(video_prefix=True, audio_prefix=True, two_sigmas=True)
    velocities = call(model, shape, *inputs, skip_self_attention=[golden_shape()["stg_block"]])
    assert difference(velocities, "stg_block1") < TOLERANCE


class OwnGates(VelocityModel):
    """The result of diffusers by itself, where the gates follow their own modality."""

    @contextmanager
    def _gates_follow_other_modality(self, video_sigma: torch.Tensor, audio_sigma: torch.Tensor) -> Iterator[None]:
        yield


@pytest.mark.parametrize("name", [name for name in CASES if name != "plain_same_sigma"])
def test_without_the_gate_correction_the_reference_is_missed(
    model: VelocityModel, shape: tuple[int, int, int], name: str
) -> None:
    video_prefix, audio_prefix, two_sigmas = CASES[name]
    inputs = streams(video_prefix=video_prefix, audio_prefix=audio_prefix, two_sigmas=two_sigmas)
    assert difference(call(OwnGates(model.transformer), shape, *inputs), name) > 1e-2


def test_positions_are_those_of_the_reference(model: VelocityModel, shape: tuple[int, int, int]) -> None:
    numbers = golden_shape()
    video = model.video_positions(shape, numbers["fps"], numbers["batch"])
    audio = model.audio_positions(numbers["audio_latents"], numbers["batch"])
    torch.testing.assert_close(video, golden()["video_positions"], rtol=0, atol=1e-6)
    torch.testing.assert_close(audio, golden()["audio_positions"], rtol=0, atol=1e-6)


def test_a_whole_step_is_the_reference_step(model: VelocityModel, shape: tuple[int, int, int]) -> None:
    numbers, values = golden_shape(), golden()
    per_frame = shape[1] * shape[2]
    video, audio = (
        objective(
            values[f"{modality}_latents"],
            values[f"step.{modality}_noise"],
            values[f"sigma_{modality}"],
            prefix_mask(values[f"{modality}_latents"].shape[1], prefix),
            values[f"{modality}_context"],
        )
        for modality, prefix in (
            ("video", numbers["prefix_latent_frames"] * per_frame),
            ("audio", numbers["prefix_audio_latents"]),
        )
    )
    velocities = call(model, shape, video.stream, audio.stream)
    for modality, part, velocity in (("video", video, velocities[0]), ("audio", audio, velocities[1])):
        assert velocity is not None
        torch.testing.assert_close(velocity, values[f"step.{modality}_pred"], rtol=0, atol=TOLERANCE)
        loss = masked_loss(velocity, part.target, part.counts)
        torch.testing.assert_close(loss, values[f"step.{modality}_loss"], rtol=0, atol=TOLERANCE)
