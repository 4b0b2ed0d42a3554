"""Latents back to pictures and sound, for previews.

Letters: T pixel frames, H W picture, F h w latent frames and size, L audio latents, S audio samples.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

AUDIO_CHANNELS = 8  # of a latent, before the 16 mel bands of each are packed beside it


@torch.no_grad()
def decode_video(vae: "AutoencoderKLLTX2Video", latents: Tensor, *, tiling: bool = False) -> NDArray[np.uint8]:
    """Normalised latents [128, F, h, w] -> [T, H, W, 3].

    `tiling` decodes in overlapping parts of 512 pixels and 16 frames: less memory, faint differences at their borders.
    """
    vae.use_tiling = vae.use_framewise_decoding = tiling
    mean, deviation = (x.float().view(-1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
    raw = latents.to(vae.device).float() * deviation / vae.config.scaling_factor + mean
    pictures = vae.decode(raw[None].to(vae.dtype)).sample[0]
    # Frame by frame: a float copy of a whole clip is four times the clip.
    frames = [((frame.float() + 1) * 127.5).round().clamp(0, 255).byte() for frame in pictures.unbind(1)]
    decoded: NDArray[np.uint8] = torch.stack(frames).permute(0, 2, 3, 1).cpu().numpy()
    return decoded


@torch.no_grad()
def decode_audio(
    audio_vae: "AutoencoderKLLTX2Audio", vocoder: "LTX2VocoderWithBWE", latents: Tensor
) -> NDArray[np.float32]:
    """Normalised latents [L, 128] -> [2, S] at 48 kHz, in -1..1; S = 480 (4 L - 3), the mel frames of L latents."""
    raw = latents.to(audio_vae.device).float() * audio_vae.latents_std.float() + audio_vae.latents_mean.float()
    unpacked = raw.unflatten(1, (AUDIO_CHANNELS, -1)).transpose(0, 1)  # [L, 8 * 16] -> [8, L, 16]
    mel = audio_vae.decode(unpacked[None].to(audio_vae.dtype)).sample
    # In float32 whatever it was loaded in, as the reference does: the rounding of bfloat16 adds up to audible noise.
    waveform: NDArray[np.float32] = vocoder.float()(mel.float())[0].cpu().numpy()
    return waveform
