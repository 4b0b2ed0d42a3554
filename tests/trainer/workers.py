"""Workers of a training as processes of their own. No test in here.

They are forked from one process that has imported what they need: importing it is most of what a short training takes.
"""

import multiprocessing
import socket
from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.spawn import start_processes

PRELOADED = ["diffusers.models.transformers.transformer_ltx2", "ltxtrain_trainer.job", "tests.trainer.test_job"]


def run_workers(work: Callable[..., None], count: int, *arguments: Any) -> None:
    """Run work(rank, *arguments) in each of count processes, on one thread each. Raises what one of them raises."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    start_processes(_on_one_thread, (work, *arguments), nprocs=count, start_method="forkserver")


def free_address() -> str:
    """host:port where workers can find each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def _on_one_thread(rank: int, work: Callable[..., None], *arguments: Any) -> None:
    torch.set_num_threads(1)
    work(rank, *arguments)
