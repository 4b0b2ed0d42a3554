"""The golden transformer, small samples and whole trainings of both, shared by tests. No test in here."""

import functools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ltxtrain_trainer.data.dataset import Samples
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.geometry import audio_latents
from ltxtrain_trainer.training.loop import Report, train
from ltxtrain_trainer.training.lora import adapter, add_lora
from ltxtrain_trainer.training.settings import TrainSettings

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
IDENTITY = {"model": "golden", "training_set": "made here"}

FRAMES, RATE, PREFIX_FRAMES = 25, 24.0, 9
LATENT_SHAPE = (4, 2, 2)
PROMPT_TOKENS = 8

# Reports of a training, and the adapter at its end.
Trained = tuple[list[Report], dict[str, torch.Tensor]]


@functools.cache
def golden() -> dict[str, torch.Tensor]:
    """The reference's inputs and outputs by name."""
    return load_file(GOLDEN / "reference.safetensors")


@functools.cache
def golden_shape() -> dict[str, Any]:
    shape: dict[str, Any] = json.loads((GOLDEN / "shape.json").read_text())
    return shape


def golden_transformer(dtype: torch.dtype = torch.float32) -> Any:
    """A fresh transformer with the weights that the reference outputs were made from."""
    from diffusers import LTX2VideoTransformer3DModel

    torch.set_num_threads(1)
    return LTX2VideoTransformer3DModel.from_pretrained(GOLDEN / "transformer", dtype=dtype).eval()


def sample(number: int, with_audio: bool = True, rate: float = RATE) -> tuple[EncodedClip, PromptEmbedding]:
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(number))
    length = audio_latents(FRAMES, rate)
    return (
        EncodedClip(
            video=draw(128, *LATENT_SHAPE).bfloat16(),
            audio=draw(length, 128).bfloat16() if with_audio else None,
            frame_rate=rate,
            frame_count=FRAMES,
        ),
        PromptEmbedding(
            video=draw(PROMPT_TOKENS, 64).bfloat16(),
            audio=draw(PROMPT_TOKENS, 32).bfloat16(),
            token_count=5,
            truncated=False,
        ),
    )


def samples(count: int = 5, with_audio: bool = True) -> list[tuple[EncodedClip, PromptEmbedding]]:
    return [sample(number, with_audio) for number in range(count)]


SETTINGS = TrainSettings(
    rank=8,
    steps=6,
    learning_rate=1e-2,
    conditioning_frames=PREFIX_FRAMES,
    with_audio=True,
    batch_size=2,
    gradient_checkpointing=False,
)


def settings(**changes: Any) -> TrainSettings:
    return replace(SETTINGS, **changes)


def with_lora(wanted: TrainSettings, dtype: torch.dtype = torch.float32) -> Any:
    transformer = golden_transformer(dtype)
    add_lora(transformer, rank=wanted.rank, with_audio=wanted.with_audio, seed=wanted.seed)
    return transformer


def run(wanted: TrainSettings, *, data: Samples | None = None, transformer: Any = None, **options: Any) -> Trained:
    """A whole training: its reports, and the adapter at the end."""
    transformer = transformer or with_lora(wanted)
    reports = list(train(transformer, data or samples(), wanted, **{"identity": IDENTITY, **options}))
    return reports, weights(transformer)


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


def weights(transformer: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in adapter(transformer).items()}


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
