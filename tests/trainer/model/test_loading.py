from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxtrain_trainer.errors import ModelUnavailable, PrecisionUnavailable
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import (
    load_audio_vae,
    load_connectors,
    load_report,
    load_transformer,
    load_video_vae,
    load_vocoder,
)
from ltxtrain_trainer.model.precision import Precision, is_available
from ltxtrain_trainer.model.text_encoder import load_text_encoder


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model))


@pytest.mark.parametrize(
    ("load", "component"),
    [
        (load_video_vae, "vae"),
        (load_audio_vae, "audio_vae"),
        (load_vocoder, "vocoder"),
        (load_connectors, "connectors"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_component_is_frozen_in_its_format(
    folder: ModelFolder, load: Callable[[ModelFolder, str, torch.dtype], Any], component: str, dtype: torch.dtype
) -> None:
    model = load(folder, "cpu", dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    report = load_report(model)
    assert report.component == component and report.seconds > 0
    stored = sum(file.stat().st_size for file in (folder.path / component).glob("*.safetensors"))
    assert report.size_bytes == pytest.approx(stored * dtype.itemsize / 4, rel=0.1)


def outputs(model: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    dtype = model.dtype
    tokens = torch.randn(1, 32, 128, generator=generator).to(dtype)
    level = torch.tensor([700.0])
    with torch.no_grad():
        video, audio = model(
            hidden_states=tokens,
            audio_hidden_states=tokens[:, :9],
            encoder_hidden_states=torch.randn(1, 128, 64, generator=generator).to(dtype),
            audio_encoder_hidden_states=torch.randn(1, 128, 32, generator=generator).to(dtype),
            timestep=level.expand(1, 32),
            audio_timestep=level.expand(1, 9),
            sigma=level,
            audio_sigma=level,
            num_frames=2,
            height=4,
            width=4,
            audio_num_frames=9,
            return_dict=False,
        )
    return torch.cat([video.flatten(), audio.flatten()]).float()


@pytest.mark.parametrize(
    ("precision", "error", "share"),
    [(Precision.BF16, 0.02, 0.51), (Precision.INT8, 0.03, 0.40), (Precision.FP8, 0.08, 0.40)],
)
def test_a_smaller_format_costs_little_accuracy(
    folder: ModelFolder, precision: Precision, error: float, share: float
) -> None:
    exact, small = (load_transformer(folder, "cpu", kind) for kind in (Precision.FP32, precision))
    expected, found = outputs(exact), outputs(small)
    assert 0 < (found - expected).norm() / expected.norm() < error
    assert load_report(small).size_bytes < share * load_report(exact).size_bytes


def test_a_sharded_component_loads_whole(folder: ModelFolder, tmp_path: Path) -> None:
    model = load_transformer(folder, "cpu", Precision.FP32)
    model.save_pretrained(tmp_path / "transformer", max_shard_size="1MB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 2
    sharded = load_transformer(resolve_model(str(tmp_path), components=["transformer"]), "cpu", Precision.FP32)
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in sharded.state_dict().items())


@pytest.mark.parametrize(("component", "load"), [("vae", load_video_vae), ("text_encoder", load_text_encoder)])
def test_no_weight_stays_random(
    folder: ModelFolder, tmp_path: Path, component: str, load: Callable[[ModelFolder, str, torch.dtype], Any]
) -> None:
    (tmp_path / component).mkdir()
    (tmp_path / component / "config.json").write_bytes((folder.path / component / "config.json").read_bytes())
    (file,) = (folder.path / component).glob("*.safetensors")
    tensors = load_file(file)
    left_out = sorted(name for name in tensors if name.endswith(".weight"))[3]
    del tensors[left_out]
    save_file(tensors, tmp_path / component / file.name, metadata={"format": "pt"})
    with pytest.raises(ModelUnavailable, match="lacks 1 weights"):
        load(resolve_model(str(tmp_path), components=[component]), "cpu", torch.float32)


@pytest.mark.skipif(is_available(Precision.NF4), reason="nf4 works here")
def test_a_format_without_its_library_says_what_to_install(folder: ModelFolder) -> None:
    with pytest.raises(PrecisionUnavailable, match=r"CUDA device and bitsandbytes: pip install .*quantized"):
        load_transformer(folder, "cpu", Precision.NF4)
