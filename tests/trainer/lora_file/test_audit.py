"""Each fault fails the audit with a reason of its own; a sound LoRA passes with its numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from ltxtrain_trainer.errors import AuditFailed
from ltxtrain_trainer.lora_file.audit import Audit, audit_lora, check_lora
from ltxtrain_trainer.lora_file.export import PREFIX, lora_tensors, video_only, write_lora
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model
from ltxtrain_trainer.training.lora import adapter
from tests.trainer.lora_file.test_export import METADATA, RANK, trained, transformer_of

A_KEY = f"{PREFIX}transformer_blocks.1.attn1.to_q.lora_A.weight"
B_KEY = f"{PREFIX}transformer_blocks.1.attn1.to_q.lora_B.weight"
AUDIO_MODULE = f"{PREFIX}transformer_blocks.1.audio_attn1.to_q"

Tensors = dict[str, torch.Tensor]
WriteAndAudit = Callable[..., Audit]  # (tensors, with_audio=False)


@pytest.fixture(scope="module")
def folder(tiny_model: Path) -> ModelFolder:
    return resolve_model(str(tiny_model))


@pytest.fixture(scope="module")
def joint(tiny_model: Path) -> Tensors:
    return lora_tensors(adapter(trained(tiny_model, with_audio=True)))


@pytest.fixture
def audit(folder: ModelFolder, tmp_path: Path) -> WriteAndAudit:
    def write_and_audit(tensors: Tensors, with_audio: bool = False) -> Audit:
        path = tmp_path / "lora.safetensors"
        write_lora(tensors, METADATA, path)
        return audit_lora(path, folder, with_audio=with_audio)

    return write_and_audit


@pytest.fixture
def video(joint: Tensors) -> Tensors:
    return dict(video_only(joint))


def reason(audit: WriteAndAudit, tensors: Tensors, **options: Any) -> str:
    with pytest.raises(AuditFailed) as caught:
        audit(tensors, **options)
    return caught.value.reason


def test_a_sound_lora_passes_with_its_numbers(tiny_model: Path, audit: WriteAndAudit, joint: Tensors) -> None:
    found = audit(joint, with_audio=True)
    assert found.modules == 4 * 28
    assert found.parameters == sum(tensor.numel() for tensor in joint.values())
    weights = transformer_of(tiny_model).state_dict()
    families: dict[str, list[float]] = {}
    for key in joint:
        if key.endswith(".lora_A.weight"):
            module = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            product = joint[key.replace("lora_A", "lora_B")].double() @ joint[key].double()
            sums = families.setdefault(module.split(".")[2], [0.0, 0.0])
            sums[0] += product.square().sum().item()
            sums[1] += weights[f"{module}.weight"].double().square().sum().item()
    assert found.update == pytest.approx({name: (ba / w) ** 0.5 for name, (ba, w) in families.items()}, rel=1e-5)
    assert all(0 < size < 1 for size in found.update.values())


def test_a_part_of_what_was_audited_is_checked_without_the_base_weights(
    folder: ModelFolder, joint: Tensors, video: Tensors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*arguments: Any) -> Any:
        raise AssertionError("tens of gigabytes once more")

    monkeypatch.setattr("ltxtrain_trainer.lora_file.audit._base_tensors", read)
    path = tmp_path / "part.safetensors"
    write_lora(video, METADATA, path)
    assert check_lora(path, folder, with_audio=False).keys() == video.keys()
    write_lora(joint, METADATA, path)
    with pytest.raises(AuditFailed):
        check_lora(path, folder, with_audio=False)


def test_the_video_part_passes_as_video_only(audit: WriteAndAudit, video: Tensors) -> None:
    assert set(audit(video).update) == {"attn1", "attn2", "ff"}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_value_that_is_not_finite(audit: WriteAndAudit, video: Tensors, value: float) -> None:
    video[B_KEY] = video[B_KEY].clone()
    video[B_KEY][0, 0] = value
    assert reason(audit, video) == "NON_FINITE"


def test_a_family_that_learned_nothing(audit: WriteAndAudit, video: Tensors) -> None:
    silent = {
        key: torch.zeros_like(tensor) if ".ff." in key and "lora_B" in key else tensor for key, tensor in video.items()
    }
    assert reason(audit, silent) == "ZERO"


def test_audio_in_a_video_only_lora(audit: WriteAndAudit, joint: Tensors, video: Tensors) -> None:
    video |= {key: tensor for key, tensor in joint.items() if key.startswith(AUDIO_MODULE)}
    assert reason(audit, video) == "FOREIGN_KEYS"


def test_a_module_that_no_training_of_ours_touches(audit: WriteAndAudit, joint: Tensors) -> None:
    extra = {
        f"{PREFIX}proj_in.lora_A.weight": torch.ones(RANK, 128),
        f"{PREFIX}proj_in.lora_B.weight": torch.ones(64, RANK),
    }
    assert reason(audit, joint | extra, with_audio=True) == "FOREIGN_KEYS"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "base_model.model.", "transformer.", ""])
def test_a_prefix_that_consumers_do_not_know(audit: WriteAndAudit, video: Tensors, prefix: str) -> None:
    renamed = {f"{prefix}{key.removeprefix(PREFIX)}": tensor for key, tensor in video.items()}
    assert reason(audit, renamed) == "NOT_LOADABLE"


def test_a_block_that_the_model_has_not(audit: WriteAndAudit, video: Tensors) -> None:
    """diffusers only logs this."""
    video |= {key.replace("blocks.1.", "blocks.9."): video[key].clone() for key in (A_KEY, B_KEY)}
    assert reason(audit, video) == "NOT_LOADABLE"


def test_half_a_module(audit: WriteAndAudit, video: Tensors) -> None:
    del video[B_KEY]
    assert reason(audit, video) == "NOT_LOADABLE"


def test_a_tensor_of_another_shape(audit: WriteAndAudit, video: Tensors) -> None:
    video[A_KEY] = torch.ones(RANK, 32, dtype=torch.bfloat16)
    assert reason(audit, video) == "NOT_LOADABLE"


def test_an_update_larger_than_the_weights(audit: WriteAndAudit, video: Tensors) -> None:
    video = {key: tensor * 20 if ".attn2." in key else tensor for key, tensor in video.items()}
    with pytest.raises(AuditFailed, match="attn2") as caught:
        audit(video)
    assert caught.value.reason == "OUT_OF_BOUNDS"


@pytest.mark.parametrize("content", [b"nothing of the kind", safetensors.torch.save({})])
def test_what_is_no_lora_file(folder: ModelFolder, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)
    with pytest.raises(AuditFailed) as caught:
        audit_lora(path, folder, with_audio=False)
    assert caught.value.reason == "NOT_LOADABLE"
