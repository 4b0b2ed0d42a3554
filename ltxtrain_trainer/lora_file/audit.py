"""The last gate of a training: a LoRA that is finite, alive, no larger than it should be, and that loads.

No second copy of the base model is needed: keys are tried on a transformer without memory, and the norms of the base
weights are read from its files one weight at a time.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from ltxtrain_trainer.errors import AuditFailed
from ltxtrain_trainer.lora_file.export import PREFIX, module_of
from ltxtrain_trainer.model.files import weight_files
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.single_file import original_tensors
from ltxtrain_trainer.training.lora import ADAPTER, adapter, module_family, target_modules

# An update as large as the weights it is added to has replaced the model.
MAX_UPDATE = 1.0


@dataclass(frozen=True)
class Audit:
    """The numbers of a LoRA that passed: update is the Frobenius norm of BA over that of W, by module family."""

    modules: int
    parameters: int
    update: dict[str, float]


def audit_lora(path: Path, folder: ModelFolder, *, with_audio: bool, device: torch.device | None = None) -> Audit:
    """The numbers of a LoRA file. Raises AuditFailed with the first fault found as its reason.

    device: where the norms of the base are computed, tens of gigabytes of weights, one at a time.
    """
    tensors = check_lora(path, folder, with_audio=with_audio)
    update = _updates(tensors, folder, device or torch.device("cpu"))
    _require_in_bounds(update)
    return Audit(
        modules=len({module_of(key) for key in tensors}),
        parameters=sum(tensor.numel() for tensor in tensors.values()),
        update=update,
    )


def check_lora(path: Path, folder: ModelFolder, *, with_audio: bool) -> dict[str, Tensor]:
    """The tensors of a LoRA file that a model loads, whatever their size. Raises AuditFailed.

    It is enough for a part of a LoRA that was audited: the sizes of its updates are known.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise AuditFailed("NOT_LOADABLE", f"{path.name} is not a safetensors file: {error}") from error
    _require_finite(tensors)
    _require_own_keys(tensors, with_audio)
    _require_loadable(tensors, folder)
    return tensors


def _require_finite(tensors: Mapping[str, Tensor]) -> None:
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise AuditFailed("NON_FINITE", f"{key} has values that are not finite.")


def _require_own_keys(tensors: Mapping[str, Tensor], with_audio: bool) -> None:
    for key in tensors:
        if not key.startswith(PREFIX):
            raise AuditFailed("NOT_LOADABLE", f"{key} does not begin with {PREFIX}, so that no program would load it.")
        if not re.fullmatch(target_modules(with_audio), module_of(key)):
            kind = "joint" if with_audio else "video-only"
            raise AuditFailed("FOREIGN_KEYS", f"{key} does not belong into a {kind} LoRA.")


def _require_loadable(tensors: Mapping[str, Tensor], folder: ModelFolder) -> None:
    from accelerate import init_empty_weights
    from diffusers import LTX2ConditionPipeline, LTX2VideoTransformer3DModel

    with init_empty_weights():
        transformer: Any = LTX2VideoTransformer3DModel.from_config(folder.config("transformer"))
    try:
        LTX2ConditionPipeline.load_lora_into_transformer(
            LTX2ConditionPipeline.lora_state_dict(dict(tensors)),
            transformer,
            adapter_name=ADAPTER,
            low_cpu_mem_usage=True,
        )
        loaded = adapter(transformer)
    except (ValueError, RuntimeError, KeyError) as error:
        raise AuditFailed("NOT_LOADABLE", f"diffusers does not load the LoRA: {error}") from error
    # A key without a place, and a place without a key, only make diffusers log a line.
    lost = sorted(tensors.keys() ^ {f"{PREFIX}{name}" for name in loaded})
    if lost:
        raise AuditFailed(
            "NOT_LOADABLE", f"diffusers finds no place or no value for {len(lost)} keys, first {lost[0]}."
        )


def _updates(tensors: Mapping[str, Tensor], folder: ModelFolder, device: torch.device) -> dict[str, float]:
    modules = {module_of(key) for key in tensors}
    update, weight = _squares(modules), _squares(modules)
    for module in modules:
        a = tensors[f"{PREFIX}{module}.lora_A.weight"].double()
        b = tensors[f"{PREFIX}{module}.lora_B.weight"].double()
        # |BA|^2 = trace((B'B)(AA')), without the product of the size of the weight.
        update[module_family(module)] += max(((b.T @ b) * (a @ a.T)).sum().item(), 0.0)
    for name, tensor in _base_tensors(folder):
        module = name.removesuffix(".weight")
        if module in modules and name != module:
            norm = torch.linalg.vector_norm(tensor.to(device).float())
            weight[module_family(module)] += norm.item() ** 2
    return {family: math.sqrt(update[family] / weight[family]) for family in sorted(update)}


def _squares(modules: set[str]) -> dict[str, float]:
    return dict.fromkeys(sorted({module_family(module) for module in modules}), 0.0)


def _base_tensors(folder: ModelFolder) -> Iterator[tuple[str, Tensor]]:
    if folder.original is not None:
        yield from original_tensors(folder.original, "transformer")
        return
    for file in weight_files(folder.path, "transformer"):
        with safe_open(file, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a mapping)
                yield name, stored.get_tensor(name)


def _require_in_bounds(update: Mapping[str, float]) -> None:
    for family, size in update.items():
        if size == 0.0:
            raise AuditFailed("ZERO", f"The LoRA changes nothing in {family}.")
        if size > MAX_UPDATE:
            raise AuditFailed(
                "OUT_OF_BOUNDS",
                f"The LoRA's update of {family} is {size:.3g} times its weights; at most {MAX_UPDATE:g} is sound. "
                "Lower the learning rate or the number of steps.",
            )
