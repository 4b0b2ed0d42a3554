"""Several workers that train one adapter: who takes which clips of a batch, and sums over all of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from ltxtrain_trainer.model.team import Team, together

Value = TypeVar("Value")

# Longer than any pause of the first worker: it samples previews and writes checkpoints while the others wait.
TIMEOUT = timedelta(hours=2)


@dataclass(frozen=True)
class Worker:
    """One of count workers; each holds the whole model and computes its share of every batch.

    team: the workers that share the tokens of each clip with this one; None: its clips are its own.
    """

    rank: int = 0
    count: int = 1
    team: Team | None = None

    @property
    def team_size(self) -> int:
        return self.team.size if self.team else 1

    @property
    def shares(self) -> int:
        """Parts that a batch is divided into, one a team."""
        return self.count // self.team_size

    @property
    def place(self) -> int:
        """The part of a batch that is this worker's, or its team's."""
        return self.rank // self.team_size

    def share(self, batch_size: int) -> range:
        """Indices of the global batch that this worker computes. Raises ValueError when they do not divide evenly."""
        if batch_size % self.shares:
            raise ValueError(f"{self.shares} workers cannot share a batch of {batch_size} clips evenly.")
        size = batch_size // self.shares
        return range(self.place * size, (self.place + 1) * size)

    def sum(self, tensor: Tensor) -> None:
        """The sum over all workers, in place; the same bits on each. Raises PeerLost."""
        if self.count > 1:
            with together():
                torch.distributed.all_reduce(tensor)

    def told(self, value: Value) -> Value:
        """The first worker's value, on each of them. Raises PeerLost."""
        if self.count == 1:
            return value
        held = [value]
        with together():
            torch.distributed.broadcast_object_list(held, src=0)
        return held[0]

    def collected(self, value: Value) -> list[Value]:
        """All workers' values by rank on the first, and none on the others. Raises PeerLost."""
        if self.count == 1:
            return [value]
        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        with together():
            torch.distributed.gather_object(value, found)
        return found or []

    def exchanged(self, value: Value) -> list[Value]:
        """All workers' values by rank, on each of them, once every one has come to this point. Raises PeerLost."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with together():
            torch.distributed.all_gather_object(found, value)
        return found

    def least(self, value: int, device: torch.device) -> int:
        """The smallest of all workers' values, on each of them. Raises PeerLost."""
        if self.count == 1:
            return value
        found = torch.tensor([value], dtype=torch.int64, device=device)
        with together():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return int(found.item())


ALONE = Worker()


@contextmanager
def join(
    rank: int,
    count: int,
    address: str,
    device: torch.device,
    *,
    team_size: int = 1,
    timeout: timedelta = TIMEOUT,
) -> Iterator[Worker]:
    """A worker among count, found through the first one's free `host:port`; by NCCL on GPUs, by Gloo on CPUs.

    team_size: neighbours that share the tokens of each clip. Raises PeerLost.
    """
    if count == 1:
        yield Worker()
        return
    with together():
        torch.distributed.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{address}",
            rank=rank,
            world_size=count,
            timeout=timeout,
        )
    try:
        yield Worker(rank, count, _team(rank, count, team_size, timeout))
    finally:
        torch.distributed.destroy_process_group()


def _team(rank: int, count: int, size: int, timeout: timedelta) -> Team | None:
    if size == 1:
        return None
    with together():
        # Every worker has to ask for every group.
        groups = [
            torch.distributed.new_group(list(range(first, first + size)), timeout=timeout)
            for first in range(0, count, size)
        ]
    return Team(rank % size, size, groups[rank // size])
