"""Continue a clip: the inference recipe of LTX 2.3 with a clean prefix in video and audio.

The stock pipelines have neither an audio prefix nor a way to leave the audio branch out, hence this loop; without an
audio prefix it computes what LTX2ConditionPipeline does. Letters: F latent frames, h w latent size, L audio latents,
T tokens of a modality, C = 128 channels. Prefix tokens come first, stay clean and have timestep 0 throughout.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.errors import SamplingFailed
from ltxtrain_trainer.geometry import audio_latents, latent_frames
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.preview.guidance import Guidance, Predictions, guide
from ltxtrain_trainer.preview.recipe import AUDIO_TEXT_GUIDANCE, STEPS, VIDEO_TEXT_GUIDANCE, skipped_block
from ltxtrain_trainer.seeds import generator
from ltxtrain_trainer.training.objective import pack_video, prefix_mask, unpack_video

_NEGATIVE, _PROMPT = slice(0, 1), slice(1, 2)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Settings of one preview; noise depends on seed and index alone, never on the state of the process.

    frame_count: of the whole output, prefix included, 1 modulo 8. index: of the validation entry. skip_block: None for
    the block that fits the model's depth. schedule_tokens: video tokens that the noise schedule is made for, 0 for the
    output's own. text_guidance and audio_text_guidance: 1 for none.
    """

    frame_count: int
    seed: int
    index: int
    stg_scale: float = 1.0
    step_count: int = STEPS
    skip_block: int | None = None
    schedule_tokens: int = 0
    text_guidance: float = VIDEO_TEXT_GUIDANCE
    audio_text_guidance: float = AUDIO_TEXT_GUIDANCE

    def __post_init__(self) -> None:
        if self.step_count < 2:
            raise ValueError("Sampling needs at least 2 steps: the last noise level above 0 is fixed.")


@dataclass(frozen=True)
class Denoised:
    """One step of the loop is done."""

    step: int
    step_count: int


@dataclass(frozen=True)
class Sampled:
    """Normalised latents, float32 on the model's device: video [128, F, h, w], audio [L, 128] or None."""

    video: Tensor
    audio: Tensor | None


@dataclass(frozen=True)
class _Track:
    """One modality during sampling: its clean prefix and its place, its texts, and its guidance."""

    prefix: Tensor  # [1, P, C]
    clean: Tensor  # [T], true where a token is prefix
    context: Tensor  # [2, S, D], rows: negative, prompt
    guidance: Guidance

    def start(self, noise: Tensor) -> Tensor:
        return torch.cat([self.prefix, noise[:, self.prefix.shape[1] :]], dim=1)

    def stream(self, sample: Tensor, sigma: Tensor, rows: slice) -> Stream:
        context = self.context[rows]
        batch = len(context)
        timesteps = torch.where(self.clean, 0.0, sigma).expand(batch, -1)
        return Stream(sample.expand(batch, -1, -1), context, timesteps, sigma.expand(batch))

    def advance(self, sample: Tensor, clean_sample: Tensor, sigma: Tensor, next_sigma: Tensor) -> Tensor:
        """One Euler step along (x - x0) / sigma; prefix tokens are kept bit for bit."""
        moved = sample + (sample - clean_sample) / sigma * (next_sigma - sigma)
        return torch.where(self.clean[:, None], sample, moved)


def continue_clip(
    model: VelocityModel,
    scheduler_config: Mapping[str, Any],
    prefix: EncodedClip,
    prompt: PromptEmbedding,
    negative: PromptEmbedding,
    settings: SamplerSettings,
) -> Iterator[Denoised | Sampled]:
    """Yield Denoised after each step and Sampled at the end; audio is continued when the prefix has audio.

    scheduler_config is the model's own (FlowMatchEulerDiscreteScheduler). Raises PrefixCoversClip when nothing is left
    to generate, ValueError when the model has no block to skip where settings name it, and SamplingFailed when skip
    guidance would do nothing on this model or the result is not finite.
    """
    latent_shape = (latent_frames(settings.frame_count), *prefix.video.shape[2:])
    video_prefix = pack_video(prefix.video)
    token_count = math.prod(latent_shape)
    if settings.stg_scale > 0 and not model.transformer.config.perturbed_attn:
        # diffusers would silently ignore the skipped block.
        raise SamplingFailed(
            "stg_scale has no effect on this model: perturbed_attn is off in its transformer's config.json, which is "
            "on in LTX 2.3. Repair the model folder, or use stg_scale 0."
        )
    device = model.device
    tracks = [
        _Track(
            prefix=video_prefix.to(device, torch.float32)[None],
            clean=prefix_mask(token_count, len(video_prefix), device),
            context=torch.stack([negative.video, prompt.video]).to(device),
            guidance=Guidance(text=settings.text_guidance, skip=settings.stg_scale),
        )
    ]
    if prefix.audio is not None:
        length = audio_latents(settings.frame_count, prefix.frame_rate)
        tracks.append(
            _Track(
                prefix=prefix.audio.to(device, torch.float32)[None],
                clean=prefix_mask(length, len(prefix.audio), device),
                context=torch.stack([negative.audio, prompt.audio]).to(device),
                guidance=Guidance(text=settings.audio_text_guidance, skip=settings.stg_scale),
            )
        )
    samples = [
        track.start(preview_noise(modality, len(track.clean), settings.seed, settings.index).to(device))
        for track, modality in zip(tracks, ("video", "audio"), strict=False)
    ]

    sigmas = noise_levels(scheduler_config, settings.schedule_tokens or token_count, settings.step_count).to(device)
    step = _Step(model, tracks, latent_shape, prefix.frame_rate, settings)
    for index in range(settings.step_count):
        samples = step(samples, sigmas[index], sigmas[index + 1])
        yield Denoised(index + 1, settings.step_count)

    if not all(bool(torch.isfinite(sample).all()) for sample in samples):
        raise SamplingFailed("The sampled latents are not finite: the model's weights are damaged.")
    video = unpack_video(samples[0][0], latent_shape).contiguous()
    yield Sampled(video, samples[1][0] if len(samples) > 1 else None)


