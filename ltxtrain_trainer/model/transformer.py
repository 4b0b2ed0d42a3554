"""The one call of the LTX 2.3 transformer: training, held-out loss and previews all go through it.

Letters: B clips, T tokens of a modality, C = 128 channels of a token, S text tokens, D text channels.

The published model gates audio-to-video cross-attention by the *other* modality's noise level while its scale and shift
follow each token's own timestep. diffusers offers only both-own or both-other, so this call asks for both-own and puts
the other modality's level before the two gates (forward pre-hooks that live for one call).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ltxtrain_trainer.model.team import Team


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


@dataclass(frozen=True)
class _Placed:
    """A modality of a batch, and the positions [B, axes, T, 2] of its tokens."""

    stream: Stream
    positions: Tensor

    def part(self, team: Team) -> "_Placed":
        """The tokens of one worker of a team."""
        stream = replace(
            self.stream, tokens=team.own(self.stream.tokens, 1), timesteps=team.own(self.stream.timesteps, 1)
        )
        return _Placed(stream, team.own(self.positions, 2))


class VelocityModel:
    """A diffusers LTX2VideoTransformer3DModel, with or without LoRA, as a function from streams to velocities.

    Everything in it is computed in the base's dtype, on every device alike. Autocast is not used: on CUDA it widens
    the norms of queries and keys to float32, and a quantized layer answers in the dtype of its input, so that the whole
    residual stream of an int8 or nf4 base would be float32 from the first attention on.
    """

    def __init__(self, transformer: Any, team: Team | None = None) -> None:
        """team: the workers that compute each call together, on a part of its tokens each."""
        self.transformer = transformer
        self._team = team
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
        if self._team is not None and skip_self_attention:
            raise ValueError("A team's workers sample previews each on its own; none skips self-attention together.")
        missing = [block for block in skip_self_attention if not 0 <= block < self.layer_count]
        if missing:
            raise ValueError(f"The model has {self.layer_count} blocks; there is no block {missing[0]} to skip.")
        if self.video_only and audio is not None:
            raise ValueError("The model was loaded without its audio half; it cannot be given audio.")
        inputs = [_Placed(video, self.video_positions(latent_shape, frame_rate, len(video.tokens)))]
        if audio is not None:
            inputs.append(_Placed(audio, self.audio_positions(audio.tokens.shape[1], len(audio.tokens))))
        if self._team is None:
            velocities = self._velocities(inputs, isolate, skip_self_attention)
        else:
            velocities = self._shared(self._team, inputs, isolate)
        return velocities[0], velocities[1] if audio is not None else None

    def _velocities(self, inputs: "list[_Placed]", isolate: bool, pass_values_in: Sequence[int]) -> list[Tensor]:
        """The velocities of each modality that is given, video first."""
        video, video_positions = inputs[0].stream, inputs[0].positions
        scale = float(self.transformer.config.timestep_scale_multiplier)
        if self.video_only:
            velocity: Tensor = self.transformer(
                hidden_states=video.tokens.to(self.dtype),
                encoder_hidden_states=video.context.to(self.dtype),
                timestep=video.timesteps * scale,
                sigma=video.sigma * scale,
                video_coords=video_positions,
                pass_values_in=pass_values_in,
            )
            return [velocity.float()]
        silent = len(inputs) == 1
        sound = self._silent(video) if silent else inputs[1].stream
        with self._gates_follow_other_modality(video.sigma, sound.sigma):
            velocities: tuple[Tensor, Tensor] = self.transformer(
                hidden_states=video.tokens.to(self.dtype),
                audio_hidden_states=sound.tokens.to(self.dtype),
                encoder_hidden_states=video.context.to(self.dtype),
                audio_encoder_hidden_states=sound.context.to(self.dtype),
                timestep=video.timesteps * scale,
                audio_timestep=sound.timesteps * scale,
                sigma=video.sigma * scale,
                audio_sigma=sound.sigma * scale,
                video_coords=video_positions,
                audio_coords=self.audio_positions(1, len(sound.tokens)) if silent else inputs[1].positions,
                isolate_modalities=isolate or silent,
                spatio_temporal_guidance_blocks=list(pass_values_in),
                use_cross_timestep=False,
                return_dict=False,
            )
        return [velocity.float() for velocity in velocities[: len(inputs)]]

    def _shared(self, team: Team, inputs: "list[_Placed]", isolate: bool) -> list[Tensor]:
        """The same, by a team: each worker calls the transformer with its own tokens."""
        from ltxtrain_trainer.model.sequence_parallel import placed, share_attention, whole

        share_attention(self.transformer)
        lengths = [modality.stream.tokens.shape[1] for modality in inputs]
        ropes = (("rope", "cross_attn_rope"), ("audio_rope", "cross_attn_audio_rope"))
        found = [
            (getattr(self.transformer, name), length)
            for names, length in zip(ropes, lengths, strict=False)
            for name in names
            if hasattr(self.transformer, name)
        ]
        with placed(team, found):
            own = self._velocities([modality.part(team) for modality in inputs], isolate, ())
        return [whole(team, velocity, length) for velocity, length in zip(own, lengths, strict=True)]

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
