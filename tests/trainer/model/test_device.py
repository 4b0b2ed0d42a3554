"""A full device has one name, and a GPU that torch cannot use another."""

import weakref

import pytest
import torch

from ltxtrain_trainer.errors import DeviceMemoryExhausted, DeviceUnusable
from ltxtrain_trainer.model.device import device_of, host_free_bytes, memory_for


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
)
def test_it_says_what_was_being_done_and_what_would_need_less(error: RuntimeError) -> None:
    text = "^The device has too little memory for loading the base model; set rank to 8.$"
    with (
        pytest.raises(DeviceMemoryExhausted, match=text) as caught,
        memory_for("loading the base model", "set rank to 8", 12),
    ):
        raise error
    assert caught.value.next_streamed_blocks == 12


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shapes"), memory_for("a step", "nothing"):
        raise RuntimeError("shapes do not match")


def test_what_the_failed_attempt_held_is_let_go() -> None:
    seen = []

    def attempt() -> None:
        held = torch.zeros(10)
        seen.append(weakref.ref(held))
        raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        with memory_for("a step", "lower it"):
            attempt()
    except DeviceMemoryExhausted:
        assert seen[0]() is None, "a handler may try something smaller"


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU")
def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu() -> None:
    with pytest.raises(DeviceUnusable, match=r"has a GPU that torch .* cannot use: .* Update the NVIDIA driver"):
        device_of(gpu_expected=True)
    assert device_of(gpu_expected=False) == torch.device("cpu")


def test_the_host_has_memory() -> None:
    assert 2**28 < host_free_bytes() < 2**50
