"""Gemma on the device that there is: whole, or layer by layer from host memory, or in int8.

Its 11.8 billion weights are 22 GiB in bfloat16, with the connectors 28: more than most cards have. Embeddings are made
once and kept, so that the way that keeps the numbers comes before the one that keeps the pace. The vision tower is
never loaded.
"""

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch

from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.memory_plan import GIB, HOST_RESERVE_BYTES
from ltxtrain_trainer.model.device import free_bytes, host_free_bytes
from ltxtrain_trainer.model.files import tensor_sizes, weight_files
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.loading import Device, frozen, missing_text, no_progress_bars
from ltxtrain_trainer.model.precision import Precision, is_available
from ltxtrain_trainer.model.streaming import BlockStream

# Of a model that also sees, in the file; only its text part is loaded.
UNUSED = ("vision_tower.", "multi_modal_projector.")
TEXT_PART = r"^(language_model\.model|model\.language_model)\."
# Every layer's hidden states of one prompt, stacked and flattened, and what attention needs: 49 x 1024 x 3840, twice.
WORKING_BYTES = int(1.5 * GIB)
INT8_SHARE = 0.54  # of the bytes in bfloat16: the table of tokens stays


class TextHold(StrEnum):
    """A way to hold the text encoder; whole and streamed give the same numbers."""

    WHOLE = "whole"
    STREAMED = "streamed"
    INT8 = "int8"

    @property
    def numbers(self) -> str:
        """The part of a cache key that the form of the encoder adds: empty for the model as it is."""
        return self.value if self is TextHold.INT8 else ""


@dataclass(frozen=True)
class TextSize:
    """Bytes in bfloat16: of the text encoder, what is outside its layers, its largest layer, and the connectors."""

    encoder: int
    outside: int
    layer: int
    connectors: int

    @classmethod
    def of(cls, folder: ModelFolder) -> "TextSize":
        """By the headers of the model's files."""
        layers: dict[str, int] = {}
        outside = 0
        for name, count in _sizes(folder, "text_encoder").items():
            if any(part in name for part in UNUSED):
                continue
            if ".layers." in name:
                layer = name.partition(".layers.")[2].partition(".")[0]
                layers[layer] = layers.get(layer, 0) + 2 * count
            else:
                outside += 2 * count
        connectors = 2 * sum(_sizes(folder, "connectors").values()) if folder.original is None else 6 * GIB
        return cls(outside + sum(layers.values()), outside, max(layers.values(), default=0), connectors)


def choose_hold(size: TextSize, device_bytes: int, host_bytes: int) -> TextHold:
    """The first way that fits, the connectors beside it; the least of all when none does."""
    beside = size.connectors + WORKING_BYTES
    if size.encoder + beside <= device_bytes:
        return TextHold.WHOLE
    streamed = size.outside + 2 * size.layer + beside
    if streamed <= device_bytes and size.encoder + HOST_RESERVE_BYTES <= host_bytes:
        return TextHold.STREAMED
    if is_available(Precision.INT8) and size.encoder * INT8_SHARE + beside <= device_bytes:
        return TextHold.INT8
    return TextHold.STREAMED


def hold_for(folder: ModelFolder, device: torch.device) -> TextHold:
    """The way that fits a device; a CPU holds all of it."""
    if device.type != "cuda":
        return TextHold.WHOLE
    return choose_hold(TextSize.of(folder), free_bytes(device), host_free_bytes())


def load_text_encoder(folder: ModelFolder, device: Device, dtype: torch.dtype, hold: TextHold = TextHold.WHOLE) -> Any:
    """Gemma3TextModel. Raises ModelUnavailable when weights are missing."""
    from transformers import AutoConfig, Gemma3TextModel, TorchAoConfig
    from transformers.utils import logging

    start = time.monotonic()
    target = torch.device(device)
    where = folder.path / "text_encoder"
    quantization = None
    if hold is TextHold.INT8:
        from torchao.quantization import Int8WeightOnlyConfig

        quantization = TorchAoConfig(Int8WeightOnlyConfig())
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # weights of the vision tower are left out on purpose
    try:
        with no_progress_bars():
            model, notes = Gemma3TextModel.from_pretrained(
                where,
                config=AutoConfig.from_pretrained(where, local_files_only=True).text_config,
                key_mapping={TEXT_PART: ""},
                dtype=dtype,
                device_map={"": torch.device("cpu") if hold is TextHold.STREAMED else target},
                quantization_config=quantization,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    finally:
        logging.set_verbosity(verbosity)
    if missing := sorted(notes["missing_keys"]):
        raise ModelUnavailable(missing_text(missing, where))
    if hold is TextHold.STREAMED:
        model.requires_grad_(False)
        stream = BlockStream(target)
        for index, layer in enumerate(model.layers):
            stream.take(index, layer)
        model.to(target)  # what is outside the layers, whose weights are empty by now
        stream.attach(model.layers)
    return frozen(model, "text_encoder", start)


def check_tokenizer(tokenizer: Any) -> None:
    """Raises ModelUnsupported when prompts would not begin with BOS: embeddings would be quietly worse without it."""
    ids = tokenizer("").input_ids
    if not ids or ids[0] != tokenizer.bos_token_id:
        raise ModelUnsupported(
            "The model's tokenizer does not begin a prompt with its BOS token, as LTX 2.3 needs it: its tokenizer.json "
            "lacks the template that adds it. Fetch the model's tokenizer folder again."
        )


def _sizes(folder: ModelFolder, component: str) -> dict[str, int]:
    return {name: count for file in weight_files(folder.path, component) for name, count in tensor_sizes(file).items()}
