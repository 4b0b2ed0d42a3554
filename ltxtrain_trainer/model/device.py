"""The device that a model is on: whether torch can use it, what is free on it, and one name for when nothing is."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ltxtrain_trainer.errors import DeviceMemoryExhausted, DeviceUnusable

# Texts of errors that are not torch.OutOfMemoryError and mean the same: of the driver, and of libraries beneath.
OUT_OF_MEMORY_MARKS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "NVML_SUCCESS == r")


def device_of(gpu_expected: bool) -> torch.device:
    """The GPU when one is assigned to this process, else the CPU. Raises DeviceUnusable when torch cannot use it."""
    if not gpu_expected and not torch.cuda.is_available():
        return torch.device("cpu")
    # Read when CUDA starts: segments that grow leave less unusable between them, and cuBLAS is told to repeat itself.
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise DeviceUnusable(
            f"This machine has a GPU that torch {torch.__version__}, built {built}, cannot use: "
            f"{str(error).splitlines()[0]} Update the NVIDIA driver (nvidia-smi shows its version and the newest CUDA "
            "that it knows), or install the torch of an older CUDA: pip install torch --index-url "
            "https://download.pytorch.org/whl/cu126."
        ) from None
    return torch.device("cuda")


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a GPU."""
    free: int = torch.cuda.mem_get_info(device)[0]
    return free


def host_free_bytes() -> int:
    """Bytes of host memory that are free or can be made so, within this process's control group."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        with open("/proc/meminfo") as table:
            available = next(int(line.split()[1]) * 1024 for line in table if line.startswith("MemAvailable:"))
        with open("/sys/fs/cgroup/memory.max") as limit, open("/sys/fs/cgroup/memory.current") as used:
            if (most := limit.read().strip()) != "max":
                available = min(available, int(most) - int(used.read()))
    except (OSError, StopIteration):
        pass
    return available


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in OUT_OF_MEMORY_MARKS)
    )


@contextmanager
def memory_for(doing: str, remedy: str, next_streamed_blocks: int | None = None) -> Iterator[None]:
    """Around what may find the device full. Raises DeviceMemoryExhausted with what was being done and the remedy.

    What the failed attempt had allocated is let go, so that a caller can try something smaller.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The traceback holds the tensors of every function that it passed through.
        traceback.clear_frames(error.__traceback__)
        raise DeviceMemoryExhausted(
            f"The device has too little memory for {doing}; {remedy}.", next_streamed_blocks=next_streamed_blocks
        ) from None
