"""Clips and prompts into what the transformer is trained on: latents and prompt embeddings.

Letters: T pixel frames, H W picture, F h w latent frames and size, S audio samples, L audio latents, N prompt tokens.

Each clip and each prompt is computed by itself. In a batch its last bits would depend on its neighbours, so that a run
cut short and resumed would not find the bytes it had made before.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.data.mel import SAMPLE_RATE, log_mel
from ltxtrain_trainer.geometry import SPATIAL_COMPRESSION, audio_latents, snap_frames
from ltxtrain_trainer.model.device import memory_for
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.loading import (
    Device,
    compute_dtype,
    load_audio_vae,
    load_connectors,
    load_tokenizer,
    load_video_vae,
)
from ltxtrain_trainer.model.text_encoder import TextHold, check_tokenizer, hold_for, load_text_encoder

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video
    from transformers import PreTrainedTokenizerBase


REMEDY = "free the device, give the host more memory, or install 'ltxtrain[quantized]' to hold it in int8"


class ClipEncoder:
    """The two VAE encoders on one device."""

    def __init__(
        self,
        folder: ModelFolder,
        device: Device,
        *,
        with_audio: bool,
        dtype: torch.dtype | None = None,
    ) -> None:
        dtype = dtype or compute_dtype(device)
        self.vae = load_video_vae(folder, device, dtype)
        self.audio_vae = load_audio_vae(folder, device, dtype) if with_audio else None

    @property
    def tiling(self) -> bool:
        return bool(self.vae.use_tiling)

    def use_tiling(self) -> None:
        """From now on encode pictures above 512 pixels in overlapping parts: less memory, slightly other latents."""
        self.vae.enable_tiling()

    def encode(
        self, frames: NDArray[np.uint8], frame_rate: float, audio: NDArray[np.float32] | None = None
    ) -> EncodedClip:
        """frames [T, H, W, 3] with T 1 modulo 8 and H, W multiples of 32; audio [2, S] at 16 kHz that begins with them.

        Audio is padded with silence or cut to the duration of the frames; without `with_audio` it is not looked at.
        Raises DeviceMemoryExhausted with what would need less.
        """
        frame_count = len(frames)
        remedy = "take a smaller resolution" if self.tiling else "encode with tiling"
        with memory_for(f"encoding {frame_count} frames of {frames.shape[2]}x{frames.shape[1]}", remedy):
            video = encode_video(self.vae, frames)
        sound = None
        if self.audio_vae is not None:
            if audio is None:
                raise ValueError("An encoder with audio needs the audio of every clip.")
            samples = _of_duration(audio, int(frame_count / frame_rate * SAMPLE_RATE))
            sound = encode_audio(self.audio_vae, samples)[: audio_latents(frame_count, frame_rate)]
        return EncodedClip(
            video=_stored(video),
            audio=None if sound is None else _stored(sound),
            frame_rate=frame_rate,
            frame_count=frame_count,
        )


class PromptEncoder:
    """Gemma and the connectors on one device, held as it fits there; delete it to have the memory back."""

    def __init__(
        self, folder: ModelFolder, device: Device, dtype: torch.dtype | None = None, hold: TextHold | None = None
    ) -> None:
        dtype = dtype or compute_dtype(device)
        self.device = torch.device(device)
        self.hold = hold or hold_for(folder, self.device)
        self.tokens = folder.prompt_tokens
        self.tokenizer = load_tokenizer(folder)
        check_tokenizer(self.tokenizer)
        self.tokenizer.padding_side = "left"
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        with memory_for("loading the text encoder", REMEDY):
            self.text_encoder = load_text_encoder(folder, device, dtype, self.hold)
            self.connectors = load_connectors(folder, device, dtype)

    def encode(self, prompts: Sequence[str]) -> list[PromptEmbedding]:
        """One embedding a prompt; an empty prompt is one too. What exceeds the model's tokens is cut, and said.

        Raises DeviceMemoryExhausted.
        """
        with memory_for("embedding a prompt", REMEDY):
            return [self._encode(prompt.strip()) for prompt in prompts]

    @torch.no_grad()
    def _encode(self, prompt: str) -> PromptEmbedding:
        token_count = count_tokens(self.tokenizer, prompt)
        inputs = self.tokenizer(
            prompt, padding="max_length", max_length=self.tokens, truncation=True, return_tensors="pt"
        ).to(self.device)
        output = self.text_encoder(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, output_hidden_states=True
        )
        layers = torch.stack(output.hidden_states, dim=-1).flatten(2)
        video, audio, _ = self.connectors(layers, inputs.attention_mask, padding_side="left")
        return PromptEmbedding(
            video=_stored(video[0]),
            audio=_stored(audio[0]),
            token_count=token_count,
            truncated=token_count > self.tokens,
        )


def count_tokens(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> int:
    """Tokens of the whole prompt with its BOS; those past ModelFolder.prompt_tokens are cut in encoding."""
    return len(tokenizer(prompt.strip(), verbose=False).input_ids)


def encode_video(vae: "AutoencoderKLLTX2Video", frames: NDArray[np.uint8]) -> Tensor:
    """uint8 [T, H, W, 3] -> normalised latents, float32 [128, F, h, w]."""
    frame_count, height, width = frames.shape[:3]
    if snap_frames(frame_count) != frame_count or height % SPATIAL_COMPRESSION or width % SPATIAL_COMPRESSION:
        raise ValueError(f"Frames of shape {frames.shape} do not fit the VAE: T 1 modulo 8, H and W multiples of 32.")
    with torch.no_grad(), _repeatable():
        pixels = torch.tensor(frames, device=vae.device).permute(3, 0, 1, 2)[None]
        latents = vae.encode((pixels / 127.5 - 1).to(vae.dtype)).latent_dist.mode().float()
        mean, deviation = (x.float().view(1, -1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
        normalised: Tensor = (latents - mean) / deviation * vae.config.scaling_factor
    return normalised[0]


def encode_audio(audio_vae: "AutoencoderKLLTX2Audio", audio: NDArray[np.float32]) -> Tensor:
    """float32 [2, S] at 16 kHz -> normalised latents, float32 [ceil((S // 160 + 1) / 4), 128]."""
    with torch.no_grad(), _repeatable():
        mel = log_mel(torch.tensor(audio, device=audio_vae.device))
        latents = audio_vae.encode(mel[None].to(audio_vae.dtype)).latent_dist.mode().float()
        packed = latents[0].transpose(0, 1).flatten(1)  # [8, L, 16] -> [L, 8 * 16]
        normalised: Tensor = (packed - audio_vae.latents_mean.float()) / audio_vae.latents_std.float()
    return normalised


def _of_duration(audio: NDArray[np.float32], sample_count: int) -> NDArray[np.float32]:
    missing = max(0, sample_count - audio.shape[1])
    return np.pad(audio, ((0, 0), (0, missing)))[:, :sample_count]


def _stored(tensor: Tensor) -> Tensor:
    return tensor.to("cpu", torch.bfloat16).contiguous()


@contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN otherwise picks its convolutions by a race, and the same clip gets other last bits the next time."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        yield
