"""The LoRA file: names and number format that ComfyUI, diffusers and the original code all read.

Keys are the original model's names under `diffusion_model.`. Readers disagree about a stored alpha, so there is none:
alpha is the rank in every training here, and B is whole as it is.
"""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ltxtrain_trainer.errors import CheckpointMismatch
from ltxtrain_trainer.training.lora import is_video_module
from ltxtrain_trainer.training.settings import TRAINING_TYPE, TrainSettings

PREFIX = "diffusion_model."


def lora_tensors(adapter: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors, bfloat16 on the CPU, of an adapter's float32 ones (live, or of a checkpoint)."""
    return {
        f"{PREFIX}{name}": tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in sorted(adapter.items())
    }


def video_only(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a joint LoRA that a video-only training has."""
    return {key: tensor for key, tensor in tensors.items() if is_video_module(module_of(key))}


def module_of(key: str) -> str:
    """The module that a key of a LoRA file belongs to, without prefix and without .lora_A.weight."""
    return key.removeprefix(PREFIX).rsplit(".", 2)[0]


def lora_metadata(
    *, base_model: str, revision: str, trigger_phrase: str, settings: TrainSettings, step: int
) -> dict[str, str]:
    """Metadata of the file; step is the one after which it was taken."""
    return {
        "format": "pt",
        "base_model": base_model,
        "base_model_revision": revision,
        "training_type": TRAINING_TYPE,
        "trigger_phrase": trigger_phrase,
        "step": str(step),
        "settings": json.dumps(settings.computed_with(), sort_keys=True),
    }


def read_lora(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors of a file, bfloat16 by their names in the model. Raises CheckpointMismatch."""
    try:
        return {key.removeprefix(PREFIX): tensor for key, tensor in safetensors.torch.load_file(path).items()}
    except safetensors.SafetensorError as error:
        raise CheckpointMismatch(f"{path.name} is not a LoRA: {error}") from error


def write_lora(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Writes the safetensors file; equal contents have equal bytes."""
    data = safetensors.torch.save(dict(tensors))
    # The library writes metadata in an order that differs from one process to the next, so the header is finished here.
    header_length = 8 + struct.unpack("<Q", data[:8])[0]
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8:header_length])}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        file.write(memoryview(data)[header_length:])
