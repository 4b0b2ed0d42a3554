"""A training from nothing that can be stopped at any time: AdamW, a cosine of the learning rate, averaged weights.

What a step computes depends on its number alone, so that a training cut short and resumed ends as one that was not.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CLIP_NORM = 1.0
FAN_IN = 200  # inputs of a weight that learns at the full rate
WARM_UP_STEPS = 100
LAST_RATE = 0.02  # of the first
AVERAGED = 0.998
CHECKPOINT_STEPS = 50
TOLD_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class Plan:
    """name: of the checkpoint file. steps: of the whole training; what remains of it is done."""

    name: str
    steps: int
    learning_rate: float
    weight_decay: float = 0.01


@contextmanager
def repeatable() -> Iterator[None]:
    """Add up the gradients of what is looked up by index in order, not as threads come."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@repeatable()
def pretrain(model: nn.Module, plan: Plan, loss_of: Callable[[int], dict[str, Tensor]], folder: Path) -> None:
    """Train until plan.steps are done, then leave the averaged weights in the model.

    loss_of(step) returns named scalars, of which "loss" is descended. Progress goes to standard output and the state
    to folder/<name>.pt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{plan.name}.pt"
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    shares = {name: _share(parameter) for name, parameter in trained.items()}
    groups = [
        {"params": [parameter for name, parameter in trained.items() if shares[name] == share], "share": share}
        for share in sorted(set(shares.values()))
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    average = {name: parameter.detach().clone() for name, parameter in trained.items()}
    done = 0
    if file.exists():
        state = torch.load(file, weights_only=True)
        done = state["step"]
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state["weights"][name])
                average[name].copy_(state["average"][name])
        optimizer.load_state_dict(state["optimizer"])
    model.train()
    sums: dict[str, float] = {}
    since = time.perf_counter()
    for step in range(done + 1, plan.steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * group["share"] * rate_at(step, plan.steps)
        optimizer.zero_grad(set_to_none=True)
        losses = loss_of(step)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained.values(), CLIP_NORM)
        optimizer.step()
        # Early averages forget their random start.
        keep = min(AVERAGED, step / (step + 10))
        with torch.no_grad():
            for name, parameter in trained.items():
                average[name].lerp_(parameter, 1 - keep)
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0.0) + loss.item()
        if step % TOLD_STEPS == 0 or step == plan.steps:
            count = TOLD_STEPS if step % TOLD_STEPS == 0 else step % TOLD_STEPS
            text = "  ".join(f"{name} {total / count:.4f}" for name, total in sums.items())
            print(f"{plan.name} {step}/{plan.steps}  {text}  {(time.perf_counter() - since) / count:.2f} s", flush=True)
            sums, since = {}, time.perf_counter()
        if step % CHECKPOINT_STEPS == 0 or step == plan.steps:
            _store(file, step, trained, average, optimizer)
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
    model.eval()


def mostly_noise(levels: Tensor, share: float, least: float, draws: torch.Generator) -> Tensor:
    """The noise levels [n], of which that share is drawn anew from least..1.

    Where a shape goes and when it clicks is decided there while sampling, and 8 % of the product's own levels are above
    0.9: enough for a model that knows such things already.
    """
    chosen = torch.rand(len(levels), generator=draws) < share
    return torch.where(chosen, least + (1 - least) * torch.rand(len(levels), generator=draws), levels)


def average_of(plan: Plan, folder: Path) -> dict[str, Tensor]:
    """The averaged weights of a training so far."""
    average: dict[str, Tensor] = torch.load(folder / f"{plan.name}.pt", weights_only=True)["average"]
    return average


def _share(parameter: Tensor) -> float:
    """Share of the learning rate: a step moves an output in proportion to its inputs, 3,456 in a convolution."""
    return min(1.0, FAN_IN / parameter[0].numel()) if parameter.ndim > 1 else 1.0


def rate_at(step: int, steps: int) -> float:
    """The learning rate of a step over the highest: a linear start, then half a cosine."""
    if step < WARM_UP_STEPS:
        return step / WARM_UP_STEPS
    progress = (step - WARM_UP_STEPS) / max(steps - WARM_UP_STEPS, 1)
    return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * progress)) / 2


def _store(
    file: Path,
    step: int,
    trained: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    part = file.with_suffix(".part")
    weights = {name: parameter.detach() for name, parameter in trained.items()}
    state = {"step": step, "weights": weights, "average": average, "optimizer": optimizer.state_dict()}
    torch.save(state, part)
    os.replace(part, file)
