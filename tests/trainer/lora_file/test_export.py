"""The LoRA file in a fresh diffusers pipeline: what was trained is what comes out."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltxtrain_trainer.lora_file.export import PREFIX, lora_metadata, lora_tensors, module_of, video_only, write_lora
from ltxtrain_trainer.model.folder import public_name
from ltxtrain_trainer.model.transformer import Stream, VelocityModel
from ltxtrain_trainer.training.lora import adapter, add_lora, is_video_module
from tests.trainer.golden import LATENT_SHAPE, PROMPT_TOKENS, settings

RANK = 8
METADATA = lora_metadata(base_model="a/model", revision="r1", trigger_phrase="über $kite", settings=settings(), step=6)


def transformer_of(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from diffusers import LTX2VideoTransformer3DModel

    return LTX2VideoTransformer3DModel.from_pretrained(folder / "transformer", dtype=dtype).eval()


def trained(folder: Path, with_audio: bool, dtype: torch.dtype = torch.float32) -> Any:
    """A transformer whose adapter is as far from its start as a long training takes it."""
    transformer = transformer_of(folder, dtype)
    add_lora(transformer, rank=RANK, with_audio=with_audio, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapter(transformer).values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return transformer


def loaded(folder: Path, path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A fresh pipeline's transformer with the file."""
    from diffusers import LTX2ConditionPipeline

    pipeline = LTX2ConditionPipeline.from_pretrained(folder, local_files_only=True, dtype=dtype)
    pipeline.load_lora_weights(str(path))
    return pipeline.transformer


