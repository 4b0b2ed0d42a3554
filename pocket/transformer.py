"""Train the pocket model's transformer to continue clips of the world; the objective is the product's own.

Each clip of a batch has a prefix of its own, of none, 1 or 9 frames, and its caption is left out now and then, so
that guidance by text has something to differ from. Most batches are windows about the shape: a part of the latents costs
a fraction of the whole, and motion is the same everywhere. The others are whole pictures, where motion meets edges.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pocket.pretraining import Plan, pretrain
from pocket.world import Scene
from trainer.data.encoded import PromptEmbedding
from trainer.geometry import SPATIAL_COMPRESSION, latent_frames
from trainer.model.transformer import VelocityModel
from trainer.seeds import generator
from trainer.training.losses import draw_levels
from trainer.training.objective import masked_loss, objective, pack_video

PLAN = Plan(name="transformer", steps=3000, learning_rate=1.5e-3)
SEED = 1303
TOKENS_A_STEP = 800
FRAME_COUNTS = ((17, 0.85), (25, 0.15))
PREFIXES = ((0, 0.04), (1, 0.06), (9, 0.9))
WINDOW = (5, 8)  # latent rows and columns
WHOLE = 0.25  # of the steps
WITHOUT_CAPTION = 0.1


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
        return {"loss": each.mean(), "continued": each.detach()[prefix > 0].mean()}

    pretrain(transformer, PLAN, losses, folder)


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
