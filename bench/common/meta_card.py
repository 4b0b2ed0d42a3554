"""A card that is not there: the real model's sizes on meta tensors, with what CUDA would keep in memory counted.

Every storage that is alive counts from the operation that makes it until nothing refers to it, as in CUDA's allocator;
not counted are the context, fragmentation and workspaces of matrix products. Operations that are one kernel on CUDA and
several here (norms of queries and keys, attention) stand for themselves as autograd functions that keep what those
kernels keep: flash attention its inputs, output and logarithms of sums, and in a deterministic backward pass the
partial sums of the gradient of the queries.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ltxtrain_trainer.memory_plan import MULTIPROCESSORS

# The transformer of diffusers/LTX-2.3-Diffusers; what is not named is the class's own.
REAL: dict[str, Any] = {
    "gated_attn": True,
    "cross_attn_mod": True,
    "audio_gated_attn": True,
    "audio_cross_attn_mod": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
    "rope_type": "split",
}


class LiveBytes(TorchDispatchMode):
    """Bytes of all storages made inside, alive now and at most."""

    def __init__(self, model: nn.Module) -> None:
        """model: what is there before, and counted by weight_bytes."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        for tensor in plain_tensors(model):
            self._known[tensor.untyped_storage()] = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: Any) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        weakref.finalize(storage, self._drop, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _drop(self, size: int) -> None:
        self.now -= size


class _Norm(torch.autograd.Function):
    """One kernel on CUDA: keeps its input and the inverse deviations."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, input.new_empty(*input.shape[:-1], 1, dtype=torch.float32))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return torch.empty_like(ctx.saved_tensors[0]), None


class _FlashAttention(torch.autograd.Function):
    """Queries, keys and values [B, H, T, D] over memory that is [B, T, H, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = torch.empty_like(query)
        sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, sums = ctx.saved_tensors
        batch, heads = query.shape[:2]
        splits = -(-MULTIPROCESSORS // (batch * heads))
        partial = query.new_empty(splits, *query.shape, dtype=torch.float32)
        found = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        del partial, sums
        return found


@contextmanager
def fused_kernels() -> Iterator[None]:
    """Patched, not a mode: modes are off while a backward pass computes a checkpointed block once more."""
    functional: Any = nn.functional
    kept = functional.rms_norm, functional.scaled_dot_product_attention

    def norm(input: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Any:
        return _Norm.apply(input, weight)  # type: ignore[no-untyped-call]

    def attention(query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Any:
        return _FlashAttention.apply(query, key, value)  # type: ignore[no-untyped-call]

    functional.rms_norm, functional.scaled_dot_product_attention = norm, attention
    try:
        yield
    finally:
        functional.rms_norm, functional.scaled_dot_product_attention = kept


class _Nf4Product(torch.autograd.Function):
    """bitsandbytes' MatMul4Bit: the weight is made whole for each product, and not kept."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: "Nf4Linear") -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(input, layer.whole(input.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ ctx.layer.whole(gradients[0].dtype), None


class Nf4Linear(nn.Linear):
    """The memory of bitsandbytes' Linear4bit, which has no form without CUDA: half a byte a weight, a scale for 64."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta", dtype=torch.bfloat16)
        count = linear.weight.numel()
        self.weight = nn.Parameter(torch.empty(count // 2, 1, dtype=torch.uint8, device="meta"), requires_grad=False)
        self.scales = nn.Parameter(torch.empty(count // 64, dtype=torch.float32, device="meta"), requires_grad=False)
        self.bias = linear.bias

    def whole(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(self.out_features, self.in_features, dtype=dtype, device="meta")

    def forward(self, input: Tensor) -> Tensor:
        found: Tensor = _Nf4Product.apply(input, self)  # type: ignore[no-untyped-call]
        return found


def quantize(model: nn.Module, precision: str, kept: Callable[[str], bool]) -> None:
    """Quantize a bfloat16 model as loading in a precision does; kept: names that stay as they are."""
    chosen = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and not kept(name)]
    if precision == "nf4":
        for name in chosen:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, Nf4Linear(model.get_submodule(name)))  # type: ignore[arg-type]
    elif precision in ("int8", "fp8"):
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

        wanted = set(chosen)
        config = Int8WeightOnlyConfig() if precision == "int8" else Float8WeightOnlyConfig()
        quantize_(model, config, filter_fn=lambda module, name: name in wanted)


@contextmanager
def on_a_card(model: nn.Module) -> Iterator[LiveBytes]:
    """Counts what is computed with a model inside."""
    with fused_kernels(), LiveBytes(model) as live:
        yield live


def plain_tensors(model: nn.Module) -> list[Tensor]:
    """Weights and their gradients, quantized ones in parts."""
    found = []
    for parameter in model.parameters():
        found += parts(parameter)
        if parameter.grad is not None:
            found.append(parameter.grad)
    return found


def parts(tensor: Any) -> list[Tensor]:
    """The plain tensors that a tensor is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return [tensor]
    return [part for name in tensor.__tensor_flatten__()[0] for part in parts(getattr(tensor, name))]
