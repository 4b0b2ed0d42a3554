"""Train the pocket model's transformer to continue clips of the world; the objective is the product's own.

Each clip of a batch has a prefix of its own, of none, 1 or 9 frames, and its caption is left out now and then, so
that guidance by text has something to differ from. Most batches are windows about the shape: a part of the latents
costs a fraction of the whole, and motion is the same everywhere. The others are whole pictures, where motion meets
edges.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltxtrain_pocket.least_squares import encode_by_components
from ltxtrain_pocket.pretraining import Plan, pretrain
from ltxtrain_pocket.world import Scene, draw_scene, render
from ltxtrain_trainer.data.encoded import PromptEmbedding
from ltxtrain_trainer.geometry import SPATIAL_COMPRESSION, latent_frames
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.seeds import generator
from ltxtrain_trainer.training.losses import draw_levels
from ltxtrain_trainer.training.objective import masked_loss, objective, pack_video

SCENES_SEED = 1302
CLIPS = 600
SHARD = 50
FRAMES = 25
WIDTH, HEIGHT = 512, 288

PLAN = Plan(name="transformer", steps=3000, learning_rate=1.5e-3)
SEED = 1303
TOKENS_A_STEP = 800
FRAME_COUNTS = ((17, 0.85), (25, 0.15))
PREFIXES = ((0, 0.04), (1, 0.06), (9, 0.9))
WINDOW = (5, 8)  # latent rows and columns
WHOLE = 0.25  # of the steps
WITHOUT_CAPTION = 0.1
# Seconds, rows and columns in pixels from a token to the one that a head looks at, by block and head. The first latent
# is one frame and the others eight, so that the second is less far from the first than the third from the second.
_LAST, _FIRST, _CELL = -8 / 24, -4.5 / 24, 32.0
OFFSETS: tuple[dict[int, tuple[float, float, float]], ...] = (
    {1: (_LAST, 0, 0), 2: (_FIRST, 0, 0), 3: (_LAST + _FIRST, 0, 0)},
    {1: (_LAST, 0, 0), 2: (_LAST, 0, _CELL), 3: (_LAST, 0, -_CELL)},
    {1: (_LAST, 0, 0), 2: (_LAST, _CELL, 0), 3: (_LAST, -_CELL, 0)},
    {1: (_LAST, 0, 0), 2: (0, 0, _CELL), 3: (0, _CELL, 0)},
)
POINTED, SHARPNESS, OPEN = 3.0, 1.5, 0.7


def scene_of(index: int) -> Scene:
    return draw_scene([SCENES_SEED, index], width=WIDTH, height=HEIGHT, frame_count=FRAMES)


def encode_world(vae: Any, folder: Path, clips: int = CLIPS) -> Path:
    """Raw (not normalised) latents of the first clips of the world, bfloat16 [n, 128, F, h, w], in folder/latents."""
    shards = folder / "latents"
    shards.mkdir(parents=True, exist_ok=True)
    for first in range(0, clips, SHARD):
        file = shards / f"{first:06}.safetensors"
        if file.exists():
            continue
        latents = torch.stack([encode_clip(vae, render(scene_of(first + index), FRAMES)) for index in range(SHARD)])
        part = file.with_suffix(".part")
        safetensors.torch.save_file({"latents": latents}, part)
        part.replace(file)
        print(f"latents {first + SHARD}/{clips}", flush=True)
    return shards


@torch.no_grad()
def encode_clip(vae: Any, frames: NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return encode_by_components(vae.encoder, pixels)[0].bfloat16()


def read_latents(shards: Path) -> Tensor:
    """All clips, bfloat16 [n, 128, F, h, w]."""
    return torch.cat([safetensors.torch.load_file(file)["latents"] for file in sorted(shards.glob("*.safetensors"))])


class FastVelocityModel(VelocityModel):
    """In bfloat16 on a CPU too."""

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def train_transformer(
    transformer: nn.Module,
    latents: Tensor,
    prompts: dict[str, PromptEmbedding],
    scenes: Sequence[Scene],
    folder: Path,
) -> None:
    """latents [n, 128, F, h, w] of the scenes, normalised; prompts: of each caption, and of what stands for none."""
    transformer.requires_grad_(True)
    model = FastVelocityModel(transformer)
    captions = [scene.caption for scene in scenes]
    others = sorted(set(prompts) - set(captions))

    def losses(step: int) -> dict[str, Tensor]:
        draws = generator(SEED, "batch", step)
        frames = latent_frames(_pick(FRAME_COUNTS, draws))
        whole = _uniform(draws) < WHOLE
        size = (latents.shape[3], latents.shape[4]) if whole else WINDOW
        shape = (frames, *size)
        count = max(TOKENS_A_STEP // (frames * size[0] * size[1]), 1)
        chosen = torch.randint(len(latents), (count,), generator=draws).tolist()
        clips = torch.stack([_window(latents[index, :, :frames], scenes[index], size, draws) for index in chosen])
        clean = pack_video(clips)
        tokens = clean.shape[1]
        prefix = torch.tensor([_prefix_tokens(draws, shape) for _ in chosen])
        texts = [
            others[int(_uniform(draws) * len(others))] if _uniform(draws) < WITHOUT_CAPTION else captions[index]
            for index in chosen
        ]
        asked = objective(
            clean,
            torch.randn(clean.shape, generator=draws),
            draw_levels(count, tokens, draws),
            torch.arange(tokens) < prefix[:, None],
            torch.stack([prompts[text].video.float() for text in texts]),
        )
        velocity, _ = model(asked.stream, None, frame_rate=24.0, latent_shape=shape)
        each = masked_loss(velocity, asked.target, asked.counts)
        return {"loss": each.mean(), "continued": each.detach()[prefix > 0].sum() / (prefix > 0).sum().clamp(min=1)}

    pretrain(transformer, PLAN, losses, folder)


@torch.no_grad()
def point_heads(transformer: Any) -> None:
    """Start some heads of self-attention looking at a fixed place, as seen from each token: see OFFSETS.

    A query whose phases run ahead of its key's by what RoPE turns between two places has its peak there. Which heads
    look where is found late by gradient descent, and is the same in every world where things move. Attention and
    feed-forward are let through from the start: the residual gates would otherwise begin near zero.
    """
    rope, width = transformer.rope, transformer.config.attention_head_dim
    frequencies = torch.pow(rope.theta, torch.linspace(0, 1, rope.dim // 6, dtype=torch.float64)) * math.pi / 2
    extents = torch.tensor([rope.base_num_frames, rope.base_height, rope.base_width], dtype=torch.float64)
    for block, offsets in zip(transformer.transformer_blocks, OFFSETS, strict=False):
        block.scale_shift_table[[2, 5]] = OPEN
        attention = block.attn1
        for head, offset in offsets.items():
            turn = torch.tensor(offset, dtype=torch.float64) / extents * 2
            phases = (frequencies[:, None] * turn).flatten().reshape(transformer.config.num_attention_heads, -1)[head]
            rows = slice(head * width, (head + 1) * width)
            attention.to_q.bias[rows] = POINTED * torch.cat([phases.cos(), phases.sin()]).float()
            attention.to_k.bias[rows] = POINTED * torch.cat([torch.ones_like(phases), torch.zeros_like(phases)]).float()
            attention.norm_q.weight[rows] = attention.norm_k.weight[rows] = SHARPNESS


def _window(clip: Tensor, scene: Scene, size: tuple[int, int], draws: torch.Generator) -> Tensor:
    """Part of a clip's latents, with the shape of its middle somewhere within; the whole where that is the size."""
    state = scene.state(clip.shape[1] * 4)
    starts = []
    for place, length, part in zip((state.y, state.x), clip.shape[2:], size, strict=True):
        cell = int(place / SPATIAL_COMPRESSION - _uniform(draws) * part)
        starts.append(min(max(cell, 0), length - part))
    return clip[:, :, starts[0] : starts[0] + size[0], starts[1] : starts[1] + size[1]]


def _pick(choices: tuple[tuple[int, float], ...], draws: torch.Generator) -> int:
    weights = torch.tensor([share for _, share in choices])
    return choices[int(torch.multinomial(weights, 1, generator=draws))][0]


def _uniform(draws: torch.Generator) -> float:
    return float(torch.rand((), generator=draws))


def _prefix_tokens(draws: torch.Generator, shape: tuple[int, int, int]) -> int:
    frames = _pick(PREFIXES, draws)
    whole = 0 if frames == 0 else min(latent_frames(frames), shape[0] - 1)
    return whole * shape[1] * shape[2]
