"""Blocks in host memory: the bytes of a training are those without, and no more than two blocks are on the device."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import attach_stream, block_stream, load_transformer
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.model.streaming import BlockStream, PlainLane, spread
from ltxtrain_trainer.training.loop import prepare
from ltxtrain_trainer.training.lora import add_lora
from tests.trainer.golden import golden_transformer, run, same, samples, settings

LAYERS = 4


class Card(PlainLane):
    """A device apart: a copy has happened only once it is waited for, and until then its buffer is not a number."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.device_bytes = self.copies = 0

    def buffer(self, size: int) -> Tensor:
        self.device_bytes += size
        return super().buffer(size).fill_(0xFF)

    def send(self, buffer: Tensor, source: Tensor) -> Any:
        buffer.fill_(0xFF)
        self.copies += 1
        return buffer, source

    def await_(self, token: Any) -> None:
        buffer, source = token
        buffer[: len(source)].copy_(source)


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model), components=["transformer"])


def streamed(transformer: Any, count: int) -> Card:
    card = Card()
    stream = BlockStream(torch.device("cpu"), card)
    for index in spread(count, LAYERS):
        stream.take(index, transformer.transformer_blocks[index])
    attach_stream(transformer, stream)
    return card


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_training_ends_with_the_same_bytes(count: int) -> None:
    wanted = settings(steps=3, gradient_checkpointing=True, holdout_fraction=0.3, evaluation_interval=2)
    reports, expected = run(wanted)
    transformer = golden_transformer()
    card = streamed(transformer, count)
    add_lora(transformer, rank=wanted.rank, with_audio=wanted.with_audio, seed=wanted.seed)
    found_reports, found = run(wanted, transformer=transformer)
    assert same(expected, found)
    assert [report.held_out_loss for report in reports if hasattr(report, "held_out_loss")] == [
        report.held_out_loss for report in found_reports if hasattr(report, "held_out_loss")
    ]
    block = sum(p.nbytes for p in golden_transformer().transformer_blocks[0].parameters())
    assert 2 * block <= card.device_bytes < 2.1 * block
    assert (card.copies > 2) == (count > 2), "what fits into the buffers is copied once"


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8, Precision.FP8])
def test_quantized_blocks_too(folder: ModelFolder, precision: Precision) -> None:
    wanted = settings(steps=2, with_audio=False, gradient_checkpointing=True)
    adapters = []
    for count in (0, LAYERS):
        transformer = load_transformer(folder, "cpu", precision, video_only=True)
        card = streamed(transformer, count) if count else None
        add_lora(transformer, rank=wanted.rank, with_audio=False, seed=wanted.seed)
        adapters.append(run(wanted, data=samples(with_audio=False), transformer=transformer)[1])
        assert card is None or card.copies > LAYERS
    assert same(*adapters)


def test_it_is_loaded_a_block_at_a_time(folder: ModelFolder) -> None:
    model = load_transformer(folder, "cpu", Precision.BF16, video_only=True, streamed_blocks=3)
    stream = block_stream(model)
    assert stream is not None and stream.host_bytes > 0
    held = [next(block.attn1.parameters()).numel() for block in model.transformer_blocks]
    assert sorted(size > 0 for size in held) == [False, False, False, True]


def test_a_block_out_of_its_turn_is_an_error(folder: ModelFolder) -> None:
    model = load_transformer(folder, "cpu", Precision.FP32, video_only=True, streamed_blocks=LAYERS)
    with pytest.raises(RuntimeError):
        model.transformer_blocks[0].ff(torch.zeros(1, 1, 64))


def test_a_training_that_would_need_all_blocks_at_once_is_refused(folder: ModelFolder) -> None:
    model = load_transformer(folder, "cpu", Precision.FP32, video_only=True, streamed_blocks=2)
    for wanted in (settings(gradient_checkpointing=False), settings(gradient_checkpointing=True, kept_blocks=1)):
        with pytest.raises(ValueError, match="need checkpointing"):
            prepare(model, wanted)


def test_streamed_blocks_lie_evenly_apart() -> None:
    assert spread(0, 48) == [] and spread(48, 48) == list(range(48))
    assert spread(3, 48) == [0, 16, 32]
