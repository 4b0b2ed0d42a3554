"""The clips that the transformer is pretrained on, encoded once, in shards that a stopped run keeps."""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from pocket.least_squares import encode_by_components
from pocket.world import Scene, draw_scene, render

SEED = 1302
CLIPS = 600
SHARD = 50
FRAMES = 25
WIDTH, HEIGHT = 512, 288


def scene_of(index: int) -> Scene:
    return draw_scene([SEED, index], width=WIDTH, height=HEIGHT, frame_count=FRAMES)


def encode_world(vae: Any, folder: Path, clips: int = CLIPS) -> Path:
    """Raw (not normalised) latents of the first clips of the world, bfloat16 [n, 128, F, h, w], in folder/latents."""
    shards = folder / "latents"
    shards.mkdir(parents=True, exist_ok=True)
    for first in range(0, clips, SHARD):
        file = shards / f"{first:06}.safetensors"
        if file.exists():
            continue
        latents = torch.stack([encode_clip(vae, render(scene_of(first + index), FRAMES)) for index in range(SHARD)])
        part = file.with_suffix(".part")
        safetensors.torch.save_file({"latents": latents}, part)
        part.replace(file)
        print(f"latents {first + SHARD}/{clips}", flush=True)
    return shards


@torch.no_grad()
def encode_clip(vae: Any, frames: np.ndarray[Any, np.dtype[np.uint8]]) -> Tensor:
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    return encode_by_components(vae.encoder, pixels)[0].bfloat16()


def read_latents(shards: Path) -> Tensor:
    """All clips, bfloat16 [n, 128, F, h, w]."""
    return torch.cat([safetensors.torch.load_file(file)["latents"] for file in sorted(shards.glob("*.safetensors"))])
