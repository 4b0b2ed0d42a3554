"""The one call of the LTX 2.3 transformer: training, held-out loss and previews all go through it.

Letters: B clips, T tokens of a modality, C = 128 channels of a token, S text tokens, D text channels.

The published model gates audio-to-video cross-attention by the *other* modality's noise level while its scale and shift
follow each token's own timestep. diffusers offers only both-own or both-other, so this call asks for both-own and puts
the other modality's level before the two gates (forward pre-hooks that live for one call).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Stream:
    """One modality of a batch, all noise levels in 0..1 (1 is pure noise).

    tokens [B, T, C]; context [B, S, D] prompt embeddings; timesteps [B, T], 0 on clean prefix tokens; sigma [B], the
    level of the tokens that are not prefix.
    """

    tokens: Tensor
    context: Tensor
    timesteps: Tensor
    sigma: Tensor


class VelocityModel:
    """A diffusers LTX2VideoTransformer3DModel, with or without LoRA, as a function from streams to velocities.

    Everything in it is computed in the base's dtype, on every device alike. Autocast is not used: on CUDA it widens
    the norms of queries and keys to float32, and a quantized layer answers in the dtype of its input, so that the whole
    residual stream of an int8 or nf4 base would be float32 from the first attention on.
    """

    def __init__(self, transformer: Any) -> None:
        self.transformer = transformer
        self.video_only: bool = getattr(transformer, "video_only", False)
        self.layer_count: int = transformer.config.num_layers

    @property
    def device(self) -> torch.device:
        return self._reference.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format that the base computes in, whatever its weights are stored as."""
        return self._reference.dtype

    @property
    def _reference(self) -> Tensor:
        # Not the weight of a linear layer: no quantisation and no adapter touches this one.
        table: Tensor = self.transformer.scale_shift_table
        return table

    def __call__(
        self,
        video: Stream,
        audio: Stream | None,
        *,
        frame_rate: float | Tensor,
        latent_shape: tuple[int, int, int],
        isolate: bool = False,
        skip_self_attention: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor | None]:
        """Velocities (noise - clean) of both modalities, float32 [B, T, C]; None for audio where there is none.

        frame_rate: frames a second of every clip, or [B] of each. latent_shape: latent frames, height and width of the
        video tokens, in that order. isolate: no cross-attention between modalities (modality guidance).
        skip_self_attention: blocks whose self-attention passes its values through (spatio-temporal guidance);
        ValueError when the model has no such block, since guidance would silently do nothing.
        """
        missing = [block for block in skip_self_attention if not 0 <= block < self.layer_count]
        if missing:
            raise ValueError(f"The model has {self.layer_count} blocks; there is no block {missing[0]} to skip.")
        if self.video_only:
            if audio is not None:
                raise ValueError("The model was loaded without its audio half; it cannot be given audio.")
            return self._video(video, frame_rate, latent_shape, skip_self_attention), None
        sound = audio if audio is not None else self._silent(video)
        scale = float(self.transformer.config.timestep_scale_multiplier)
        with self._gates_follow_other_modality(video.sigma, sound.sigma):
            video_velocity, audio_velocity = self.transformer(
                hidden_states=video.tokens.to(self.dtype),
                audio_hidden_states=sound.tokens.to(self.dtype),
                encoder_hidden_states=video.context.to(self.dtype),
                audio_encoder_hidden_states=sound.context.to(self.dtype),
                timestep=video.timesteps * scale,
                audio_timestep=sound.timesteps * scale,
                sigma=video.sigma * scale,
                audio_sigma=sound.sigma * scale,
                video_coords=self.video_positions(latent_shape, frame_rate, video.tokens.shape[0]),
                audio_coords=self.audio_positions(sound.tokens.shape[1], sound.tokens.shape[0]),
                isolate_modalities=isolate or audio is None,
                spatio_temporal_guidance_blocks=list(skip_self_attention),
                use_cross_timestep=False,
                return_dict=False,
            )
        return video_velocity.float(), audio_velocity.float() if audio is not None else None

    def _video(
        self,
        video: Stream,
        frame_rate: float | Tensor,
        latent_shape: tuple[int, int, int],
        pass_values_in: Sequence[int],
    ) -> Tensor:
        scale = float(self.transformer.config.timestep_scale_multiplier)
        velocity: Tensor = self.transformer(
            hidden_states=video.tokens.to(self.dtype),
            encoder_hidden_states=video.context.to(self.dtype),
            timestep=video.timesteps * scale,
            sigma=video.sigma * scale,
            video_coords=self.video_positions(latent_shape, frame_rate, video.tokens.shape[0]),
            pass_values_in=pass_values_in,
        )
        return velocity.float()

    def video_positions(self, latent_shape: tuple[int, int, int], frame_rate: float | Tensor, batch: int) -> Tensor:
        """[B, 3, T, 2]: start and end of each token in seconds, pixel rows and pixel columns."""
        positions: Tensor = self.transformer.rope.prepare_video_coords(batch, *latent_shape, self.device, fps=1.0)
        rate = torch.as_tensor(frame_rate, dtype=torch.float32, device=self.device).reshape(-1, 1, 1)
        positions[:, 0] = positions[:, 0] / rate
        return positions

    def audio_positions(self, length: int, batch: int) -> Tensor:
        """[B, 1, T, 2]: start and end of each audio token in seconds."""
        positions: Tensor = self.transformer.audio_rope.prepare_audio_coords(batch, length, self.device)
        return positions

    def _silent(self, video: Stream) -> Stream:
        # The transformer cannot do without an audio branch: one token, cut off from the video, stands in for it.
        batch = video.tokens.shape[0]
        zeros = video.tokens.new_zeros
        return Stream(
            tokens=zeros((batch, 1, self.transformer.config.audio_in_channels)),
            context=zeros((batch, 1, self.transformer.config.audio_cross_attention_dim)),
            timesteps=video.sigma[:, None],
            sigma=video.sigma,
        )

    @contextmanager
    def _gates_follow_other_modality(self, video_sigma: Tensor, audio_sigma: Tensor) -> Iterator[None]:
        scale = float(self.transformer.config.cross_attn_timestep_scale_multiplier)
        # Blocks alone are checkpointed and compiled; the gates run once a call, outside both.
        hooks = [
            gate.register_forward_pre_hook(lambda module, inputs, level=level * scale: (level, *inputs[1:]))
            for gate, level in (
                (self.transformer.av_cross_attn_video_a2v_gate, audio_sigma),
                (self.transformer.av_cross_attn_audio_v2a_gate, video_sigma),
            )
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
