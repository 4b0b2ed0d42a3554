"""LTX 2.3 without its audio half: what a training or a preview without sound loads and runs.

Without audio nothing of the audio stream reaches the video, so that 5.86 of the 18.99 billion weights would be held,
and a third of the operations done, for nothing. Names are those of the whole model, and so are the numbers.
"""

import functools
import re
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import LTX2VideoTransformer3DModel
from torch import Tensor, nn

# Of modules and weights, in the transformer and in each of its blocks.
AUDIO = re.compile(
    r"(transformer_blocks\.\d+\.)?"
    r"(audio_|av_cross_attn_|video_to_audio_|video_a2v_cross_attn_|cross_attn_(audio_)?rope)"
)


def is_audio(name: str) -> bool:
    """Whether a module or weight, by its full name, has no part in the video."""
    return AUDIO.match(name) is not None


class VideoBlock(nn.Module):
    """The video stream of one LTX2VideoTransformerBlock, made of that block's own parts."""

    norm1: Any
    attn1: Any
    norm2: Any
    attn2: Any
    norm3: Any
    ff: Any
    scale_shift_table: Tensor
    prompt_scale_shift_table: Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        for name, part in (*block.named_children(), *block.named_parameters(recurse=False)):
            if not is_audio(name):
                setattr(self, name, part)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        temb_prompt: Tensor,
        rotary_emb: tuple[Tensor, Tensor],
        pass_values: bool = False,
    ) -> Tensor:
        """[B, T, D] -> [B, T, D]; temb [B, T, 9 D], temb_prompt [B, 1, 2 D].

        pass_values: self-attention is skipped and its values go through (spatio-temporal guidance).
        """
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff, shift_text, scale_text, gate_text = _rows(
            self.scale_shift_table, temb
        )
        shift_prompt, scale_prompt = _rows(self.prompt_scale_shift_table, temb_prompt)

        normed = self.norm1(hidden_states) * (1 + scale_attn) + shift_attn
        attended = self.attn1(normed, query_rotary_emb=rotary_emb, all_perturbed=pass_values)
        hidden_states = hidden_states + attended * gate_attn

        normed = self.norm2(hidden_states) * (1 + scale_text) + shift_text
        prompt = encoder_hidden_states * (1 + scale_prompt) + shift_prompt
        hidden_states = hidden_states + self.attn2(normed, encoder_hidden_states=prompt) * gate_text

        normed = self.norm3(hidden_states) * (1 + scale_ff) + shift_ff
        output: Tensor = hidden_states + self.ff(normed) * gate_ff
        return output


def _rows(table: Tensor, temb: Tensor) -> tuple[Tensor, ...]:
    """The modulations of a block, each [B, T, D]: its own table [P, D] plus those of the noise levels [B, T, P D]."""
    rows = table[None, None] + temb.view(*temb.shape[:-1], *table.shape)
    return rows.unbind(dim=2)


class VideoTransformer(LTX2VideoTransformer3DModel):  # type: ignore[misc]
    """An LTX2VideoTransformer3DModel of video alone, with the same config."""

    video_only = True
    _repeated_blocks: ClassVar = [VideoBlock.__name__]

    # from_config looks at the signature.
    @functools.wraps(LTX2VideoTransformer3DModel.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        model: Any = self
        model.transformer_blocks = nn.ModuleList(VideoBlock(block) for block in model.transformer_blocks)
        for name in [name for name, _ in (*self.named_children(), *self.named_parameters(recurse=False))]:
            if is_audio(name):
                delattr(self, name)

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        sigma: Tensor,
        video_coords: Tensor,
        pass_values_in: Sequence[int] = (),
    ) -> Tensor:
        """Velocities [B, T, C], by the arguments that the whole model has for the video."""
        batch, dtype = len(hidden_states), hidden_states.dtype
        rotary_emb = self.rope(video_coords, device=hidden_states.device)
        hidden_states = self.proj_in(hidden_states)
        temb, embedded = (
            part.unflatten(0, (batch, -1))
            for part in self.time_embed(timestep.flatten(), batch_size=batch, hidden_dtype=dtype)
        )
        temb_prompt, _ = self.prompt_adaln(sigma.flatten(), batch_size=batch, hidden_dtype=dtype)
        temb_prompt = temb_prompt.unflatten(0, (batch, -1))
        for index, block in enumerate(self.transformer_blocks):
            inputs = (hidden_states, encoder_hidden_states, temb, temb_prompt, rotary_emb, index in pass_values_in)
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden_states = self._gradient_checkpointing_func(block, *inputs)
            else:
                hidden_states = block(*inputs)
        shift, scale = (self.scale_shift_table[None, None] + embedded[:, :, None]).unbind(dim=2)
        output: Tensor = self.proj_out(self.norm_out(hidden_states) * (1 + scale) + shift)
        return output
