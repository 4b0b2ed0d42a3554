"""A team of workers that share the tokens of each clip, and what they hand each other. Imports no diffusers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from ltxtrain_trainer.errors import PeerLost


@contextmanager
def together() -> Iterator[None]:
    """Around what all workers do together: none of the libraries beneath has an error of its own for a lost peer."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise PeerLost(f"another worker of the training does not answer: {str(error).splitlines()[0]}") from error


@dataclass(frozen=True)
class Team:
    """Workers that share each clip, as one of them sees it; group: of torch.distributed, None for all workers."""

    rank: int
    size: int
    group: Any = None

    def counts(self, length: int) -> tuple[int, ...]:
        """Tokens of each worker, in order; the first ones have one more where they do not come out even."""
        if length < self.size:
            raise ValueError(f"{length} tokens are too few for {self.size} workers to share.")
        even, over = divmod(length, self.size)
        return tuple(even + (rank < over) for rank in range(self.size))

    def own(self, tensor: Tensor, dim: int) -> Tensor:
        """This worker's part of a tensor of all tokens."""
        parts: tuple[Tensor, ...] = tensor.split(self.counts(tensor.shape[dim]), dim)
        return parts[self.rank]

    def exchange(self, parts: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, ...]:
        """Send each worker its part; what each sent here, flat, of these sizes. Raises PeerLost."""
        sent = torch.cat([part.flatten() for part in parts])
        received = sent.new_empty(sum(sizes))
        with together():
            torch.distributed.all_to_all_single(
                received, sent, list(sizes), [part.numel() for part in parts], group=self.group
            )
        from_each: tuple[Tensor, ...] = received.split(list(sizes))
        return from_each
