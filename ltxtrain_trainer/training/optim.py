"""AdamW over the adapter as one flat float32 vector, gradient clipping and the learning rate."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ltxtrain_trainer.errors import OptimizerUnavailable
from ltxtrain_trainer.training.settings import TrainSettings

MAX_GRADIENT_NORM = 1.0

# Lightricks' extension recipe: linear from the whole rate to a tenth of it, and AdamW as PyTorch ships it.
FINAL_SHARE = 0.1
BETAS = (0.9, 0.999)
EPSILON = 1e-8
WEIGHT_DECAY = 0.01


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of an optimizer step (from 1)."""
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate * (1 - (1 - FINAL_SHARE) * (step - 1) / settings.steps)


class AdapterOptimizer:
    """The adapter's weights and gradients as two flat vectors, of which the parameters are views.

    One vector makes the sum over workers, the norm and the update one operation each. The parameters must stay where
    they are: moving the transformer to another device would cut the views.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], kind: str) -> None:
        self.parameters = parameters
        self.weights = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters.values()]))
        self.gradients = torch.zeros_like(self.weights)
        self.weights.grad = self.gradients
        offset = 0
        for parameter in parameters.values():
            part = slice(offset, offset + parameter.numel())
            parameter.data = self.weights.detach()[part].view_as(parameter)
            parameter.grad = self.gradients[part].view_as(parameter)
            offset += parameter.numel()
        self._optimizer = _build(kind, self.weights)

    def clear(self) -> None:
        self.gradients.zero_()

    def clip(self) -> Tensor:
        """Scales the gradients to a norm of at most MAX_GRADIENT_NORM; the norm before, as a scalar tensor."""
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        self.gradients.mul_((MAX_GRADIENT_NORM / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def step(self, rate: float) -> None:
        group = self._optimizer.param_groups[0]
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
        # torchao compiles its step, for which there has to be a C compiler; as it stands it computes the same.
        with torch.compiler.set_stance("force_eager"):
            self._optimizer.step()

    def weights_by_name(self) -> dict[str, Tensor]:
        """Views of the live weights, float32."""
        return {name: parameter.detach() for name, parameter in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """Views of the live optimizer state as plain tensors: quantized moments as their codes and scales."""
        return {
            name: tensor
            for key, value in self._optimizer.state[self.weights].items()
            for name, tensor in _plain(key, value).items()
        }

    def load(self, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Continues from weights_by_name() and state() of an equal adapter; KeyError when something is missing."""
        # Whatever the kind of optimizer, its state is made by its own first step; at rate 0 that step moves nothing.
        self.clear()
        self.step(0.0)
        with torch.no_grad():
            for name, tensor in self.state().items():
                tensor.copy_(state[name])
            for name, parameter in self.parameters.items():
                parameter.copy_(weights[name])


def _build(kind: str, weights: nn.Parameter) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW([weights], lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY, fused=True)
    if importlib.util.find_spec("torchao") is None:
        raise OptimizerUnavailable(
            "AdamW with 8-bit moments needs torchao: pip install 'ltxtrain[quantized]', or choose AdamW."
        )
    from torchao.optim import AdamW8bit

    optimizer: torch.optim.Optimizer = AdamW8bit([weights], lr=0.0, betas=BETAS, eps=EPSILON, weight_decay=WEIGHT_DECAY)
    return optimizer


def _plain(key: str, value: Any) -> dict[str, Tensor]:
    if not hasattr(value, "__tensor_flatten__"):
        return {key: value}
    return {f"{key}.{part}": getattr(value, part) for part in value.__tensor_flatten__()[0]}
