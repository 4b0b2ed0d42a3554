"""Sequence parallelism: a team of workers that share the tokens of each clip, so that one clip a step is faster.

Each worker holds its part of every modality's tokens through all blocks. Norms, linear layers and attention to the
prompt need no other tokens. Attention among tokens does: before it, queries, keys and values go from all heads of a
worker's own tokens to all tokens of its share of the heads, and the result goes back (DeepSpeed-Ulysses' all-to-all).
So every head is computed by one worker, of all tokens and as without a team, and what crosses workers is only copied;
activations of a worker shrink with its part. The adapter's gradients of all parts are summed as those of clips are.

FSDP2 was the other choice. It splits weights, which streamed blocks keep off a small card already; with one clip a step
it makes nothing faster, since each of its ranks needs a clip of its own; and it cannot split the tensors of torchao and
bitsandbytes. diffusers' own context parallelism is made for inference: its backward pass takes queries and keys to be
equally many, which those of attention between sound and picture are not, and computes each attention once more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_ltx2 import (
    LTX2Attention,
    LTX2PerturbedAttnProcessor,
    apply_split_rotary_emb,
)
from torch import Tensor
from torch.autograd import Function

from ltxtrain_trainer.model.team import Team


@dataclass(frozen=True)
class Placed:
    """Rotary angles of a worker's own tokens of a modality, and where all of them are; in place of the angles alone."""

    angles: tuple[Tensor, Tensor]
    team: Team
    counts: tuple[int, ...]


class SharedAttention(LTX2PerturbedAttnProcessor):  # type: ignore[misc]
    """The attention of LTX 2.3, among the tokens of a team where they are placed; without positions it is the prompt's.

    Where tokens are comes with their angles and not from outside: a checkpointed block is computed once more when the
    call that placed them is long over.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        query_rotary_emb: Any = None,
        key_rotary_emb: Any = None,
        perturbation_mask: Tensor | None = None,
        all_perturbed: bool | None = None,
    ) -> Tensor:
        if not isinstance(query_rotary_emb, Placed):
            output: Tensor = super().__call__(
                attn,
                hidden_states,
                encoder_hidden_states,
                attention_mask,
                query_rotary_emb,
                key_rotary_emb,
                perturbation_mask,
                all_perturbed,
            )
            return output
        asking, asked = query_rotary_emb, key_rotary_emb or query_rotary_emb
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = apply_split_rotary_emb(attn.norm_q(attn.to_q(hidden_states)), asking.angles)
        key = apply_split_rotary_emb(attn.norm_k(attn.to_k(context)), asked.angles)
        heads = [part.unflatten(2, (attn.heads, -1)) for part in (query, key, attn.to_v(context))]
        team, counts = asking.team, (asking.counts, asked.counts, asked.counts)
        query, key, value = _apply(_ToHeads, team, counts, *heads)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        (own,) = _apply(_ToTokens, team, counts[:1], attended.to(query.dtype))
        gates = 2.0 * torch.sigmoid(attn.to_gate_logits(hidden_states))
        gated: Tensor = attn.to_out[0]((own * gates[..., None]).flatten(2))
        return gated


def share_attention(transformer: Any) -> None:
    """Have the transformer's attention look for placed tokens; without any it computes as before."""
    for module in transformer.modules():
        if isinstance(module, LTX2Attention) and not isinstance(module.processor, SharedAttention):
            module.set_processor(SharedAttention())


@contextmanager
def placed(team: Team, positions: Sequence[tuple[Any, int]]) -> Iterator[None]:
    """Have rotary embeddings, each of a modality of so many tokens, say for one call where the tokens are."""

    def placing(counts: tuple[int, ...]) -> Any:
        return lambda module, inputs, angles: Placed(angles, team, counts)

    hooks = [rope.register_forward_hook(placing(team.counts(length))) for rope, length in positions]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def whole(team: Team, own: Tensor, length: int) -> Tensor:
    """The tokens [B, T, C] of which this worker has its own; gradients flow to these alone."""
    gathered: Tensor = _apply(_Whole, team, team.counts(length), own)
    return gathered


# Letters: B clips, T tokens of a modality, t those of one worker, H heads, h those of one worker, D width of a head.
Counts = tuple[tuple[int, ...], ...]


def _to_heads(team: Team, counts: Counts, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each [B, t, H, D] -> [B, T, h, D]; counts: tokens of each worker, for each tensor."""
    by_worker = zip(*(tensor.chunk(team.size, 2) for tensor in tensors), strict=True)
    parts = [torch.cat([part.flatten() for part in parts]) for parts in by_worker]
    shapes = [
        [(len(tensor), count[rank], tensor.shape[2] // team.size, tensor.shape[3]) for rank in range(team.size)]
        for tensor, count in zip(tensors, counts, strict=True)
    ]
    return _joined(team, parts, shapes, dim=1)


def _to_tokens(team: Team, counts: Counts, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Each [B, T, h, D] -> [B, t, H, D]; the way back of _to_heads."""
    by_worker = zip(*(tensor.split(count, 1) for tensor, count in zip(tensors, counts, strict=True)), strict=True)
    parts = [torch.cat([part.flatten() for part in parts]) for parts in by_worker]
    shapes = [
        [(len(tensor), count[team.rank], *tensor.shape[2:])] * team.size
        for tensor, count in zip(tensors, counts, strict=True)
    ]
    return _joined(team, parts, shapes, dim=2)


def _joined(
    team: Team, parts: Sequence[Tensor], shapes: Sequence[Sequence[tuple[int, ...]]], dim: int
) -> tuple[Tensor, ...]:
    """Exchange parts in one message a worker, and put together what came, for each tensor by worker."""
    numels = [[torch.Size(shape).numel() for shape in by_worker] for by_worker in shapes]
    received = team.exchange(parts, [sum(sizes) for sizes in zip(*numels, strict=True)])
    starts = [[0, *accumulate(sizes)] for sizes in zip(*numels, strict=True)]
    return tuple(
        torch.cat(
            [
                received[rank][starts[rank][index] : starts[rank][index + 1]].view(shape)
                for rank, shape in enumerate(by_worker)
            ],
            dim,
        )
        for index, by_worker in enumerate(shapes)
    )


def _apply(function: Any, *arguments: Any) -> Any:
    return function.apply(*arguments)


class _ToHeads(Function):
    @staticmethod
    def forward(ctx: Any, team: Team, counts: Counts, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.team, ctx.counts = team, counts
        return _to_heads(team, counts, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *_to_tokens(ctx.team, ctx.counts, gradients)


class _ToTokens(Function):
    @staticmethod
    def forward(ctx: Any, team: Team, counts: Counts, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.team, ctx.counts = team, counts
        return _to_tokens(team, counts, tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return None, None, *_to_heads(ctx.team, ctx.counts, gradients)


class _Whole(Function):
    @staticmethod
    def forward(ctx: Any, team: Team, counts: tuple[int, ...], own: Tensor) -> Tensor:
        ctx.team = team
        batch, _, width = own.shape
        received = team.exchange([own] * team.size, [batch * count * width for count in counts])
        return torch.cat([part.view(batch, -1, width) for part in received], 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, ctx.team.own(gradient, 1)
