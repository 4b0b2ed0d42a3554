"""The text encoder as it fits a device: the choice, and the numbers of each way."""

from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.data.encode import PromptEncoder
from ltxtrain_trainer.errors import DeviceMemoryExhausted, ModelUnsupported
from ltxtrain_trainer.memory_plan import GIB
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import load_report, load_tokenizer
from ltxtrain_trainer.model.text_encoder import TextHold, TextSize, check_tokenizer, choose_hold, load_text_encoder

PROMPT = "a disc rolls to the right"
# Gemma 3 12B without its vision tower, and the connectors of LTX 2.3.
PUBLISHED = TextSize(encoder=int(21.9 * GIB), outside=int(1.9 * GIB), layer=int(0.42 * GIB), connectors=int(5.9 * GIB))


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model), components=("text_encoder", "tokenizer", "connectors"))


@pytest.mark.parametrize(
    ("card_gib", "host_gib", "hold"),
    [
        (80, 8, TextHold.WHOLE),
        (31, 8, TextHold.WHOLE),
        (23, 30, TextHold.STREAMED),
        (15, 30, TextHold.STREAMED),
        (23, 16, TextHold.INT8),
        (8, 16, TextHold.STREAMED),
    ],
)
def test_the_numbers_are_kept_where_card_and_host_allow_it(card_gib: int, host_gib: int, hold: TextHold) -> None:
    assert choose_hold(PUBLISHED, card_gib * GIB, host_gib * GIB) is hold


def test_sizes_leave_the_vision_tower_out(folder: ModelFolder) -> None:
    size = TextSize.of(folder)
    model = load_text_encoder(folder, "cpu", torch.bfloat16)
    assert size.encoder == load_report(model).size_bytes - sum(buffer.nbytes for buffer in model.buffers())
    assert size.encoder == size.outside + 2 * size.layer, "the tiny one has two layers"


def test_layer_by_layer_the_embeddings_are_the_same(folder: ModelFolder) -> None:
    (whole,), (streamed,), (small,) = (
        PromptEncoder(folder, "cpu", torch.bfloat16, hold).encode([PROMPT]) for hold in TextHold
    )
    assert torch.equal(whole.video, streamed.video) and torch.equal(whole.audio, streamed.audio)
    difference = (small.video.float() - whole.video.float()).norm() / whole.video.float().norm()
    assert 0 < difference < 0.1
    assert (TextHold.WHOLE.numbers, TextHold.STREAMED.numbers, TextHold.INT8.numbers) == ("", "", "int8")


def test_a_full_device_has_its_name(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    encoder = PromptEncoder(folder, "cpu")
    monkeypatch.setattr(encoder, "connectors", exhausted)
    with pytest.raises(DeviceMemoryExhausted, match="too little memory for embedding a prompt; "):
        encoder.encode([PROMPT])
    monkeypatch.setattr("ltxtrain_trainer.data.encode.load_connectors", exhausted)
    with pytest.raises(DeviceMemoryExhausted, match="too little memory for loading the text encoder; "):
        PromptEncoder(folder, "cpu")


def test_a_tokenizer_without_bos_is_refused(folder: ModelFolder) -> None:
    tokenizer: Any = load_tokenizer(folder)
    check_tokenizer(tokenizer)
    from tokenizers import processors

    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel()
    with pytest.raises(ModelUnsupported, match="BOS"):
        check_tokenizer(tokenizer)