def velocities(transformer: Any, with_audio: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    sigma = torch.tensor([0.6])

    def stream(tokens: int, width: int) -> Stream:
        return Stream(
            torch.randn(1, tokens, 128, generator=generator),
            torch.randn(1, PROMPT_TOKENS, width, generator=generator),
            sigma.expand(1, tokens),
            sigma,
        )

    video, audio = stream(16, 64), stream(10, 32)
    with torch.no_grad():
        found = VelocityModel(transformer)(
            video, audio if with_audio else None, frame_rate=24.0, latent_shape=LATENT_SHAPE
        )
    return [velocity for velocity in found if velocity is not None]


def difference(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("with_audio", [False, True])
def test_a_fresh_pipeline_computes_what_was_trained(tiny_model: Path, tmp_path: Path, with_audio: bool) -> None:
    """With the file's tensors in float32, so that nothing but names and scale can differ."""
    transformer = trained(tiny_model, with_audio)
    path = tmp_path / "lora.safetensors"
    save_file({f"{PREFIX}{name}": tensor.detach() for name, tensor in adapter(transformer).items()}, path)
    fresh = loaded(tiny_model, path)
    assert difference(velocities(fresh, with_audio), velocities(transformer, with_audio)) == 0.0
    assert difference(velocities(transformer_of(tiny_model), with_audio), velocities(transformer, with_audio)) > 1e-3


@pytest.mark.parametrize("with_audio", [False, True])
def test_the_bfloat16_file_is_near(tiny_model: Path, tmp_path: Path, with_audio: bool) -> None:
    transformer = trained(tiny_model, with_audio)
    path = tmp_path / "lora.safetensors"
    write_lora(lora_tensors(adapter(transformer)), METADATA, path)
    assert {tensor.dtype for tensor in load_file(path).values()} == {torch.bfloat16}
    assert difference(velocities(loaded(tiny_model, path), with_audio), velocities(transformer, with_audio)) < 1e-2


def test_every_key_is_consumed(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_lora(lora_tensors(adapter(trained(tiny_model, with_audio=True))), METADATA, path)
    keys = load_file(path).keys()
    fresh = loaded(tiny_model, path)
    consumed = {name for name, _ in fresh.named_parameters() if ".lora_" in name}
    assert len(consumed) == len(keys) == 4 * 28 * 2
    assert {key.removeprefix(PREFIX) for key in keys} == {name.replace(".default_0", "") for name in consumed}


def test_names_are_the_original_ones_and_there_is_no_alpha(tiny_model: Path) -> None:
    keys = lora_tensors(adapter(trained(tiny_model, with_audio=True))).keys()
    assert "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "diffusion_model.transformer_blocks.3.audio_ff.net.0.proj.lora_B.weight" in keys
    assert all(key.startswith(PREFIX) and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


def test_the_video_part_of_a_joint_lora_is_the_video_part(tiny_model: Path, tmp_path: Path) -> None:
    transformer = trained(tiny_model, with_audio=True)
    tensors = lora_tensors(adapter(transformer))
    part = video_only(tensors)
    assert part.keys() == {key for key in tensors if is_video_module(module_of(key))}
    assert not any("audio" in key for key in part)
    assert part.keys() == lora_tensors(adapter(trained(tiny_model, with_audio=False))).keys()
    path = tmp_path / "video.safetensors"
    write_lora(part, METADATA, path)
    # Without audio no other module takes part.
    assert difference(velocities(loaded(tiny_model, path), False), velocities(transformer, False)) < 1e-2


def test_the_file_says_what_it_is(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    tensors = lora_tensors(adapter(trained(tiny_model, with_audio=False)))
    write_lora(tensors, METADATA, path)
    with safe_open(path, framework="pt") as file:
        found = file.metadata()
    assert found == METADATA
    assert (found["base_model"], found["base_model_revision"]) == ("a/model", "r1")
    assert (found["trigger_phrase"], found["training_type"]) == ("über $kite", "extend-prefix")
    assert json.loads(found["settings"])["rank"] == RANK
    read = load_file(path)
    assert read.keys() == tensors.keys() and all(torch.equal(read[key], tensors[key]) for key in read)


def test_tensors_begin_at_a_multiple_of_eight(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    for phrase in ("", "a", "ab", "abc"):
        write_lora({"diffusion_model.x": torch.ones(4)}, {"trigger_phrase": phrase}, path)
        assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
        assert load_file(path)["diffusion_model.x"].tolist() == [1.0] * 4


def test_equal_contents_have_equal_bytes(tiny_model: Path, tmp_path: Path) -> None:
    tensors = lora_tensors(adapter(trained(tiny_model, with_audio=False)))
    write_lora(tensors, METADATA, tmp_path / "one")
    write_lora(dict(reversed(tensors.items())), dict(reversed(METADATA.items())), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_the_header_says_what_the_model_is() -> None:
    """By the keys that programs' model lists read, and with nothing in it that differs between equal trainings."""
    assert METADATA["modelspec.architecture"] == "lightricks-ltx-video-2-3/lora"
    assert METADATA["modelspec.trigger_phrase"] == "über $kite"
    assert METADATA["modelspec.title"].startswith("über $kite")
    bare = lora_metadata(base_model="m", revision="r", trigger_phrase="", settings=settings(), step=1)
    assert "modelspec.trigger_phrase" not in bare and bare["modelspec.title"]
    assert all(isinstance(value, str) for value in METADATA.values())
    assert not [key for key in METADATA if "date" in key]


@pytest.mark.parametrize(
    ("reference", "revision", "name"),
    [
        ("diffusers/LTX-2.3-Diffusers", "abc123", "diffusers/LTX-2.3-Diffusers"),
        ("/home/kim/models/ltx-2.3", "sha256:12", "ltx-2.3"),
        ("~/models/ltx-2.3/", "sha256:12", "ltx-2.3"),
        ("a/repository#/home/kim/ltx.safetensors", "abc123+12", "a/repository#ltx.safetensors"),
        ("/srv/base#~/ltx.safetensors", "sha256:12+34", "base#ltx.safetensors"),
    ],
)
def test_a_shared_name_has_no_folders(reference: str, revision: str, name: str) -> None:
    assert public_name(reference, revision) == name
