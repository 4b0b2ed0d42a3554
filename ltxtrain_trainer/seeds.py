"""Randomness as a function of where it is used, never of what was drawn before.

A run that resumes, or that splits its batch over more workers, draws what the undisturbed run on one worker draws.
All draws are made on the CPU, so that they do not depend on the device either.
"""

import functools
import hashlib

import torch


def generator(seed: int, purpose: str, *position: int | str) -> torch.Generator:
    """A generator for each purpose and position, seeded by the first 4 bytes of the SHA-256 of both."""
    name = "/".join(map(str, (seed, purpose, *position)))
    # torch's Mersenne twister takes no more than 32 bits of a seed.
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big"))


@functools.lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    """The order of count samples in an epoch."""
    return tuple(torch.randperm(count, generator=generator(seed, "order", epoch)).tolist())


def sample_at(seed: int, position: int, count: int) -> int:
    """Index of the sample, of count, at a position (from 0) of the endless sequence of shuffled epochs."""
    epoch, index = divmod(position, count)
    return epoch_order(seed, epoch, count)[index]
