"""Frozen blocks that stay in host memory and are copied to the device ahead of each use.

A frozen weight only ever goes one way: the copy on the device is dropped, never written back. Each block is one flat
run of pinned bytes, so that it comes in one transfer, into one of two buffers on the device: while a block is computed
from one, the next is on its way into the other, on a stream of its own. The order is known: ascending in a forward
pass, descending in a backward pass, where checkpointing computes each block once more just before its gradients.

diffusers' group offloading and accelerate's hooks put a block back as soon as its forward pass ends, and so take away
what the backward pass still needs; they also move the adapter inside the block, whose parameters are views of one
vector here. What is exact without streaming is exact with it: the bytes that are multiplied are the same.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

BUFFERS = 2
ALIGNMENT = 256


class Lane(Protocol):
    """Copies from the host to one device, beside what the device computes."""

    def host(self, size: int) -> Tensor:
        """Bytes in host memory that can be copied from."""

    def buffer(self, size: int) -> Tensor:
        """Bytes on the device."""

    def send(self, buffer: Tensor, source: Tensor) -> Any:
        """Start to fill a buffer once nothing computed so far reads it any more; a token for await_."""

    def await_(self, token: Any) -> None:
        """Whatever is computed from now on sees the buffer filled."""

    def close(self) -> None: ...


class PlainLane:
    """Copies that are done when send returns: for a device without streams."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def host(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def buffer(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8, device=self._device)

    def send(self, buffer: Tensor, source: Tensor) -> Any:
        buffer[: len(source)].copy_(source)

    def await_(self, token: Any) -> None:
        return

    def close(self) -> None:
        return


class CudaLane(PlainLane):
    """Copies from pinned memory on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._copies: Any = torch.cuda.Stream(device)
        self._runtime: Any = torch.cuda.cudart()
        self._pinned: list[Tensor] = []

    def host(self, size: int) -> Tensor:
        # Registered by hand: the caching host allocator would round half a gigabyte up to a whole one.
        memory = super().host(size)
        if int(self._runtime.cudaHostRegister(memory.data_ptr(), size, 0)) == 0:
            self._pinned.append(memory)
        else:
            log.warning("host memory cannot be pinned; streamed blocks come more slowly")
        return memory

    def send(self, buffer: Tensor, source: Tensor) -> Any:
        computed = torch.cuda.Event()
        computed.record(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(computed)
            buffer[: len(source)].copy_(source, non_blocking=True)
            filled = torch.cuda.Event()
            filled.record(self._copies)
        return filled

    def await_(self, token: Any) -> None:
        torch.cuda.current_stream(self._device).wait_event(token)

    def close(self) -> None:
        torch.cuda.synchronize(self._device)
        for memory in self._pinned:
            self._runtime.cudaHostUnregister(memory.data_ptr())
        self._pinned.clear()


@dataclass(frozen=True)
class _Piece:
    """One plain tensor of a block: who holds it under which name, and where its bytes are in the block's run."""

    holder: Any
    name: str
    offset: int
    dtype: torch.dtype
    shape: torch.Size

    def place(self, run: Tensor | None) -> None:
        """Have the holder see its bytes in a run, or nothing at all, so that a use out of turn fails."""
        device = self._held().device if run is None else run.device
        if run is None:
            tensor = torch.empty(0, dtype=self.dtype, device=device)
        else:
            size = self.shape.numel() * self.dtype.itemsize
            tensor = run[self.offset : self.offset + size].view(self.dtype).view(self.shape)
        if self.name == "data":
            self.holder.data = tensor
        else:
            setattr(self.holder, self.name, tensor)

    def _held(self) -> Tensor:
        held: Tensor = getattr(self.holder, self.name)
        return held


@dataclass
class _Block:
    pieces: list[_Piece]
    run: Tensor  # uint8 in host memory


