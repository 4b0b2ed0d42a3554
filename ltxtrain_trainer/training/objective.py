"""The objective: a clean prefix, noise on the rest, and a loss on the rest alone.

Letters: B clips, T tokens of a modality, C = 128 channels of a token, F H W latent frames, height and width.
With clean latents x, noise e and level s in 0..1: the model sees (1 - s) x + s e and learns the velocity e - x.
Prefix tokens are x itself at timestep 0 and count nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ltxtrain_trainer.errors import PrefixCoversClip
from ltxtrain_trainer.geometry import audio_latents, latent_frames
from ltxtrain_trainer.model.transformer import Stream


@dataclass(frozen=True)
class Objective:
    """One modality of a batch: what goes into the model, what should come out, and which tokens count.

    target [B, T, C]; counts [B, T], true where the loss looks.
    """

    stream: Stream
    target: Tensor
    counts: Tensor


def pack_video(latents: Tensor) -> Tensor:
    """[..., C, F, H, W] latents to [..., F*H*W, C] tokens, frames first."""
    return latents.flatten(-3).transpose(-1, -2)


def unpack_video(tokens: Tensor, latent_shape: tuple[int, int, int]) -> Tensor:
    """[..., F*H*W, C] tokens to [..., C, F, H, W] latents."""
    channels_first = tokens.transpose(-1, -2)
    return channels_first.reshape(*channels_first.shape[:-1], *latent_shape)


def video_prefix_tokens(conditioning_frames: int, latent_shape: tuple[int, int, int]) -> int:
    """Count of leading video tokens that are prefix."""
    _, height, width = latent_shape
    return latent_frames(conditioning_frames) * height * width


def audio_prefix_tokens(conditioning_frames: int, frame_rate: float) -> int:
    """Count of leading audio tokens that are prefix: those of the prefix's seconds."""
    return audio_latents(conditioning_frames, frame_rate)


def prefix_mask(token_count: int, prefix_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """[T], true on the prefix. Raises PrefixCoversClip when nothing is left: a loss over no token is silently zero."""
    if not 0 < prefix_tokens < token_count:
        raise PrefixCoversClip(
            f"The prefix takes {prefix_tokens} of {token_count} latent tokens, so nothing is left to learn. "
            "Use fewer conditioning frames or longer clips."
        )
    return torch.arange(token_count, device=device) < prefix_tokens


def objective(clean: Tensor, noise: Tensor, sigma: Tensor, is_prefix: Tensor, context: Tensor) -> Objective:
    """The objective of one modality in float32.

    clean and noise [B, T, C]; sigma [B], the noise level; is_prefix [T] or [B, T]; context [B, S, D] prompt embeddings.
    """
    clean, noise = clean.float(), noise.float()
    is_prefix = is_prefix.expand(clean.shape[:2])
    level = sigma[:, None].float()
    noised = (1 - level[..., None]) * clean + level[..., None] * noise
    stream = Stream(
        tokens=torch.where(is_prefix[..., None], clean, noised),
        context=context,
        timesteps=torch.where(is_prefix, torch.zeros_like(level), level),
        sigma=sigma.float(),
    )
    return Objective(stream=stream, target=noise - clean, counts=~is_prefix)


def masked_loss(velocity: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """[B] mean squared error of each clip over the tokens that count: sum(counts * error^2) / (C * sum(counts))."""
    error = (velocity.float() - target).square().mean(dim=-1)
    return (error * counts).sum(dim=-1) / counts.sum(dim=-1)
