"""Low-rank adapters on the frozen transformer: which modules, how they start, and their names.

Adapter tensors are named as in the original model and in diffusers alike:
`transformer_blocks.0.attn1.to_q.lora_A.weight` [rank, in] and `.lora_B.weight` [out, rank].
"""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ltxtrain_trainer import seeds
from ltxtrain_trainer.errors import CheckpointMismatch

# Attention and feed-forward of the video stream. Feed-forward too, because the look of a continuation is as much in it
# as in attention: 164 M weights at rank 32 where attention alone has 101 M, and 1 GiB more with gradient and optimizer.
# No audio or cross-modal module: none of them takes part in a video-only forward pass, and untrained ones would travel
# along in the file.
VIDEO_MODULES = r"transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))"

# The same of both streams, and the attention between them, which is where sound and picture keep in step. It contains
# VIDEO_MODULES whole, so that the video part of a joint LoRA is what a video-only training would have trained.
JOINT_MODULES = (
    r"transformer_blocks\.\d+\."
    r"(((audio_)?attn[12]|audio_to_video_attn|video_to_audio_attn)\.(to_[qkv]|to_out\.0)|(audio_)?ff\.net\.(0\.proj|2))"
)

ADAPTER = "default"


def target_modules(with_audio: bool) -> str:
    """A regular expression that matches the whole name of each module with an adapter."""
    return JOINT_MODULES if with_audio else VIDEO_MODULES


def module_family(module: str) -> str:
    """The part of a block that a module belongs to: attn1, audio_ff, video_to_audio_attn and so on."""
    return module.split(".")[2]


def is_video_module(module: str) -> bool:
    return re.fullmatch(VIDEO_MODULES, module) is not None


class AdapterLinear(nn.Linear):
    """A linear map with float32 weights that multiplies, and answers, in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype))


def add_lora(transformer: Any, *, rank: int, with_audio: bool, seed: int) -> None:
    """Freezes the transformer (of any precision) and adds float32 adapters that change nothing yet; alpha is rank.

    The start depends on seed and module name alone, and no global random state is used.
    """
    from peft import LoraConfig

    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=target_modules(with_audio), init_lora_weights=False)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # Quantized weights: PEFT warns of what it lacks for merging, which never happens here.
        warnings.filterwarnings("ignore", message=".*get_apply_tensor_subclass.*")
        transformer.add_adapter(config, ADAPTER)
    with torch.no_grad():
        for name, parameter in adapter(transformer).items():
            parameter.data = _initial(name, parameter.shape, seed).to(parameter.device)
    for module in transformer.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # peft would widen the input to float32
            for side in (module.lora_A, module.lora_B):
                side[ADAPTER].__class__ = AdapterLinear


def adapter(transformer: Any) -> dict[str, nn.Parameter]:
    """The adapter's parameters by name, in the order of their names."""
    mark = f".{ADAPTER}.weight"
    found = {
        name.removesuffix(mark) + ".weight": parameter
        for name, parameter in transformer.named_parameters()
        if name.endswith((f".lora_A{mark}", f".lora_B{mark}"))
    }
    if not found:
        raise ValueError("The transformer has no adapter; add_lora comes first.")
    return dict(sorted(found.items()))


def fill_adapter(transformer: Any, weights: Mapping[str, Tensor]) -> None:
    """Put the weights of a LoRA in place of the adapter's start. Raises CheckpointMismatch for one of another shape."""
    own = adapter(transformer)
    others = {name for name in own.keys() | weights.keys() if _shape(own.get(name)) != _shape(weights.get(name))}
    if others:
        raise CheckpointMismatch(
            f"The LoRA to start from is not of this rank and these modules: {len(others)} of its tensors do not match, "
            f"{min(others)} among them."
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])


def _shape(tensor: Tensor | None) -> torch.Size | None:
    return None if tensor is None else tensor.shape


def adapter_digest(transformer: Any) -> str:
    """sha256 over the names and shapes of the adapter's parameters."""
    lines = "".join(f"{name} {list(parameter.shape)}\n" for name, parameter in adapter(transformer).items())
    return hashlib.sha256(lines.encode()).hexdigest()


@contextmanager
def base_model(transformer: Any) -> Iterator[None]:
    """The transformer without its adapter, for as long as the context lasts."""
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def _initial(name: str, shape: torch.Size, seed: int) -> Tensor:
    weight = torch.zeros(shape)
    if name.endswith(".lora_A.weight"):
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=seeds.generator(seed, "lora", name))
    return weight
