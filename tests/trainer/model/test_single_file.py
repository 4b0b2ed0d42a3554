"""The names in tests/data/original_names.txt are those of ltx-core's own modules; `*` stands for a block's number."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.model.loading import load_connectors, load_report, load_transformer
from ltxtrain_trainer.model.precision import Precision

NAMES = Path(__file__).parents[2] / "data" / "original_names.txt"
LAYERS, CONNECTOR_LAYERS = 4, 2


def original_names() -> list[str]:
    names = []
    for line in NAMES.read_text().splitlines():
        layers = CONNECTOR_LAYERS if "transformer_1d_blocks" in line else LAYERS
        names += [line.replace("*", str(layer)) for layer in range(layers)] if "*" in line else [line]
    return names


def diffusers_names(originals: list[str]) -> dict[str, tuple[str, str]]:
    """By the conversion in diffusers for the transformer, and by hand for the connectors, which it does not know."""
    from diffusers.loaders.single_file_utils import convert_ltx2_transformer_to_diffusers

    names = {}
    for original in originals:
        if "_connector." in original or original.startswith("text_embedding_projection."):
            name = original.replace("model.diffusion_model.", "").replace("_embeddings_connector", "_connector")
            name = name.replace("_1d_", "_").replace("q_norm", "norm_q").replace("k_norm", "norm_k")
            name = name.replace("text_embedding_projection.", "").replace("_aggregate_embed", "_text_proj_in")
            names[original] = ("connectors", name)
        else:
            known = original.replace("prompt_adaln_single", "prompt_adaln")
            (name,) = convert_ltx2_transformer_to_diffusers({known: None})
            names[original] = ("transformer", name)
    return names


@pytest.fixture(scope="module")
def tensors(tiny_model: Path) -> dict[str, torch.Tensor]:
    """The tiny model under the original names, beside weights of other components."""
    stored = {
        name: load_file(tiny_model / name / "diffusion_pytorch_model.safetensors")
        for name in ("transformer", "connectors")
    }
    names = diffusers_names(original_names())
    assert len(names) == sum(map(len, stored.values()))
    named = {original: stored[component][name] for original, (component, name) in names.items()}
    return {**named, "vae.encoder.conv_in.conv.weight": torch.zeros(1), "vocoder.conv_pre.bias": torch.zeros(1)}


@pytest.fixture(scope="module")
def original(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("original") / "ltx-2.3-tiny.safetensors"
    save_file(tensors, file)
    return file


@pytest.mark.parametrize("load", [load_transformer, load_connectors])
def test_it_loads_the_same_weights_as_the_folder(
    tiny_model: Path, original: Path, load: Callable[[ModelFolder, str, Any], Any]
) -> None:
    kind = Precision.FP32 if load is load_transformer else torch.float32
    folder, single = resolve_model(str(tiny_model)), resolve_model(f"{tiny_model}#{original}")
    expected, found = load(folder, "cpu", kind), load(single, "cpu", kind)
    assert found.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(tensor, found.state_dict()[name]) for name, tensor in expected.state_dict().items())
    assert load_report(found).size_bytes == load_report(expected).size_bytes
    assert not found.training and not any(parameter.requires_grad for parameter in found.parameters())


def test_it_is_quantized_as_the_folder_is(tiny_model: Path, original: Path) -> None:
    folder, single = resolve_model(str(tiny_model)), resolve_model(f"{tiny_model}#{original}")
    expected, found = (load_transformer(model, "cpu", Precision.INT8) for model in (folder, single))
    assert load_report(found).size_bytes == load_report(expected).size_bytes
    weight = "transformer_blocks.3.ff.net.2"
    assert torch.equal(
        found.get_submodule(weight).weight.dequantize(), expected.get_submodule(weight).weight.dequantize()
    )


def test_the_folder_needs_no_weights_of_its_own_then(tiny_model: Path, original: Path, tmp_path: Path) -> None:
    for component in ("transformer", "connectors"):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_bytes((tiny_model / component / "config.json").read_bytes())
    (tmp_path / "whole.safetensors").symlink_to(original)
    components = ("transformer", "connectors")
    found = resolve_model(f"{tmp_path}#whole.safetensors", components=components)
    assert load_transformer(found, "cpu", Precision.BF16).config.num_layers == LAYERS
    with pytest.raises(ModelUnavailable, match="transformer lacks its weights"):
        resolve_model(str(tmp_path), components=components)


def test_revision_names_the_file_too(
    tiny_model: Path, original: Path, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    changed = tmp_path / "changed.safetensors"
    save_file({**tensors, "vocoder.conv_pre.bias": torch.ones(1)}, changed)
    first, second = (resolve_model(f"{tiny_model}#{file}") for file in (original, changed))
    assert first.revision != second.revision
    assert first.revision.startswith(resolve_model(str(tiny_model)).revision)
    assert resolve_model(first.reference, first.revision) == first
    with pytest.raises(ModelUnavailable, match="holds revision"):
        resolve_model(second.reference, first.revision)


def save_without(tensors: dict[str, torch.Tensor], part: str, file: Path) -> None:
    save_file({name: tensor for name, tensor in tensors.items() if part not in name}, file)


@pytest.mark.parametrize(
    ("left_out", "error", "text"),
    [
        ("model.diffusion_model.", ModelUnsupported, "no original LTX file"),
        ("prompt_adaln_single", ModelUnsupported, "looks like LTX 2.0"),
        ("ff.net.0.proj.bias", ModelUnsupported, "looks like LTX 2.5"),
        ("text_embedding_projection", ModelUnsupported, "no text connectors"),
    ],
)
def test_other_files_are_refused_before_loading(
    tiny_model: Path, tensors: dict[str, torch.Tensor], tmp_path: Path, left_out: str, error: type[Exception], text: str
) -> None:
    save_without(tensors, left_out, tmp_path / "other.safetensors")
    with pytest.raises(error, match=text):
        resolve_model(f"{tiny_model}#{tmp_path / 'other.safetensors'}")


def test_an_absent_file_is_named(tiny_model: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"no file .*nowhere.safetensors"):
        resolve_model(f"{tiny_model}#nowhere.safetensors")


def test_no_weight_stays_random(tiny_model: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "part.safetensors"
    save_without(tensors, "blocks.2.audio_attn1.to_k.weight", file)
    with pytest.raises(ModelUnavailable, match=r"lacks 1 weights .*blocks.2.audio_attn1.to_k.weight"):
        load_transformer(resolve_model(f"{tiny_model}#{file}"), "cpu", Precision.BF16)


def test_a_foreign_weight_is_named(tiny_model: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "more.safetensors"
    save_file({**tensors, "model.diffusion_model.video_embeddings_connector.extra": torch.zeros(1)}, file)
    with pytest.raises(ModelUnavailable, match=r"has 1 weights .*video_connector.extra"):
        load_connectors(resolve_model(f"{tiny_model}#{file}"), "cpu", torch.float32)


def test_weights_of_another_size_are_named(tiny_model: Path, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    file = tmp_path / "wide.safetensors"
    save_file({**tensors, "model.diffusion_model.patchify_proj.weight": torch.zeros(128, 128)}, file)
    with pytest.raises(ModelUnavailable, match=r"proj_in.weight of shape \[128, 128\]"):
        load_transformer(resolve_model(f"{tiny_model}#{file}"), "cpu", Precision.BF16)
