"""The pocket model's audio VAE, in closed form: components of the mel down, ridge regressions up.

The class has 128 channels whatever its config, because it has as many statistics of latents. A world of one tone and
some clicks needs a quarter of them, so everything here is WIDTH channels wide, is stored so, and is widened with zeros
when the model is put together. Residual layers are zero; a large constant in some channels keeps norm and SiLU near a
straight line for the others (as in .least_squares).

Letters: N clips, C channels, T mel frames, L latents. A latent holds 4 frames of 16 groups of 4 mel bands.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from ltxtrain_pocket.least_squares import ridge
from ltxtrain_pocket.world import Motion, Scene, draw_scene, sound
from ltxtrain_trainer.data.mel import FLOOR, SAMPLE_RATE, log_mel

CONFIG: dict[str, Any] = {"ch_mult": (1, 1, 1), "num_res_blocks": 0}
SEED = 1305

WIDTH, WHOLE = 32, 128
# Of the 8 channels of a latent: components of its 4 x 4 blocks. The others stay empty.
COMPONENTS = 3
CONSTANT, CONSTANTS = 2000.0, 16
SOLVED, FRAMES = 300, 17
# Of each latent's deviation: what the transformer gets nearly right should sound nearly right.
NOISE = 0.3
RIDGE, LEAST_RIDGE = 1e-3, 1e-6
LEAST_SPREAD = 1.0
SILENCE = torch.tensor(FLOOR).log().item()
_LINEAR = 2 * CONSTANT * (CONSTANTS / WHOLE) ** 0.5  # undoes the norm, and half a SiLU


class _WideNorm(nn.Module):
    """The norm of WHOLE channels, all but a few of which are zero."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden / (hidden.square().sum(1, keepdim=True) / WHOLE + 1e-6).sqrt()


def narrow_audio_vae() -> Any:
    """AutoencoderKLLTX2Audio of WIDTH channels that computes what it will compute among WHOLE; its weights are zero."""
    from diffusers import AutoencoderKLLTX2Audio

    with torch.random.fork_rng(devices=[]):
        vae = AutoencoderKLLTX2Audio(**CONFIG, base_channels=WIDTH)
    vae.latents_mean, vae.latents_std = torch.zeros(WHOLE), torch.ones(WHOLE)
    vae.encoder.norm_out, vae.decoder.norm_out = _WideNorm(), _WideNorm()
    for parameter in vae.parameters():
        nn.init.zeros_(parameter)
    return vae.eval().requires_grad_(False)


