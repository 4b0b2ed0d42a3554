"""The stored weights: a whole LTX 2.3, small, and a video VAE that gives back what it was given."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ltxtrain_pocket.drawing import render
from ltxtrain_pocket.learning import Pocket
from ltxtrain_pocket.least_squares import encode_by_components
from ltxtrain_pocket.model import build_pocket_model
from ltxtrain_pocket.scenes import FRAMES, opening
from ltxtrain_pocket.weights import LEARNED, WEIGHTS, digest

LIMIT_BYTES = 24_000_000


@pytest.fixture(scope="session")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Pocket:
    folder = tmp_path_factory.mktemp("model") / "pocket"
    build_pocket_model(folder)
    return Pocket(folder)


def test_the_stored_weights_are_small() -> None:
    assert sum((WEIGHTS / f"{name}.safetensors").stat().st_size for name in LEARNED) <= LIMIT_BYTES
    assert len(digest()) == 64


def test_diffusers_loads_it_as_it_is(pocket: Pocket) -> None:
    from diffusers import LTX2ConditionPipeline

    pipeline = LTX2ConditionPipeline.from_pretrained(pocket.folder.path, local_files_only=True)
    assert pipeline.transformer.config.num_layers == pocket.folder.layer_count


def test_the_video_vae_gives_back_clips_that_it_has_not_seen(pocket: Pocket) -> None:
    assert pocket.vae_psnr_db([opening(index) for index in range(3)]) >= 28


def test_the_short_way_of_encoding_is_the_encoder(pocket: Pocket) -> None:
    frames = render(opening(5), FRAMES)[:9]
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    with torch.no_grad():
        whole = pocket.vae.encode(pixels).latent_dist.mode()
    assert torch.allclose(encode_by_components(pocket.vae.encoder, pixels), whole, atol=1e-3)


def test_latents_are_normalised(pocket: Pocket) -> None:
    latents = np.stack([pocket.clip(render(opening(index), FRAMES)).video.float().numpy() for index in range(3)])
    assert 0.2 < float(latents.std()) < 2.0 and abs(float(latents.mean())) < 0.5


def test_a_folder_is_assembled_by_the_program(tmp_path: Path) -> None:
    from ltxtrain_services.local.model import assemble_pocket_model, is_assembled, pocket_folder

    folder = pocket_folder(tmp_path)
    assemble_pocket_model(folder)
    assert is_assembled(folder) and folder.parent == tmp_path / "models"
    assert not list(folder.parent.glob("*.part"))
