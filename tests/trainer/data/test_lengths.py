"""Clips of every length go through the encoders and a step, and the prefix is the same seconds of picture and sound."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ltxtrain_trainer.data.encode import ClipEncoder, encode_audio
from ltxtrain_trainer.geometry import AUDIO_LATENTS_PER_SECOND, audio_latents, latent_frames
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training.objective import audio_prefix_tokens
from tests.trainer.golden import run, sample, settings

RATE = 24.0
SIZE = 32
AUDIO_RATE = 16_000


@pytest.fixture(scope="module", params=[False, True], ids=["silent", "with audio"])
def encoder(request: pytest.FixtureRequest, tiny_model: Path) -> ClipEncoder:
    return ClipEncoder(resolve_model(str(tiny_model)), "cpu", with_audio=request.param)


def clip_of(frame_count: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Noise for the eye and the ear."""
    source = np.random.default_rng(frame_count)
    frames = source.integers(0, 256, (frame_count, SIZE, SIZE, 3), dtype=np.uint8)
    sound = source.normal(0, 0.1, (2, math.ceil(frame_count / RATE * AUDIO_RATE))).astype(np.float32)
    return frames, sound


@pytest.mark.parametrize("frame_count", [9, 17, 89, 97, 121])
def test_a_clip_of_every_length_is_encoded_and_trained(encoder: ClipEncoder, frame_count: int) -> None:
    frames, sound = clip_of(frame_count)
    with_audio = encoder.audio_vae is not None
    clip = encoder.encode(frames, RATE, sound)
    assert clip.video.shape == (128, latent_frames(frame_count), 1, 1)
    assert (clip.audio is not None) == with_audio
    if clip.audio is not None:
        assert len(clip.audio) == audio_latents(frame_count, RATE)
    _, prompt = sample(0)
    wanted = settings(steps=1, batch_size=1, with_audio=with_audio, conditioning_frames=min(9, frame_count - 8))
    (step, *_), trained = run(wanted, data=[(clip, prompt)])
    assert isinstance(step, Step)
    assert math.isfinite(step.loss) and step.loss > 0
    assert all(torch.isfinite(weight).all() for weight in trained.values())
    with pytest.raises(ValueError, match="1 modulo 8"):
        encoder.encode(frames[1:], RATE, sound)


@pytest.mark.parametrize(("seconds", "clean"), [(0.3, True), (0.5, False)])
def test_a_burst_is_clean_when_it_is_heard_in_the_prefix(tiny_model: Path, seconds: float, clean: bool) -> None:
    """A prefix of 9 frames ends at 0.375 s."""
    vae = ClipEncoder(resolve_model(str(tiny_model)), "cpu", with_audio=True).audio_vae
    silence = np.random.default_rng(0).normal(0, 1e-3, (2, AUDIO_RATE)).astype(np.float32)
    burst = silence.copy()
    start = round(seconds * AUDIO_RATE)
    burst[:, start : start + 80] = 0.9
    change = (encode_audio(vae, burst) - encode_audio(vae, silence)).abs().amax(1)
    prefix = audio_prefix_tokens(9, RATE)
    assert prefix == 9
    heard_from = int(torch.nonzero(change > 1e-5)[0])
    assert heard_from == pytest.approx(seconds * AUDIO_LATENTS_PER_SECOND, abs=1)
    assert (heard_from < prefix) == clean
