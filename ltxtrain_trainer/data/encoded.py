"""An encoded clip and an embedded prompt, and their bytes.

`F h w` latent frames and picture size, `L` audio latents, `S` prompt tokens. The bytes are safetensors with all
numbers beside the tensors in one JSON text, because the order of several metadata entries is not defined: equal
samples have equal bytes, so that they can be named by their content.
"""

import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ltxtrain_trainer.errors import SampleUnreadable
from ltxtrain_trainer.geometry import latent_frames

FORMAT = 1
METADATA_KEY = "ltxtrain"


@dataclass(frozen=True, kw_only=True)
class EncodedClip:
    """Normalised latents of one clip: the numbers that the transformer is trained on."""

    video: Tensor  # bfloat16 [128, F, h, w]
    audio: Tensor | None  # bfloat16 [L, 128]
    frame_rate: float
    frame_count: int  # pixel frames, 1 modulo 8

    def __post_init__(self) -> None:
        if self.video.ndim != 4 or self.video.shape[1] != latent_frames(self.frame_count):
            raise SampleUnreadable(
                f"Latents of shape {list(self.video.shape)} do not belong to a clip of {self.frame_count} frames."
            )
        if self.audio is not None and self.audio.ndim != 2:
            raise SampleUnreadable(f"Audio latents of shape {list(self.audio.shape)} are not a sequence of latents.")


@dataclass(frozen=True, kw_only=True)
class PromptEmbedding:
    """Text context of the transformer: the connectors' output for one prompt, padded to S tokens by registers."""

    video: Tensor  # bfloat16 [S, width of the video stream]
    audio: Tensor  # bfloat16 [S, width of the audio stream]
    token_count: int  # tokens of the whole prompt with its BOS, before truncation
    truncated: bool


def dump_clip(clip: EncodedClip) -> bytes:
    tensors = {"video": clip.video} if clip.audio is None else {"video": clip.video, "audio": clip.audio}
    return _dump("clip", tensors, {"frame_rate": clip.frame_rate, "frame_count": clip.frame_count})


def load_clip(data: bytes) -> EncodedClip:
    tensors, numbers = _load("clip", data)
    return EncodedClip(video=tensors["video"], audio=tensors.get("audio"), **numbers)


def dump_prompt(prompt: PromptEmbedding) -> bytes:
    numbers = {"token_count": prompt.token_count, "truncated": prompt.truncated}
    return _dump("prompt", {"video": prompt.video, "audio": prompt.audio}, numbers)


def load_prompt(data: bytes) -> PromptEmbedding:
    tensors, numbers = _load("prompt", data)
    return PromptEmbedding(video=tensors["video"], audio=tensors["audio"], **numbers)


def _dump(kind: str, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> bytes:
    head = json.dumps({"format": FORMAT, "kind": kind, "numbers": numbers}, sort_keys=True)
    stored = {name: tensor.detach().to("cpu", torch.bfloat16).contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(stored, metadata={METADATA_KEY: head})


def _load(kind: str, data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        head = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][METADATA_KEY])
    except (SafetensorError, KeyError, ValueError) as error:
        raise SampleUnreadable(f"These bytes are not an encoded {kind}: {error}") from error
    if (head["format"], head["kind"]) != (FORMAT, kind):
        raise SampleUnreadable(
            f"An encoded {kind} of format {FORMAT} was expected, "
            f"not a {head['kind']} of format {head['format']}. Encode the data again."
        )
    return tensors, head["numbers"]
