"""Mistakes that a training can hold without a word, planted one at a time: the figures of what was learned tell."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltxtrain_pocket import learning
from ltxtrain_pocket.learning import Extent, Pocket, measure_learning, measure_sound, missed
from ltxtrain_pocket.model import build_pocket_model
from ltxtrain_pocket.scenes import PREFIX_FRAMES, STYLE_STEPS
from ltxtrain_pocket.world import FRAME_RATE
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.preview import sampler
from ltxtrain_trainer.preview.previewer import decode_video
from ltxtrain_trainer.training import losses, objective
from ltxtrain_trainer.training.lora import base_model

EXTENT = Extent(openings=6, sampling_steps=12, training_steps=STYLE_STEPS)
SOUNDING = replace(EXTENT, openings=20)
# Aims that so few openings may miss without a fault: one of six more is too many.
COARSE = {"base_position_ok", "base_colour_ok", "lora_position_ok", "lora_colour_ok"}
Plant = Callable[[pytest.MonkeyPatch, Pocket], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "pocket"
    build_pocket_model(path)
    return path


def target_sign(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    def turned(*inputs: Any) -> objective.Objective:
        right = objective.objective(*inputs)
        return replace(right, target=-right.target)

    monkeypatch.setattr(losses, "objective", turned)


def prefix_short_by_one_latent(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    right = objective.video_prefix_tokens
    monkeypatch.setattr(losses, "video_prefix_tokens", lambda frames, shape: right(frames, shape) - shape[1] * shape[2])


def prefix_noised_in_training(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    def noised(clean: Any, noise: Any, sigma: Any, is_prefix: Any, context: Any) -> objective.Objective:
        right = objective.objective(clean, noise, sigma, is_prefix, context)
        whole = objective.objective(clean, noise, sigma, torch.zeros_like(is_prefix), context)
        return replace(right, stream=whole.stream)

    monkeypatch.setattr(losses, "objective", noised)


def prefix_ignored_by_the_sampler(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    right = objective.prefix_mask

    def nothing(count: int, prefix: int, device: Any = "cpu") -> torch.Tensor:
        return torch.zeros_like(right(count, prefix, device))

    monkeypatch.setattr(sampler, "prefix_mask", nothing)
    monkeypatch.setattr(sampler._Track, "start", lambda track, noise: noise)


def timestep_scale(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    pocket.transformer.register_to_config(timestep_scale_multiplier=1.0)


def frame_rate_not_given(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    right = VelocityModel.video_positions
    monkeypatch.setattr(
        VelocityModel, "video_positions", lambda model, shape, frame_rate, batch: right(model, shape, 1.0, batch)
    )


def lora_not_applied(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    right = Pocket.continued

    def without(pocket: Pocket, *inputs: Any) -> Any:
        with base_model(pocket.transformer):
            return right(pocket, *inputs)

    monkeypatch.setattr(Pocket, "continued", without)


def audio_window_one_prefix_too_long(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    """The sampler takes nearly twice as much of the sound for given as there is; of all of it, it would refuse to."""
    right = objective.prefix_mask
    given = objective.audio_prefix_tokens(PREFIX_FRAMES, FRAME_RATE)

    def longer(count: int, prefix: int, device: Any = "cpu") -> torch.Tensor:
        return right(count, min(2 * prefix, count - 1) if prefix == given else prefix, device)

    monkeypatch.setattr(sampler, "prefix_mask", longer)


def channel_order(monkeypatch: pytest.MonkeyPatch, pocket: Pocket) -> None:
    right = decode_video
    monkeypatch.setattr(
        learning, "decode_video", lambda vae, latents: np.ascontiguousarray(right(vae, latents)[..., ::-1])
    )


FAULTS: list[Plant] = [
    target_sign,
    prefix_short_by_one_latent,
    prefix_noised_in_training,
    prefix_ignored_by_the_sampler,
    timestep_scale,
    frame_rate_not_given,
    lora_not_applied,
    channel_order,
]


@pytest.fixture(scope="module")
def missed_anyway(folder: Path) -> set[str]:
    figures = measure_learning(Pocket(folder), EXTENT).figures
    print("no fault", figures, missed(figures))
    return set(missed(figures))


@pytest.mark.soak
def test_without_a_fault_the_figures_are_as_they_should_be(missed_anyway: set[str]) -> None:
    assert missed_anyway <= COARSE


@pytest.mark.soak
@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_fault_shows_in_the_figures(
    folder: Path, missed_anyway: set[str], monkeypatch: pytest.MonkeyPatch, plant: Plant
) -> None:
    pocket = Pocket(folder)
    plant(monkeypatch, pocket)
    figures = measure_learning(pocket, EXTENT).figures
    print(plant.__name__, figures, missed(figures))
    assert set(missed(figures)) - missed_anyway


@pytest.mark.soak
def test_a_fault_of_sound_shows_in_its_figures(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pocket = Pocket(folder)
    right = measure_sound(pocket, SOUNDING)
    audio_window_one_prefix_too_long(monkeypatch, pocket)
    wrong = measure_sound(pocket, SOUNDING)
    print("audio_window_one_prefix_too_long", right, wrong)
    assert right["clicks_in_sync"] >= 0.6 and wrong["clicks_in_sync"] <= 0.25