class BlockStream:
    """Streams the blocks that it was given; attach it when all are."""

    def __init__(self, device: torch.device, lane: Lane | None = None) -> None:
        self._lane: Lane = lane or (CudaLane(device) if device.type == "cuda" else PlainLane(device))
        self._blocks: dict[int, _Block] = {}
        self._buffers: list[Tensor] = []
        self._held: list[int | None] = [None] * BUFFERS  # the block in each buffer
        self._tokens: list[Any] = [None] * BUFFERS  # of a copy that nobody has waited for yet
        self._newest = 0  # the buffer that was used last

    @property
    def host_bytes(self) -> int:
        return sum(len(block.run) for block in self._blocks.values())

    @property
    def device_bytes(self) -> int:
        return sum(len(buffer) for buffer in self._buffers)

    def take(self, index: int, block: nn.Module) -> None:
        """Moves the frozen weights of a block (before it has an adapter) to the host."""
        pieces, size = [], 0
        for holder, name in _plain_tensors(block):
            tensor = getattr(holder, name)
            pieces.append(_Piece(holder, name, size, tensor.dtype, tensor.shape))
            size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
        run = self._lane.host(size)
        for piece in pieces:
            held = piece._held().contiguous()
            run[piece.offset : piece.offset + held.nbytes].copy_(held.reshape(-1).view(torch.uint8))
            piece.place(None)
        self._blocks[index] = _Block(pieces, run)

    def attach(self, blocks: nn.ModuleList) -> None:
        """From now on each block that was taken is on the device whenever it runs."""
        largest = max(len(block.run) for block in self._blocks.values())
        self._buffers = [self._lane.buffer(largest) for _ in range(BUFFERS)]
        self._order = sorted(self._blocks)
        for index in self._order:
            blocks[index].register_forward_pre_hook(lambda module, inputs, index=index: self._use(index))

    def close(self) -> None:
        self._lane.close()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _use(self, index: int) -> None:
        """Before a block runs: its bytes are there, and those of the next are on their way."""
        if index not in self._held:
            self._fetch(index)
        buffer = self._held.index(index)
        if self._tokens[buffer] is not None:
            self._lane.await_(self._tokens[buffer])
            self._tokens[buffer] = None
        self._newest = buffer
        following = self._next(index)
        if following is not None and following not in self._held:
            self._fetch(following)

    def _fetch(self, index: int) -> None:
        buffer = (self._newest + 1) % BUFFERS
        if (evicted := self._held[buffer]) is not None:
            for piece in self._blocks[evicted].pieces:
                piece.place(None)
        block = self._blocks[index]
        self._tokens[buffer] = self._lane.send(self._buffers[buffer], block.run)
        for piece in block.pieces:
            piece.place(self._buffers[buffer])
        self._held[buffer] = index

    def _next(self, index: int) -> int | None:
        """The block that will be used after this one, if it is not one of the two that are held anyway."""
        place = self._order.index(index)
        if torch._C._current_graph_task_id() >= 0:  # within a backward pass
            return self._order[place - 1] if place else None
        if place + 1 < len(self._order):
            return self._order[place + 1]
        # After a forward pass with gradients the way back begins here; without, another forward pass may follow.
        return None if torch.is_grad_enabled() else self._order[0]


def _plain_tensors(block: nn.Module) -> Iterator[tuple[Any, str]]:
    """Holder and attribute of each plain tensor of a block's weights: of a quantized one, its parts."""
    for parameter in block.parameters():
        if hasattr(parameter, "__tensor_flatten__"):
            yield from _parts(parameter)
        else:
            yield parameter, "data"


def _parts(tensor: Any) -> Iterator[tuple[Any, str]]:
    for name in tensor.__tensor_flatten__()[0]:
        part = getattr(tensor, name)
        if hasattr(part, "__tensor_flatten__"):
            yield from _parts(part)
        else:
            yield tensor, name


def spread(streamed: int, blocks: int) -> list[int]:
    """Which of the blocks are streamed: evenly apart, so that those that stay give the copies time."""
    return [index * blocks // streamed for index in range(streamed)] if streamed else []
