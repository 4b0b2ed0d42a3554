import hashlib
import math
from pathlib import Path

import pytest
import torch

from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.loading import load_audio_vae, load_tokenizer, load_video_vae, load_vocoder
from ltxtrain_trainer.model.tiny import build_tiny_model


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_two_builds_have_the_same_bytes(tiny_model: Path, tmp_path: Path) -> None:
    torch.manual_seed(7)  # the weights do not depend on it
    before = torch.random.get_rng_state()
    build_tiny_model(tmp_path)
    assert digests(tmp_path) == digests(tiny_model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_it_is_small(tiny_model: Path) -> None:
    assert sum(file.stat().st_size for file in tiny_model.rglob("*") if file.is_file()) < 40_000_000


@pytest.mark.parametrize("name", ["LTX2Pipeline", "LTX2ConditionPipeline"])
def test_pipelines_load_it_as_it_is(tiny_model: Path, name: str) -> None:
    import diffusers

    pipeline = getattr(diffusers, name).from_pretrained(tiny_model, local_files_only=True)
    vae = pipeline.vae
    assert (vae.spatial_compression_ratio, vae.temporal_compression_ratio, vae.config.latent_channels) == (32, 8, 128)
    assert pipeline.tokenizer_max_length == 128
    assert pipeline.vocoder.config.output_sampling_rate == 48_000


def test_statistics_are_not_the_identity(tiny_model: Path) -> None:
    folder = resolve_model(str(tiny_model))
    for vae in (load_video_vae(folder, "cpu", torch.float32), load_audio_vae(folder, "cpu", torch.float32)):
        assert vae.latents_mean.std() > 0.05
        assert (vae.latents_std < 0.7).all() and vae.latents_std.std() > 0.05


def test_bandwidth_extension_hears_a_tone_where_it_is(tiny_model: Path) -> None:
    vocoder = load_vocoder(resolve_model(str(tiny_model)), "cpu", torch.float32)
    tone = torch.sin(2 * math.pi * 1000 * torch.arange(16_000) / 16_000)
    mel, *_ = vocoder.mel_stft(tone[None])
    assert mel[0, :, 100].argmax() == 21


def test_any_text_goes_to_tokens_and_back(tiny_model: Path) -> None:
    tokenizer = load_tokenizer(resolve_model(str(tiny_model)))
    text = "a red ball 🔴 rollt über die Straße"
    tokens = tokenizer(text).input_ids
    assert tokens[0] == tokenizer.bos_token_id
    assert tokenizer.decode(tokens, skip_special_tokens=True) == text
