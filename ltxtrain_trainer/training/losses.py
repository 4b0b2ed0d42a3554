"""The loss of one clip, and what is drawn at random for it.

`T` tokens of a modality, `C` = 128 channels of a token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ltxtrain_trainer import seeds
from ltxtrain_trainer.data.dataset import Samples, read_sample
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.preview.recipe import sequence_shift
from ltxtrain_trainer.training.distributed import Worker
from ltxtrain_trainer.training.objective import (
    Objective,
    audio_prefix_tokens,
    masked_loss,
    objective,
    pack_video,
    prefix_mask,
    video_prefix_tokens,
)
from ltxtrain_trainer.training.settings import TrainSettings

MIN_LEVEL = 1e-3
UNIFORM_SHARE = 0.1

# Standard normal quantiles, to the digits that the published sampler has.
_Z_LOW, _Z_HIGH = -2.5758, 3.0902


def stretched_logit_normal(z: Tensor, shift: float) -> Tensor:
    """Noise levels in 0..1 of standard normal draws z, any shape."""
    low, high = torch.sigmoid(torch.tensor([shift + _Z_LOW, shift + _Z_HIGH], dtype=z.dtype))
    level = (torch.sigmoid(z + shift) - low) / (high - low)
    mirrored = torch.where(level < MIN_LEVEL, 2 * MIN_LEVEL - level, level)
    return mirrored.clamp(0.0, 1.0)


def draw_levels(count: int, token_count: int, generator: torch.Generator) -> Tensor:
    """Noise levels [count] of clips (or audio tracks) of token_count tokens; three draws of the generator."""
    z = torch.randn(count, generator=generator)
    uniform = MIN_LEVEL + (1 - MIN_LEVEL) * torch.rand(count, generator=generator)
    is_uniform = torch.rand(count, generator=generator) < UNIFORM_SHARE
    return torch.where(is_uniform, uniform, stretched_logit_normal(z, sequence_shift(token_count)))


# Seed of measurements that stay comparable between trainings, whatever the seed of each.
FIXED_SEED = 0


@dataclass(frozen=True)
class Noise:
    """Noise level [1] in 0..1 and noise [1, T, C] of one modality of one clip, on the CPU."""

    level: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Draw:
    """All that is random about one clip of one step; audio None for a clip without."""

    video: Noise
    audio: Noise | None


@dataclass(frozen=True)
class ClipLoss:
    """Scalar losses of one clip, attached to the graph; audio None for a clip without."""

    video: Tensor
    audio: Tensor | None

    @property
    def total(self) -> Tensor:
        return self.video if self.audio is None else self.video + self.audio


def training_draw(clip: EncodedClip, seed: int, step: int, index: int) -> Draw:
    """The draw for a step and an index in the global batch; each modality has a noise level after its own length."""

    def noise(modality: str, tokens: int, channels: int) -> Noise:
        level = draw_levels(1, tokens, seeds.generator(seed, f"{modality} level", step, index))
        return Noise(level, _normal(tokens, channels, seeds.generator(seed, f"{modality} noise", step, index)))

    return _draw(clip, noise)


def fixed_draw(clip: EncodedClip, level: float, position: int) -> Draw:
    """The given level in both modalities, and noise that depends on the position of the clip alone."""

    def noise(modality: str, tokens: int, channels: int) -> Noise:
        generator = seeds.generator(FIXED_SEED, f"{modality} noise", position)
        return Noise(torch.tensor([level]), _normal(tokens, channels, generator))

    return _draw(clip, noise)


def token_count(clip: EncodedClip) -> int:
    """Video and audio tokens of a clip."""
    return clip.video[0].numel() + (0 if clip.audio is None else len(clip.audio))


def clip_loss(
    model: VelocityModel, clip: EncodedClip, prompt: PromptEmbedding, draw: Draw, conditioning_frames: int
) -> ClipLoss:
    """The masked loss of each modality. Raises PrefixCoversClip when the conditioning frames leave nothing."""
    latent_shape = (clip.video.shape[1], clip.video.shape[2], clip.video.shape[3])
    video_prefix = video_prefix_tokens(conditioning_frames, latent_shape)
    video = _objective(model, pack_video(clip.video), draw.video, video_prefix, prompt.video)
    audio = None
    if clip.audio is not None and draw.audio is not None:
        audio_prefix = audio_prefix_tokens(conditioning_frames, clip.frame_rate)
        audio = _objective(model, clip.audio, draw.audio, audio_prefix, prompt.audio)
    video_velocity, audio_velocity = model(
        video.stream,
        None if audio is None else audio.stream,
        frame_rate=clip.frame_rate,
        latent_shape=latent_shape,
    )
    return ClipLoss(
        video=masked_loss(video_velocity, video.target, video.counts)[0],
        audio=None
        if audio is None or audio_velocity is None
        else masked_loss(audio_velocity, audio.target, audio.counts)[0],
    )


def _objective(model: VelocityModel, clean: Tensor, noise: Noise, prefix_tokens: int, context: Tensor) -> Objective:
    return objective(
        clean.to(model.device)[None],
        noise.noise.to(model.device),
        noise.level.to(model.device),
        prefix_mask(len(clean), prefix_tokens, model.device),
        context.to(model.device)[None],
    )


def _draw(clip: EncodedClip, noise: Callable[[str, int, int], Noise]) -> Draw:
    return Draw(
        video=noise("video", clip.video[0].numel(), clip.video.shape[0]),
        audio=None if clip.audio is None else noise("audio", *clip.audio.shape),
    )


def _normal(tokens: int, channels: int, generator: torch.Generator) -> Tensor:
    return torch.randn(1, tokens, channels, generator=generator)


# The middles of the quarters of the noise levels.
LEVELS = (0.125, 0.375, 0.625, 0.875)

PATIENCE = 3


def held_out_loss(
    model: VelocityModel, samples: Samples, indices: Sequence[int], settings: TrainSettings, worker: Worker
) -> float:
    """Mean loss over the clips at indices and over LEVELS; each team measures its share, all get the mean."""
    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    with torch.no_grad():
        for position in range(worker.place, len(indices), worker.shares):
            clip, prompt = read_sample(samples, indices[position], settings.with_audio)
            for level in LEVELS:
                draw = fixed_draw(clip, level, position)
                total += clip_loss(model, clip, prompt, draw, settings.conditioning_frames).total
    worker.sum(total)
    return total.item() / (worker.team_size * len(indices) * len(LEVELS))


def suggested_stop(history: Sequence[tuple[int, float]]) -> int | None:
    """The step of the lowest of the losses (step, held-out loss) once PATIENCE later ones were all above it."""
    if not history:
        return None
    best = min(range(len(history)), key=lambda index: history[index][1])
    return history[best][0] if len(history) - best > PATIENCE else None
