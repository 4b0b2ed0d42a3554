"""The components of an LTX 2.3, each straight onto its device in its number format, frozen and ready to call.

Weights go from the mapped file to the device one tensor at a time; no component is ever whole in host memory on its
way to a GPU.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from trainer.errors import ModelUnavailable
from trainer.model.folder import ModelFolder
from trainer.model.precision import Precision, quantization_config
from trainer.model.single_file import original_tensors

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
        LTX2VideoTransformer3DModel,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE
    from transformers import Gemma3ForConditionalGeneration, PreTrainedTokenizerBase


@contextmanager
def no_progress_bars() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def hush_imports() -> None:
    """Silence warnings of kernels that are not needed here; call it before diffusers is imported."""
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)


Model = TypeVar("Model", bound=nn.Module)
Device = torch.device | str


@dataclass(frozen=True)
class LoadReport:
    component: str
    seconds: float
    size_bytes: int  # of all weights and tables, as they are held


def load_report(model: nn.Module) -> LoadReport:
    """Duration and size of one loading."""
    report = model.__dict__["_ltxtrain_load_report"]
    assert isinstance(report, LoadReport)
    return report


def compute_dtype(device: Device) -> torch.dtype:
    """Number format of encoders and decoders: bfloat16, and float32 on a CPU, where bfloat16 is slower."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def load_transformer(folder: ModelFolder, device: Device, precision: Precision) -> "LTX2VideoTransformer3DModel":
    """PrecisionUnavailable when the format needs what is not installed here."""
    from diffusers import LTX2VideoTransformer3DModel

    quantization = quantization_config(precision)
    if folder.original is None:
        return _load(LTX2VideoTransformer3DModel, folder, "transformer", device, precision.dtype, quantization)
    return _load_original(LTX2VideoTransformer3DModel, folder, "transformer", device, precision.dtype, quantization)


def load_connectors(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "LTX2TextConnectors":
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    if folder.original is None:
        return _load(LTX2TextConnectors, folder, "connectors", device, dtype)
    return _load_original(LTX2TextConnectors, folder, "connectors", device, dtype)


def load_video_vae(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "AutoencoderKLLTX2Video":
    from diffusers import AutoencoderKLLTX2Video

    return _load(AutoencoderKLLTX2Video, folder, "vae", device, dtype)


def load_audio_vae(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "AutoencoderKLLTX2Audio":
    from diffusers import AutoencoderKLLTX2Audio

    return _load(AutoencoderKLLTX2Audio, folder, "audio_vae", device, dtype)


def load_vocoder(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "LTX2VocoderWithBWE":
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

    return _load(LTX2VocoderWithBWE, folder, "vocoder", device, dtype)


def load_text_encoder(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "Gemma3ForConditionalGeneration":
    from transformers import Gemma3ForConditionalGeneration

    start = time.monotonic()
    with no_progress_bars():
        model, notes = Gemma3ForConditionalGeneration.from_pretrained(
            folder.path / "text_encoder",
            dtype=dtype,
            device_map={"": torch.device(device)},
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(notes["missing_keys"]):
        raise ModelUnavailable(_missing_text(missing, folder.path / "text_encoder"))
    return _frozen(model, "text_encoder", start)


def load_tokenizer(folder: ModelFolder) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True)


def load_scheduler(folder: ModelFolder) -> "FlowMatchEulerDiscreteScheduler":
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder.path / "scheduler", local_files_only=True)


def _load(
    model_class: type[Model],
    folder: ModelFolder,
    component: str,
    device: Device,
    dtype: torch.dtype,
    quantization: Any = None,
) -> Model:
    start = time.monotonic()
    target = torch.device(device)
    loader: Any = model_class
    with no_progress_bars():
        loaded: tuple[Model, dict[str, Any]] = loader.from_pretrained(
            folder.path / component,
            torch_dtype=dtype,
            # On a CPU the default already maps the file; a device map would only add dispatching.
            device_map=None if target.type == "cpu" else {"": target},
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            quantization_config=quantization,
            output_loading_info=True,
        )
    model, notes = loaded
    if missing := sorted(notes["missing_keys"]):
        raise ModelUnavailable(_missing_text(missing, folder.path / component))
    return _frozen(model, component, start)


def _load_original(
    model_class: type[Model],
    folder: ModelFolder,
    component: str,
    device: Device,
    dtype: torch.dtype,
    quantization: Any = None,
) -> Model:
    """Out of the single file, as `_load` does out of a folder; from_single_file knows neither 2.3 nor quantization."""
    from accelerate import init_empty_weights
    from diffusers.models.model_loading_utils import load_model_dict_into_meta
    from diffusers.quantizers import DiffusersAutoQuantizer

    assert folder.original is not None
    start = time.monotonic()
    builder: Any = model_class
    with init_empty_weights(include_buffers=False):
        model: Model = builder.from_config(folder.config(component))
    tensors = dict(original_tensors(folder.original, component))
    _expect(model, tensors, folder.original)
    quantizer = quantization and DiffusersAutoQuantizer.from_config(quantization, pre_quantized=False)
    if quantizer:
        quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=[])
    load_model_dict_into_meta(
        model, tensors, dtype=dtype, device_map={"": torch.device(device)}, hf_quantizer=quantizer, unexpected_keys=[]
    )
    if quantizer:
        quantizer.postprocess_model(model)
    return _frozen(model.to(device), component, start)


def _expect(model: nn.Module, tensors: dict[str, torch.Tensor], file: Path) -> None:
    expected = model.state_dict()
    if missing := sorted(expected.keys() - tensors.keys()):
        raise ModelUnavailable(_missing_text(missing, file))
    if foreign := sorted(tensors.keys() - expected.keys()):
        raise ModelUnavailable(f"{file} has {len(foreign)} weights that LTX 2.3 has not, first {foreign[0]}.")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ModelUnavailable(
                f"{file} has {name} of shape {list(tensor.shape)} "
                f"where the settings beside it say {list(expected[name].shape)}."
            )


def _missing_text(missing: list[str], where: Path) -> str:
    return f"{where} lacks {len(missing)} weights of LTX 2.3, first {missing[0]}. Fetch the model again."


def _frozen(model: Model, component: str, start: float) -> Model:
    model.eval().requires_grad_(False)
    size_bytes = sum(_held_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    model.__dict__["_ltxtrain_load_report"] = LoadReport(component, time.monotonic() - start, size_bytes)
    return model


def _held_bytes(tensor: Any) -> int:
    """A quantized tensor gives itself out as the bfloat16 it stands for; its parts do not."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])


def transformer_weight_count(folder: ModelFolder) -> int:
    """Weights of the transformer, counted on its settings alone."""
    from accelerate import init_empty_weights
    from diffusers import LTX2VideoTransformer3DModel

    builder: Any = LTX2VideoTransformer3DModel
    with init_empty_weights():
        model: nn.Module = builder.from_config(folder.config("transformer"))
    return sum(parameter.numel() for parameter in model.parameters())
