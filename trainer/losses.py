"""The loss of one clip, and what is drawn at random for it.

`T` tokens of a modality, `C` = 128 channels of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer import seeds
from trainer.prefix import (
    Objective,
    audio_prefix_tokens,
    masked_loss,
    objective,
    pack_video,
    prefix_mask,
    video_prefix_tokens,
)
from trainer.sample import EncodedClip, PromptEmbedding
from trainer.timesteps import draw_levels
from trainer.velocity import VelocityModel

# Of measurements that stay comparable between trainings, whatever the seed of each.
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
    """What step and index in the global batch get. Each modality has a level of its own, after its own length."""

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
    """The masked loss of each modality; PrefixCoversClip when the conditioning frames leave nothing."""
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
