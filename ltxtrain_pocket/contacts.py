"""Where and when a shape meets an edge, told by the video tokens there.

Sound is made by what looks at the video's tokens in straight lines (keys and values), and when a shape bounces is a
straight line of no latent: it hangs on the products of shape, colour and way. Left alone, the video half keeps it in a
form that only its own later layers read, and the audio half learns that there are clicks but not when. Hence the video
half is asked to tell it, in fixed directions of its hidden states, of which the audio half makes its keys.

Letters: B clips, F latents, h w latent size, T = F h w tokens, D width; a latent is of STEPS frames, but for the first.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ltxtrain_pocket.model import WIDTH
from ltxtrain_pocket.world import FRAME_RATE, Scene, reach
from ltxtrain_trainer.geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, latent_frames
from ltxtrain_trainer.seeds import generator

SEED = 1309
STEPS, CELL = TEMPORAL_COMPRESSION, SPATIAL_COMPRESSION
# Blocks, from the end, whose hidden states tell of contacts, as they are where the audio looks.
TELLING = 2
# A contact is told of in the frames around it, less the further off.
REACH_FRAMES = 1.5
LEVEL = 4.0  # of a normalised hidden state along the direction of a contact's frame
# Pairs of the heads of an audio latent that looks at contacts: periods of 10 to 30 frames, and of 3 to 9.
HEARING = {1: slice(6, 12), 2: slice(0, 6)}
# Sizes of what all keys have, of what a contact's have besides, and of queries; and how sharply both heads look.
POINTED, HEARD, ASKED, SHARPNESS = 2.0, 3.0, 3.0, 1.25
TOUCHING = 10.0  # weight of a token that tells of one, over one that does not


@functools.cache
def directions(width: int) -> Tensor:
    """[STEPS, D], of length 1 and at right angles: one for each frame of a latent."""
    drawn = torch.randn(width, STEPS, generator=generator(SEED, str(width)), dtype=torch.float64)
    towards: Tensor = torch.linalg.qr(drawn).Q.T.float()
    return towards


def contacts(scene: Scene, frame_count: int) -> Tensor:
    """[T, STEPS], 0..1: how near in time each frame of a token is to a bounce of the shape off the edge there."""
    count, rows, columns = latent_frames(frame_count), scene.height // CELL, scene.width // CELL
    found = torch.zeros((count - 1) * STEPS, rows, columns)
    # Just after the clip's last frame there may be one that this frame is near to.
    for time in scene.bounces(frame_count + 1):
        state = scene.state(time)
        half_width, half_height = reach(scene.shape, state)
        top, bottom = _cells(state.y, half_height, rows)
        left, right = _cells(state.x, half_width, columns)
        edges = [
            (state.x - half_width, slice(top, bottom), slice(0, 1)),
            (scene.width - half_width - state.x, slice(top, bottom), slice(columns - 1, columns)),
            (state.y - half_height, slice(0, 1), slice(left, right)),
            (scene.height - half_height - state.y, slice(rows - 1, rows), slice(left, right)),
        ]
        _, down, across = min(edges, key=lambda edge: edge[0])
        for frame in range(max(math.ceil(time - REACH_FRAMES), 1), math.floor(time + REACH_FRAMES) + 1):
            if frame < frame_count:
                near = found[frame - 1, down, across]
                near.copy_(near.clamp(min=1 - abs(frame - time) / REACH_FRAMES))
    # Frame 1 is the first of the second latent; the first latent is one frame, of which nothing is told.
    later = found.unflatten(0, (count - 1, STEPS)).permute(0, 2, 3, 1)
    return torch.cat([torch.zeros_like(later[:1]), later]).flatten(0, 2)


def _cells(middle: float, half: float, count: int) -> tuple[int, int]:
    """The cells that a stretch covers, from and to."""
    return max(math.floor((middle - half) / CELL), 0), min(math.floor((middle + half) / CELL) + 1, count)


@contextmanager
def listening(transformer: Any) -> Iterator[list[Tensor]]:
    """The hidden states [B, T, D] of the telling blocks, of the last pass within."""
    heard: list[Tensor] = []
    blocks = transformer.transformer_blocks[-TELLING:]

    def listen(block: Any, inputs: tuple[Tensor, ...]) -> None:
        if len(heard) == len(blocks):
            heard.clear()
        heard.append(inputs[0])

    hooks = [block.norm3.register_forward_pre_hook(listen) for block in blocks]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def told(hidden: Tensor) -> Tensor:
    """[B, T, D] -> [B, T, STEPS]: what a token tells of contacts, 1 at one."""
    normalised = functional.rms_norm(hidden, hidden.shape[-1:])
    return normalised @ directions(hidden.shape[-1]).T / LEVEL


def spoken(telling: Tensor) -> Tensor:
    """[B, T, STEPS] -> [B, T, D]: what normalised hidden states have of it."""
    return LEVEL * telling @ directions(WIDTH)


def only_told(weight: Tensor) -> Tensor:
    """A matrix [N, D] that reads normalised hidden states, without what it makes of anything but contacts."""
    towards = directions(weight.shape[1])
    return weight @ towards.T @ towards


def telling_loss(heard: Sequence[Tensor], truth: Tensor) -> Tensor:
    """Mean square over what the truth [B, T, STEPS] has of contacts, of each block's telling."""
    touching = truth.sum(-1, keepdim=True) > 0
    weights = torch.where(touching, TOUCHING, 1.0)
    errors = [((told(hidden) - truth).square() * weights).sum() / (weights.sum() * STEPS) for hidden in heard]
    return torch.stack(errors).mean()


@torch.no_grad()
def point_at_contacts(transformer: Any) -> None:
    """Start two heads of the telling blocks looking from each audio latent at what is told of its own time.

    A contact's key has phases that run ahead by its frame's distance from the middle of its latent, and RoPE adds that
    of the latent: where the audio latent's time is the sum, the product is highest. One head's frequencies find the
    neighbourhood, the next one's the frame. A constant in the first head, which is the same for all tokens, keeps the
    norm of keys from making much of tokens that tell nothing.
    """
    rope, width = transformer.cross_attn_rope, transformer.config.audio_attention_head_dim
    pairs = width // 2
    frequencies = torch.pow(rope.theta, torch.linspace(0, 1, rope.dim // 2, dtype=torch.float64)) * math.pi / 2
    radians = (frequencies * 2 / rope.base_num_frames).reshape(-1, pairs)  # a second, by head
    seconds = (torch.arange(STEPS, dtype=torch.float64) - STEPS // 2) / FRAME_RATE
    for block in transformer.transformer_blocks[-TELLING:]:
        attention = block.video_to_audio_attn
        frames = directions(attention.to_k.in_features).double()
        attention.to_k.weight[:pairs] = 0
        attention.to_k.bias[:pairs] = POINTED
        for head, used in HEARING.items():
            phases = radians[head, used, None] * seconds
            for part, first in ((phases.cos(), head * width), (phases.sin(), head * width + pairs)):
                rows = slice(first + used.start, first + used.stop)
                attention.to_k.weight[rows] = (HEARD / LEVEL * part @ frames).float()
                attention.to_k.bias[rows] = 0
                attention.to_q.weight[rows] = 0
            attention.to_q.bias[head * width + used.start : head * width + used.stop] = ASKED
            whole = slice(head * width, (head + 1) * width)
            attention.norm_q.weight[whole] = attention.norm_k.weight[whole] = SHARPNESS
            attention.to_v.weight[head * width] = (frames.sum(0) / LEVEL).float()
            attention.to_v.bias[head * width] = 0
