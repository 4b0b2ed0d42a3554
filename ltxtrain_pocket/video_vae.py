"""Train the pocket model's video VAE on small crops of the world; seeds are fixed.

The architecture is the real one: patches of 4, 32 x 32 x 8 pixels to one latent of 128 channels, a causal encoder. The
encoder has no residual layers and so a closed form (see .least_squares); the decoder starts from one and is trained.
"""

from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ltxtrain_pocket.drawing import render
from ltxtrain_pocket.least_squares import encode_by_components, solve
from ltxtrain_pocket.pretraining import Plan, pretrain
from ltxtrain_pocket.world import LOW, Style, draw_scene, styled
from ltxtrain_trainer.model.tiny import VIDEO_VAE

CONFIG: dict[str, Any] = VIDEO_VAE | {
    "block_out_channels": (64, 64, 128, 128),
    "layers_per_block": (0, 0, 0, 0, 0),
    "decoder_block_out_channels": (32, 64, 64, 128),
}
PLAN = Plan(name="video-vae", steps=500, learning_rate=1.2e-4)
SEED = 1301

# Width, height, share of the steps. The last is the whole picture, where latents have no border near.
CROPS = ((128, 128, 0.7), (192, 160, 0.22), (512, 288, 0.08))
FRAME_COUNTS = ((9, 0.4), (17, 0.4), (25, 0.2))
PIXELS_A_STEP = 2 * 17 * 128 * 128
ON_SHAPE = 0.85
STYLED = 0.35
CLIP_FRAMES = 49
# Latents that the transformer gets nearly right should decode nearly right: of each latent's deviation.
NOISE = 0.2
SOLVED = 192  # crops
LEAST_SPREAD = 0.1


def batch(seed: int, step: int) -> Tensor:
    """float32 [B, 3, T, H, W] in -1..1, crops of scenes of their own, of a size and length that the step draws."""
    generator = np.random.default_rng([seed, step])
    width, height, _ = CROPS[generator.choice(len(CROPS), p=[share for *_, share in CROPS])]
    frame_count, _ = FRAME_COUNTS[generator.choice(len(FRAME_COUNTS), p=[share for _, share in FRAME_COUNTS])]
    count = max(PIXELS_A_STEP // (width * height * frame_count), 1)
    return crop_batch(seed, step, width, height, frame_count, count)


def crop_batch(seed: int, step: int, width: int, height: int, frame_count: int, count: int) -> Tensor:
    """Like `batch`, of one size; steps below 0 are those of the closed form."""
    generator = np.random.default_rng([seed, abs(step), int(step < 0)])
    clips = []
    for index in range(count):
        sizes = list(LOW.values())
        picture = (512, 288) if width == 512 else sizes[generator.integers(len(sizes))]
        scene = draw_scene(
            [seed, abs(step), index, int(step < 0)], width=picture[0], height=picture[1], frame_count=CLIP_FRAMES
        )
        if generator.random() < STYLED:
            style = list(Style)[generator.integers(len(Style))]
            scene = styled(scene, style, int(generator.integers(0, CLIP_FRAMES - 8)))
        first = int(generator.integers(0, CLIP_FRAMES - frame_count + 1))
        left = int(generator.integers(0, picture[0] - width + 1))
        top = int(generator.integers(0, picture[1] - height + 1))
        if generator.random() < ON_SHAPE:
            state = scene.state(first + frame_count / 2)
            aim = generator.uniform(0.2, 0.8, 2)
            left = int(np.clip(state.x - aim[0] * width, 0, picture[0] - width))
            top = int(np.clip(state.y - aim[1] * height, 0, picture[1] - height))
        clips.append(render(scene, frame_count, first=first, window=(left, top, width, height)))
    pixels = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3)
    return pixels.float() / 127.5 - 1


def reconstruction_losses(vae: Any, pixels: Tensor, spread: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """spread [1, 128, 1, 1, 1]: the deviation of each latent, of which the noise is a share."""
    latents = encode_by_components(vae.encoder, pixels)
    level = torch.rand(len(pixels), 1, 1, 1, 1, generator=generator) * NOISE
    latents = latents + torch.randn(latents.shape, generator=generator) * level * spread
    with torch.autocast("cpu", dtype=torch.bfloat16):
        decoded = vae.decode(latents).sample
    error = decoded.float() - pixels
    square = error.square().mean()
    return {"loss": error.abs().mean() + 4 * square, "psnr": 10 * torch.log10(4 / square.detach())}


def started_video_vae(folder: Path) -> Any:
    """The AutoencoderKLLTX2Video in closed form, with the statistics of its latents; made when absent."""
    from diffusers import AutoencoderKLLTX2Video

    folder.mkdir(parents=True, exist_ok=True)
    vae = AutoencoderKLLTX2Video(**CONFIG)
    start = folder / "video-vae-start.safetensors"
    if not start.exists():
        print("video-vae: components and regressions", flush=True)
        generator = torch.Generator().manual_seed(SEED)
        crops = torch.cat([crop_batch(SEED, step, 128, 128, 17, 8) for step in range(-SOLVED // 8, 0)])
        latents = solve(vae, crops, generator, NOISE / 2)
        flat = latents.transpose(0, 1).flatten(1)
        vae.latents_mean.copy_(flat.mean(1))
        vae.latents_std.copy_(flat.std(1).clamp(min=LEAST_SPREAD))
        safetensors.torch.save_file(vae.state_dict(), start)
    vae.load_state_dict(safetensors.torch.load_file(start))
    return vae.eval().requires_grad_(False)


def train_video_vae(folder: Path) -> Any:
    """The same with its decoder trained on; goes on from what is in the folder."""
    vae = started_video_vae(folder)
    vae.decoder.requires_grad_(True)
    spread = vae.latents_std.view(1, -1, 1, 1, 1).clone()

    def losses(step: int) -> dict[str, Tensor]:
        return reconstruction_losses(
            vae, batch(SEED, step), spread, torch.Generator().manual_seed(SEED * 100_000 + step)
        )

    pretrain(vae, PLAN, losses, folder)
    return vae
