"""Number formats of the frozen transformer, and what each needs; ltxtrain_trainer.memory_plan decides which.

A training's reports name them to the services, which have no use for torch and are 250 MB smaller without.
"""

import importlib.util
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from ltxtrain_trainer.errors import PrecisionUnavailable

if TYPE_CHECKING:
    import torch

# Everything around the blocks, and the small gates inside them, stays in bfloat16: it is 2 % of the weights and every
# token's noise level passes through it.
UNQUANTIZED = (
    "proj_in",
    "audio_proj_in",
    "proj_out",
    "audio_proj_out",
    "time_embed",
    "audio_time_embed",
    "prompt_adaln",
    "audio_prompt_adaln",
    "av_cross_attn_video_scale_shift",
    "av_cross_attn_audio_scale_shift",
    "av_cross_attn_video_a2v_gate",
    "av_cross_attn_audio_v2a_gate",
    "to_gate_logits",
)


class Precision(StrEnum):
    FP32 = "fp32"
    BF16 = "bf16"
    INT8 = "int8"
    FP8 = "fp8"
    NF4 = "nf4"

    @property
    def dtype(self) -> "torch.dtype":
        """Number format of the weights that are not quantized, and of the arithmetic."""
        import torch

        return torch.float32 if self is Precision.FP32 else torch.bfloat16


def is_available(precision: Precision) -> bool:
    """Whether its library is installed (nf4 also needs a CUDA device)."""
    if precision in (Precision.INT8, Precision.FP8):
        return importlib.util.find_spec("torchao") is not None
    if precision is Precision.NF4:
        import torch

        return torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes") is not None
    return True


def quantization_config(precision: Precision) -> Any:
    """Quantization config for diffusers; None for fp32 and bf16. Raises PrecisionUnavailable without the library."""
    if not is_available(precision):
        remedy = (
            "nf4 needs a CUDA device and bitsandbytes: pip install 'ltxtrain[quantized]'"
            if precision is Precision.NF4
            else f"{precision} needs torchao: pip install 'ltxtrain[quantized]'"
        )
        raise PrecisionUnavailable(f"The base model cannot be held in {precision} here. {remedy}, or choose bf16.")
    match precision:
        case Precision.INT8 | Precision.FP8:
            from diffusers import TorchAoConfig
            from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

            weights = Int8WeightOnlyConfig() if precision is Precision.INT8 else Float8WeightOnlyConfig()
            return TorchAoConfig(weights, modules_to_not_convert=list(UNQUANTIZED))
        case Precision.NF4:
            from diffusers import BitsAndBytesConfig

            return BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=precision.dtype,
                llm_int8_skip_modules=list(UNQUANTIZED),
            )
        case _:
            return None
