"""Tests that only a card can run, at a size where they could fail: attention of several key blocks, heads of 128."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from bench.common.random_model import Widths, random_samples, random_transformer
from ltxtrain_trainer.errors import DeviceMemoryExhausted
from ltxtrain_trainer.model.device import memory_for
from ltxtrain_trainer.model.loading import block_stream
from ltxtrain_trainer.model.precision import Precision, is_available
from ltxtrain_trainer.training.loop import train
from ltxtrain_trainer.training.lora import add_lora
from ltxtrain_trainer.training.settings import TrainSettings
from tests.trainer.golden import same, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

# 9 x 16 x 16 = 2,304 tokens: with fewer than a few blocks of keys nothing is added up in an order that can change.
LATENTS, LAYERS, WIDTHS = (9, 16, 16), 3, Widths(heads=8)
SETTINGS = TrainSettings(rank=16, steps=3, learning_rate=1e-3, conditioning_frames=9, with_audio=False)


@pytest.fixture(autouse=True)
def emptied() -> Iterator[None]:
    yield
    torch.cuda.empty_cache()


def trained(
    precision: Precision, *, streamed: bool = False, settings: TrainSettings = SETTINGS
) -> dict[str, torch.Tensor]:
    device = torch.device("cuda")
    transformer = random_transformer(WIDTHS, LAYERS, device, precision, streamed=streamed)
    add_lora(transformer, rank=settings.rank, with_audio=False, seed=0)
    for _ in train(transformer, random_samples(LATENTS, 128, WIDTHS), settings, identity={}):
        pass
    found = weights(transformer)
    if (stream := block_stream(transformer)) is not None:
        stream.close()
    return found


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8, Precision.FP8])
def test_equal_runs_end_with_equal_bytes_streamed_or_not(precision: Precision) -> None:
    if not is_available(precision):
        pytest.skip(f"{precision} is not installed")
    first = trained(precision)
    assert same(first, trained(precision))
    assert same(first, trained(precision, streamed=True))


def test_the_fastest_attention_trains_nearly_the_same() -> None:
    exact, fastest = (
        torch.cat([weight.flatten() for weight in trained(Precision.BF16, settings=wanted).values()])
        for wanted in (SETTINGS, replace(SETTINGS, attention="fastest"))
    )
    assert (exact - fastest).norm() < 0.02 * exact.norm()


def test_a_full_card_has_its_name_and_is_emptied() -> None:
    free = torch.cuda.mem_get_info()[0]
    with pytest.raises(DeviceMemoryExhausted, match="too little memory for a test"), memory_for("a test", "less"):
        torch.empty(2 * free, dtype=torch.uint8, device="cuda")
    torch.zeros(1, device="cuda")