def noise_levels(scheduler_config: Mapping[str, Any], video_tokens: int, step_count: int) -> Tensor:
    """float32 [step_count + 1], from 1 down to shift_terminal and then 0, shifted by the number of video tokens."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler_config))
    config = scheduler.config
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    # Not clamped: the shift of clips above max_image_seq_len continues along the line.
    shift = config.base_shift + (video_tokens - config.base_image_seq_len) * slope
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / step_count, step_count), mu=shift)
    sigmas: Tensor = scheduler.sigmas
    return sigmas


@dataclass(frozen=True)
class _Step:
    """Everything about one sampling step but the noisy samples, which are one [1, T, C] a track."""

    model: VelocityModel
    tracks: list[_Track]
    latent_shape: tuple[int, int, int]
    frame_rate: float
    settings: SamplerSettings

    @property
    def _block(self) -> int:
        block = self.settings.skip_block
        return skipped_block(self.model.layer_count) if block is None else block

    # Not around the loop: a generator must not leave its caller in no-grad mode.
    @torch.no_grad()
    def __call__(self, samples: list[Tensor], sigma: Tensor, next_sigma: Tensor) -> list[Tensor]:
        """Samples at sigma -> samples at next_sigma."""
        # One after the other: together they are no faster at the tokens of a clip, and need twice the memory.
        prompted = self._clean_samples(samples, sigma, _PROMPT)
        negated = self._clean_samples(samples, sigma, _NEGATIVE)
        skipped = None
        if self.settings.stg_scale > 0:
            skipped = self._clean_samples(samples, sigma, _PROMPT, skip_self_attention=(self._block,))
        isolated = self._clean_samples(samples, sigma, _PROMPT, isolate=True) if len(self.tracks) > 1 else None
        moved = []
        for index, (track, sample) in enumerate(zip(self.tracks, samples, strict=True)):
            predictions = Predictions(
                prompt=prompted[index],
                negative=negated[index],
                skipped=skipped[index] if skipped else None,
                isolated=isolated[index] if isolated else None,
            )
            moved.append(track.advance(sample, guide(predictions, track.guidance), sigma, next_sigma))
        return moved

    def _clean_samples(
        self,
        samples: list[Tensor],
        sigma: Tensor,
        rows: slice,
        *,
        isolate: bool = False,
        skip_self_attention: tuple[int, ...] = (),
    ) -> list[Tensor]:
        """x0 = x - sigma v of each track, for some rows of (negative, prompt): [rows, T, C].

        As in the pipelines, the level of the others is used for prefix tokens too; only the spread that guidance is
        rescaled to sees them.
        """
        streams = [track.stream(sample, sigma, rows) for track, sample in zip(self.tracks, samples, strict=True)]
        velocities = self.model(
            streams[0],
            streams[1] if len(streams) > 1 else None,
            frame_rate=self.frame_rate,
            latent_shape=self.latent_shape,
            isolate=isolate,
            skip_self_attention=skip_self_attention,
        )
        return [
            sample - sigma * velocity
            for sample, velocity in zip(samples, velocities, strict=False)
            if velocity is not None
        ]


def preview_noise(modality: str, length: int, seed: int, index: int) -> Tensor:
    """float32 [1, length, 128]: what "video" or "audio" of a preview starts from, prefix included."""
    return torch.randn(1, length, 128, generator=generator(seed, "preview", index, modality))