def widened(narrow: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights among zeros, in the shapes of the whole class."""
    wide = {name: torch.zeros_like(tensor) for name, tensor in like.items()}
    for name, tensor in narrow.items():
        wide[name][tuple(slice(size) for size in tensor.shape)] = tensor
    return wide


def sounding_scenes(count: int) -> list[Scene]:
    """Scenes of which most have bounces, in pictures of two sizes."""
    motions = [Motion.BOUNCE, Motion.FALL]
    sizes = ((256, 160), (512, 288))
    return [
        draw_scene(
            [SEED, index],
            width=sizes[index % 2][0],
            height=sizes[index % 2][1],
            frame_count=FRAMES,
            motions=motions if index % 4 else list(Motion),
        )
        for index in range(count)
    ]


def mel_of(scene: Scene, frame_count: int = FRAMES) -> Tensor:
    """[2, T, 64], of whole latents."""
    mel = log_mel(torch.from_numpy(sound(scene, frame_count, SAMPLE_RATE)))
    return mel[:, : (mel.shape[1] - 1) // 4 * 4 + 1]


@torch.no_grad()
def solve(vae: Any, mel: Tensor, generator: torch.Generator) -> None:
    """Set the weights of vae, and the statistics of its latents, from mel [N, 2, T, 64]."""
    _solve_encoder(vae, mel)
    _solve_decoder(vae.decoder, noised(vae, encode_mel(vae, mel), NOISE, generator), mel.mean(1) - SILENCE)


def _solve_encoder(vae: Any, mel: Tensor) -> None:
    encoder = vae.encoder
    # Both ears as one. Silence is zero, as is what was before the clip.
    encoder.conv_in.conv.weight[0, :, 2, 1] = 0.5
    encoder.conv_in.conv.bias[0] = -SILENCE
    for level, channels in ((0, 1), (1, 4)):
        convolution = encoder.down[level].downsample.conv
        for source in range(channels):
            for tap in range(4):
                convolution.weight[source * 4 + tap, source, 1 + tap // 2, tap % 2] = 1.0
    convolution.bias[-CONSTANTS:] = CONSTANT
    frames = functional.pad(mel.mean(1) - SILENCE, (0, 0, 3, 0))
    # [N, T, 64] -> [16, N L 16], in the order of the taps.
    blocks = (
        frames.unflatten(1, (-1, 2, 2)).unflatten(4, (16, 2, 2)).permute(3, 6, 2, 5, 0, 1, 4).flatten(4).flatten(0, 3)
    )
    _, vectors = torch.linalg.eigh(torch.cov(blocks.double()))
    encoder.conv_out.conv.weight[:COMPONENTS, :16, 2, 1] = vectors.flip(1).T[:COMPONENTS].float() * _LINEAR
    encoder.conv_out.conv.bias[8:] = -6.0
    packed = encode_mel(vae, mel).flatten(0, 1)
    live = is_live()
    vae.latents_mean = torch.where(live, packed.mean(0), 0.0)
    vae.latents_std = torch.where(live, packed.std(0).clamp(min=LEAST_SPREAD), 1.0)


def _solve_decoder(decoder: Any, packed: Tensor, wanted: Tensor) -> None:
    """packed [N, L, 128] raw latents, wanted [N, T, 64] above silence."""
    # Each latent beside its neighbours: now and before, above and below; and twice before.
    places = [(time, band) for time in (2, 1) for band in (1, 0, 2)] + [(0, 1)]
    for index, (time, band) in enumerate(places):
        for component in range(COMPONENTS):
            decoder.conv_in.conv.weight[index * COMPONENTS + component, component, time, band] = 1.0
    hidden = decoder.conv_in(_unpacked(packed))
    # A cell of half the size stands for 2 frames and 2 bands, and learns them with what lies about them.
    around = functional.pad(wanted, (1, 1, 3, 0)).unfold(1, 4, 2).unfold(2, 4, 2)
    hidden = _regress(decoder.up[2].upsample, hidden, around.flatten(3).permute(0, 3, 1, 2))
    hidden = _regress(decoder.up[1].upsample, hidden, wanted[:, None])
    decoder.up[1].upsample.conv.conv.bias[-CONSTANTS:] = CONSTANT
    solution = ridge(_windows(decoder.conv_out, hidden[:, :1]), wanted.flatten()[:, None], RIDGE, least=LEAST_RIDGE)
    decoder.conv_out.conv.weight[:, 0] = solution[:-1, 0].view(3, 3) * _LINEAR
    decoder.conv_out.conv.bias.fill_(solution[-1, 0].item() + SILENCE)


def _regress(upsample: Any, hidden: Tensor, wanted: Tensor) -> Tensor:
    """Weights of an upsampler's convolution from hidden [N, C, T, B] to wanted [N, K, 2 T - 1, 2 B]; its output."""
    causal = upsample.conv
    doubled = functional.interpolate(hidden, scale_factor=2.0, mode="nearest")
    windows = _windows(causal, doubled).view(len(hidden), doubled.shape[2], doubled.shape[3], -1)[:, 1:]
    solution = ridge(windows.flatten(0, 2), wanted.permute(0, 2, 3, 1).flatten(0, 2), RIDGE, least=LEAST_RIDGE)
    count = wanted.shape[1]
    causal.conv.weight[:count] = solution[:-1].T.reshape(count, -1, 3, 3)
    causal.conv.bias[:count] = solution[-1]
    output: Tensor = upsample(hidden)
    return output


def _windows(causal: Any, hidden: Tensor) -> Tensor:
    """The inputs of a 3 x 3 convolution at each place, [places, C * 9]."""
    return functional.unfold(functional.pad(hidden, causal.padding), 3).transpose(1, 2).flatten(0, 1)


def is_live() -> Tensor:
    """[128], true where a packed latent holds something."""
    return torch.arange(WHOLE) < COMPONENTS * 16


def encode_mel(vae: Any, mel: Tensor) -> Tensor:
    """Raw packed latents [N, L, 128]."""
    packed: Tensor = vae.encode(mel).latent_dist.mode().transpose(1, 2).flatten(2)
    return packed


def decode_mel(vae: Any, packed: Tensor) -> Tensor:
    """[N, L, 128] -> [N, 2, 4 L - 3, 64]."""
    mel: Tensor = vae.decode(_unpacked(packed)).sample
    return mel


def _unpacked(packed: Tensor) -> Tensor:
    unpacked: Tensor = packed.unflatten(2, (8, 16)).transpose(1, 2)
    return unpacked


def noised(vae: Any, packed: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Raw latents with up to that share of each one's deviation as noise, another share in each clip."""
    level = torch.rand(len(packed), 1, 1, generator=generator) * noise
    noise_of_each: Tensor = torch.randn(packed.shape, generator=generator) * level * vae.latents_std
    return packed + noise_of_each


def solved_audio_vae(folder: Path) -> Any:
    """The audio VAE, narrow; made when absent."""
    vae = narrow_audio_vae()
    file = folder / "audio-vae.safetensors"
    if not file.exists():
        print("audio-vae: components and regressions", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
        mel = torch.stack([mel_of(scene) for scene in sounding_scenes(SOLVED)])
        solve(vae, mel, torch.Generator().manual_seed(SEED))
        safetensors.torch.save_file(vae.state_dict(), file)
    vae.load_state_dict(safetensors.torch.load_file(file))
    return vae
