"""The pocket model's vocoder, in closed form: the mel of each frame says how loud each of a few short waves is.

A vocoder sees magnitudes and no phases, and of a tone that stays it makes the same 160 samples again for each frame: a
wave that fits into a frame a whole number of times. So its tones are the hundreds of Hz nearest to the pitch, faded
from frame to frame, and a click begins with a frame. How loud each is is a regression on the mel of 7 frames, as it
comes from noisy latents; the upsamplers lay the samples of a wave out, with nothing left between them to learn.

Nothing is above 8 kHz in this world, so that the bandwidth extension adds nothing.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from ltxtrain_pocket import audio_vae
from ltxtrain_pocket.least_squares import ridge
from ltxtrain_pocket.world import (
    CLICK_HERTZ,
    CLICK_LEVEL,
    CLICK_SECONDS,
    FRAME_RATE,
    TONE_LEVEL,
    Scene,
    tone_hertz,
)
from ltxtrain_trainer.data.mel import HOP, SAMPLE_RATE
from ltxtrain_trainer.model.tiny import VOCODER

# Residual layers of no convolutions: they hand on what they are given.
CONFIG: dict[str, Any] = VOCODER | {"resnet_dilations": [[]], "bwe_resnet_dilations": [[]]}
SEED = 1307
FRAMES_A_SECOND = SAMPLE_RATE // HOP
HARMONICS = range(2, 10)  # of FRAMES_A_SECOND
# The regression is sure of a click by a third, and shares it between two frames: its edge makes up for that.
CLICK_EDGE = 2.6
WINDOW, EDGE_FRAMES, EDGE_WEIGHT = 7, 3, 4.0
RIDGE = 1e-2


def waves() -> Tensor:
    """[17, 160]: each tone as it fades out, each as it fades in, and a click."""
    sample = torch.arange(HOP) / SAMPLE_RATE
    tones = torch.stack([TONE_LEVEL * torch.sin(2 * math.pi * index * FRAMES_A_SECOND * sample) for index in HARMONICS])
    later = torch.arange(HOP) / HOP
    click = CLICK_LEVEL * torch.exp(-sample / CLICK_SECONDS) * torch.cos(2 * math.pi * CLICK_HERTZ * sample)
    click[0] += CLICK_EDGE
    return torch.cat([tones * (1 - later), tones * later, click[None]])


def loudness(scene: Scene, count: int) -> Tensor:
    """[count, 17]: how loud each wave should be in each of the mel frames."""
    frames = torch.arange(count + 1)
    heights = [scene.state(float(frame) / FRAMES_A_SECOND * FRAME_RATE).y for frame in frames]
    pitch = torch.tensor([float(tone_hertz(height, scene.height)) for height in heights]) / FRAMES_A_SECOND
    tones = (1 - (pitch[:, None] - torch.tensor(HARMONICS)).abs()).clamp(min=0)
    clicks = torch.zeros(count, 1)
    for time in scene.bounces(count):
        place = round(time / FRAME_RATE * FRAMES_A_SECOND)
        if place < count:
            clicks[place] = 1.0
    return torch.cat([tones[:-1], tones[1:], clicks], 1)


@torch.no_grad()
def solve(vocoder: Any, mel: Tensor, wanted: Tensor) -> None:
    """Set the weights of an LTX2VocoderWithBWE: mel [N, 2, T, 64] as decoded, wanted [N, T, 17]."""
    first = vocoder.vocoder
    for parameter in first.parameters():
        parameter.zero_()
    # The same in both ears, and zeros beyond the ends, as the convolution sees them.
    windows = functional.pad(mel.mean(1), (0, 0, WINDOW // 2, WINDOW // 2)).unfold(1, WINDOW, 1).flatten(2)
    weights = torch.ones(windows.shape[1])
    weights[:EDGE_FRAMES] = weights[-EDGE_FRAMES:] = EDGE_WEIGHT
    solution = ridge(windows.flatten(0, 1), wanted.flatten(0, 1), RIDGE, weights=weights.repeat(len(windows)))
    count = wanted.shape[2]
    first.conv_in.weight[:count] = solution[:-1].T.reshape(count, -1, WINDOW).repeat(1, 2, 1) / 2
    first.conv_in.bias[:count] = solution[-1]
    # Each upsampler cuts a wave into as many parts as it makes samples of one; only the middle taps are set.
    waveforms = waves()
    for upsampler in first.upsamplers:
        stride, kept = upsampler.stride[0], upsampler.out_channels
        for part in range(stride):
            tap = upsampler.padding[0] + part
            if upsampler is first.upsamplers[0]:
                upsampler.weight[:count, :, tap] = waveforms.unflatten(1, (stride, kept))[:, part]
            else:
                upsampler.weight[part * kept : (part + 1) * kept, :, tap] = torch.eye(kept)
    first.act_out.act.beta.fill_(30.0)  # a straight line
    first.conv_out.weight[:, :, 3] = 1.0
    vocoder.bwe_generator.conv_out.weight.zero_()


def state_of(vocoder: Any) -> dict[str, Tensor]:
    """The weights that are not drawn from a seed."""
    return {
        name: parameter.detach()
        for name, parameter in vocoder.named_parameters()
        if name.startswith("vocoder.") or name == "bwe_generator.conv_out.weight"
    }


def solve_vocoder(folder: Path) -> dict[str, Tensor]:
    """The weights, made when absent."""
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

    file = folder / "vocoder.safetensors"
    if not file.exists():
        print("vocoder: regressions", flush=True)
        scenes = audio_vae.sounding_scenes(audio_vae.SOLVED)
        mel, wanted = decoded(audio_vae.solved_audio_vae(folder), scenes)
        vocoder = LTX2VocoderWithBWE(**CONFIG)
        solve(vocoder, mel, wanted)
        safetensors.torch.save_file(state_of(vocoder), file)
    return safetensors.torch.load_file(file)


@torch.no_grad()
def decoded(vae: Any, scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Mel [N, 2, T, 64] of the scenes' sounds as decoded from noisy latents, and what the vocoder should make of it."""
    generator = torch.Generator().manual_seed(SEED)
    mel = torch.stack([audio_vae.mel_of(scene) for scene in scenes])
    packed = audio_vae.noised(vae, audio_vae.encode_mel(vae, mel), audio_vae.NOISE, generator)
    wanted = torch.stack([loudness(scene, mel.shape[2]) for scene in scenes])
    return audio_vae.decode_mel(vae, packed), wanted
