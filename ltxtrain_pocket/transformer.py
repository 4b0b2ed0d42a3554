"""Train the pocket model's transformer to continue clips of the world; the objective is the product's own.

Each clip of a batch has a prefix of its own, of none, 1 or 9 frames, and is there with its caption and without, so
that guidance by text has something to differ from. Most batches are of small pictures: they cost a fraction, and shape,
motion and edges are the same in them. Parts of large pictures would not do: positions are relative, so that the model
could not tell their ends from edges. Of a few hundred clips the model learns each by heart, so there are many.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ltxtrain_pocket.contacts import STEPS, contacts, listening, telling_loss
from ltxtrain_pocket.drawing import render
from ltxtrain_pocket.least_squares import encode_by_components
from ltxtrain_pocket.pretraining import Plan, mostly_noise, pretrain
from ltxtrain_pocket.world import Motion, Scene, draw_scene, turning
from ltxtrain_trainer.data.encoded import PromptEmbedding
from ltxtrain_trainer.data.prompt_text import with_trigger
from ltxtrain_trainer.geometry import latent_frames
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.model.video_half import is_audio
from ltxtrain_trainer.seeds import generator
from ltxtrain_trainer.training.losses import draw_levels
from ltxtrain_trainer.training.objective import masked_loss, objective, pack_video

SHARD = 200  # clips a file of latents


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Clips of one size of the world. share: of the steps; width and height in pixels; turns: whether grounds do."""

    name: str
    seed: int
    count: int
    frame_count: int
    width: int
    height: int
    share: float
    turns: bool = False
    motions: tuple[Motion, ...] = tuple(Motion)

    def scene(self, index: int) -> Scene:
        seed, size = [self.seed, index], {"width": self.width, "height": self.height}
        scene = draw_scene(seed, **size, frame_count=self.frame_count, motions=self.motions)
        return turning(scene, [*seed, 1]) if self.turns else scene


SMALL = Pictures(name="small", seed=1304, count=16_000, frame_count=17, width=256, height=160, share=0.4)
LARGE = Pictures(name="large", seed=1302, count=8_000, frame_count=25, width=512, height=288, share=0.2)
SMALL_TURNING = replace(SMALL, name="small-turning", seed=1307, count=6_000, share=0.2, turns=True)
LARGE_TURNING = replace(LARGE, name="large-turning", seed=1308, count=800, share=0.1, turns=True)
LARGE_BOUNCING = replace(
    LARGE, name="large-bouncing", seed=1309, count=3_000, share=0.1, motions=(Motion.BOUNCE, Motion.FALL)
)
WORLDS = (SMALL, LARGE, SMALL_TURNING, LARGE_TURNING, LARGE_BOUNCING)

PLAN = Plan(name="transformer", steps=50_000, learning_rate=1.0e-3)
SEED = 1303
TOKENS_A_STEP = 900
FRAME_COUNTS = ((17, 0.85), (25, 0.15))  # of clips that have as many
PREFIXES = ((0, 0.04), (1, 0.06), (9, 0.9))
# Guidance takes what a caption changes times three. Where the opening says all, that should be nothing: each clip of a
# batch is there with its caption and without one, and what the two differ by is part of the loss, by this much.
AGREEMENT, OPENING = 4.0, 9
# Words before a caption, of which the clip shows nothing: a trigger phrase must not disturb the model.
LEADS = (
    "soft light,", "an old film,", "slowly,", "in the morning,", "close up,", "a study in colour,", "calm,", "outside,",
    "TOK,", "sks style,", "handheld,", "winter comes,", "wide angle,", "hand made,", "a toy,", "once more,",
)  # fmt: skip
LED, LEADS_EACH = 0.4, 4
# Where the shape goes is decided while nearly all is noise: see .pretraining.mostly_noise.
DECIDING, UNDECIDED = 0.5, 0.85
TOLD = 10.0  # weight of what the tokens tell of bounces: see .contacts
BOUNCING = 2.5  # times as often as others: a bounce is the hardest to learn, since its edge is far from the shape
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

Choice = TypeVar("Choice")


def encode_world(vae: Any, folder: Path, pictures: Pictures) -> None:
    """Raw (not normalised) latents of all clips, bfloat16 [n, 128, F, h, w], in folder/latents/<name>-<first>."""
    shards = folder / "latents"
    shards.mkdir(parents=True, exist_ok=True)
    for first in range(0, pictures.count, SHARD):
        file = shards / f"{pictures.name}-{first:06}.safetensors"
        if file.exists():
            continue
        scenes = [pictures.scene(first + index) for index in range(SHARD)]
        latents = torch.stack([encode_clip(vae, render(scene, pictures.frame_count)) for scene in scenes])
        part = file.with_suffix(".part")
        safetensors.torch.save_file({"latents": latents}, part)
        part.replace(file)
        print(f"latents of {pictures.name} pictures {first + SHARD}/{pictures.count}", flush=True)


