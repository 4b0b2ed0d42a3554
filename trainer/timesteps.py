"""Noise levels of training: a logit-normal that moves towards noise as a clip gets longer.

With z ~ N(0, 1) and a shift that grows with the token count, the level is sigmoid(shift + z), stretched so that the 0.5
and 99.9 percentiles land on 0 and 1. What falls below MIN_LEVEL is mirrored at it. One draw in ten is uniform instead.
"""

import torch
from torch import Tensor

MIN_LEVEL = 1e-3
UNIFORM_SHARE = 0.1

# The straight line through (1024 tokens, 0.95) and (4096 tokens, 2.05); it goes on beyond both.
_TOKENS, _SHIFTS = (1024, 4096), (0.95, 2.05)

# Standard normal quantiles, to the digits that the published sampler has.
_Z_LOW, _Z_HIGH = -2.5758, 3.0902


def sequence_shift(token_count: int) -> float:
    """Where the logit-normal of a sequence of token_count tokens is centred, before the sigmoid."""
    slope = (_SHIFTS[1] - _SHIFTS[0]) / (_TOKENS[1] - _TOKENS[0])
    return _SHIFTS[0] + slope * (token_count - _TOKENS[0])


def stretched_logit_normal(z: Tensor, shift: float) -> Tensor:
    """Noise levels in 0..1 of standard normal draws z, any shape."""
    low, high = torch.sigmoid(torch.tensor([shift + _Z_LOW, shift + _Z_HIGH], dtype=z.dtype))
    level = (torch.sigmoid(z + shift) - low) / (high - low)
    mirrored = torch.where(level < MIN_LEVEL, 2 * MIN_LEVEL - level, level)
    return mirrored.clamp(0.0, 1.0)


def draw_levels(count: int, token_count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count] of clips (or audio tracks) of token_count tokens; three draws of the generator."""
    z = torch.randn(count, generator=generator)
    uniform = MIN_LEVEL + (1 - MIN_LEVEL) * torch.rand(count, generator=generator)
    is_uniform = torch.rand(count, generator=generator) < UNIFORM_SHARE
    return torch.where(is_uniform, uniform, stretched_logit_normal(z, sequence_shift(token_count)))