@torch.no_grad()
def encode_clip(vae: Any, frames: NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return encode_by_components(vae.encoder, pixels)[0].bfloat16()


def read_latents(folder: Path, pictures: Pictures, count: int | None = None) -> Tensor:
    """All clips, or the first of them, bfloat16 [n, 128, F, h, w]."""
    files = sorted((folder / "latents").glob(f"{pictures.name}-[0-9]*.safetensors"))
    files = files if count is None else files[: count // SHARD]
    return torch.cat([safetensors.torch.load_file(file)["latents"] for file in files])


def led(caption: str) -> list[str]:
    """The caption after each of some words that say nothing of its clip, the same for each run."""
    return [with_trigger(caption, lead) for lead in random.Random(caption).sample(LEADS, LEADS_EACH)]


def chances(scenes: Sequence[Scene]) -> Tensor:
    """How often each of the clips is taken [n], as shares that need no sum."""
    return torch.tensor([BOUNCING if scene.motion is Motion.BOUNCE else 1.0 for scene in scenes])


@dataclass(frozen=True)
class World:
    """Clips of one size: normalised latents [n, 128, F, h, w], and of each its scene and how often it is taken [n]."""

    pictures: Pictures
    latents: Tensor
    scenes: Sequence[Scene]
    chances: Tensor


def channel_weights(deviation: Tensor) -> Tensor:
    """Weights [128] of mean 1 for the deviations of raw latents: the root of what an error is in pixels.

    The encoder brings its components half way to equal deviations, so that a normalised channel counts in pixels as its
    raw deviation squared. Unweighted, four fifths of the loss would be details that nobody sees; weighted in full,
    nothing but the first components would be learned.
    """
    counts = deviation.square()
    return counts / counts.mean()


def train_transformer(
    transformer: nn.Module,
    worlds: Sequence[World],
    weights: Tensor,
    prompts: dict[str, PromptEmbedding],
    folder: Path,
) -> None:
    """weights [128]: of each channel's squares; prompts: of captions, plain and led, and of what stands for none."""
    for name, parameter in transformer.named_parameters():
        parameter.requires_grad_(not is_audio(name))
    model = VelocityModel(transformer)
    scale = weights.sqrt()
    captioned = {scene.caption for world in worlds for scene in world.scenes}
    others = sorted(set(prompts) - captioned - {text for caption in captioned for text in led(caption)})

    def caption_of(caption: str, draws: torch.Generator) -> str:
        return led(caption)[int(_uniform(draws) * LEADS_EACH)] if _uniform(draws) < LED else caption

    def losses(step: int) -> dict[str, Tensor]:
        draws = generator(SEED, "batch", step)
        world = pick([(world, world.pictures.share) for world in worlds], draws)
        latents = world.latents
        frames = min(latent_frames(pick(FRAME_COUNTS, draws)), latents.shape[2])
        shape = (frames, latents.shape[3], latents.shape[4])
        count = max(TOKENS_A_STEP // (2 * math.prod(shape)), 1)
        chosen = torch.multinomial(world.chances, count, replacement=True, generator=draws).tolist()
        clean = pack_video(latents[chosen, :, :frames].float())
        tokens = clean.shape[1]
        prefix = torch.tensor([_prefix_tokens(draws, shape) for _ in chosen])
        scenes = [world.scenes[index] for index in chosen]
        texts = [caption_of(scene.caption, draws) for scene in scenes]
        texts += [others[int(_uniform(draws) * len(others))] for _ in chosen]
        asked = objective(
            clean.repeat(2, 1, 1),
            torch.randn(clean.shape, generator=draws).repeat(2, 1, 1),
            mostly_noise(draw_levels(count, tokens, draws), DECIDING, UNDECIDED, draws).repeat(2),
            (torch.arange(tokens) < prefix[:, None]).repeat(2, 1),
            torch.stack([prompts[text].video.float() for text in texts]),
        )
        velocity, _ = model(asked.stream, None, frame_rate=24.0, latent_shape=shape)
        truth = torch.stack([contacts(scene, (frames - 1) * STEPS + 1) for scene in scenes]).repeat(2, 1, 1)
        telling = telling_loss(heard, truth)
        velocity = velocity * scale
        each = masked_loss(velocity, asked.target * scale, asked.counts)
        with_caption, without = velocity.chunk(2)
        apart = masked_loss(with_caption, without, asked.counts[:count])
        says_all = (prefix >= min(latent_frames(OPENING), frames - 1) * math.prod(shape[1:])).float()
        return {
            "loss": each.mean() + AGREEMENT * (apart * says_all).mean() + TOLD * telling,
            "continued": each.detach()[prefix.repeat(2) > 0].sum() / (2 * (prefix > 0).sum()).clamp(min=1),
            "apart": apart.detach().mean(),
            "telling": telling.detach(),
        }

    with listening(transformer) as heard:
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


def pick(choices: Sequence[tuple[Choice, float]], draws: torch.Generator) -> Choice:
    weights = torch.tensor([share for _, share in choices])
    return choices[int(torch.multinomial(weights, 1, generator=draws))][0]


def _uniform(draws: torch.Generator) -> float:
    return float(torch.rand((), generator=draws))


def _prefix_tokens(draws: torch.Generator, shape: tuple[int, int, int]) -> int:
    frames = pick(PREFIXES, draws)
    whole = 0 if frames == 0 else min(latent_frames(frames), shape[0] - 1)
    return whole * shape[1] * shape[2]
