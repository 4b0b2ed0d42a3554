"""An encoder's memory, and its behaviour when memory ends; in this process, with a pretended GPU."""

import asyncio
import gc
from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import ltxtrain_trainer.data.encode
from ltxtrain_services.preprocess.actors import Encoder, FittedScene, ModelSource, Phase
from ltxtrain_services.preprocess.encoder_pool import Encoders
from ltxtrain_services.runtime.cluster import Cluster
from ltxtrain_services.runtime.objects import Objects, StoreAddress
from ltxtrain_services.runtime.trainer_errors import GpuOutOfMemory, translated
from ltxtrain_trainer.data.encoded import load_clip
from ltxtrain_trainer.errors import DeviceMemoryExhausted
from ltxtrain_trainer.model.folder import resolve_model


@pytest.fixture
def encoder(object_store: StoreAddress, tiny_model: Path) -> Any:
    """The class behind the actor."""
    folder = resolve_model(str(tiny_model))
    source = ModelSource(reference=str(tiny_model), revision=folder.revision, with_audio=False)
    return Encoder.__ray_metadata__.modified_class(object_store, source, 2, {})  # type: ignore[attr-defined] # ray.remote adds it


def held(but: Collection[int] = ()) -> dict[int, str]:
    """Models and their parts in memory, by their id."""
    gc.collect()
    modules = (one for one in gc.get_objects() if issubclass(type(one), torch.nn.Module))
    return {id(one): type(one).__name__ for one in modules if id(one) not in but}


def test_gemma_and_the_vae_are_never_in_memory_together(encoder: Any) -> None:
    before = held()
    encoder.turn_to(Phase.PROMPTS)
    with_prompts = " ".join(held(but=before).values())
    assert "Gemma" in with_prompts and "Autoencoder" not in with_prompts
    encoder.turn_to(Phase.CLIPS)
    with_clips = " ".join(held(but=before).values())
    assert "Autoencoder" in with_clips and "Gemma" not in with_clips


@pytest.mark.parametrize("tiles_fit", [True, False])
def test_what_does_not_fit_is_encoded_in_tiles(
    tiles_fit: bool, encoder: Any, object_store: StoreAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []
    real = ltxtrain_trainer.data.encode.encode_video

    def encode_video(vae: Any, frames: Any) -> torch.Tensor:
        tried.append(vae.use_tiling)
        if vae.use_tiling and tiles_fit:
            return real(vae, frames)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ltxtrain_trainer.data.encode, "encode_video", encode_video)
    picture = FittedScene(frames=np.zeros((9, 64, 64, 3), np.uint8), audio=None, frame_rate=24.0)
    encoder.turn_to(Phase.CLIPS)
    if tiles_fit:
        stored = encoder.encode(picture)
        data = Objects(object_store).get_bytes(stored.key, sha256=stored.sha256)
        assert tuple(load_clip(data).video.shape) == (128, 2, 2, 2)
        # A clip that did not fit whole is not tried whole again.
        assert encoder.encode(picture) == stored
        assert tried == [False, True, True]
    else:
        with pytest.raises(DeviceMemoryExhausted, match=r"64x64; take a smaller resolution"):
            encoder.encode(picture)
        assert tried == [False, True]


class InThisProcess:
    """An actor's handle, of its class in this process."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *given: asyncio.to_thread(getattr(self._behind, method), *given))


class OwnCluster(Cluster):
    """Whatever is awaited is there."""

    def __init__(self) -> None:
        pass

    async def value(self, reference: Any) -> Any:
        return await reference


@pytest.mark.parametrize("doing", ["loading the text encoder", "embedding a prompt"])
async def test_prompts_that_find_no_memory_end_by_the_name_of_it(
    doing: str, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    async with Encoders(OwnCluster(), lambda: InThisProcess(encoder)) as encoders:
        if doing.startswith("loading"):
            monkeypatch.setattr(ltxtrain_trainer.data.encode, "load_connectors", full)
        with pytest.raises(GpuOutOfMemory, match=f"too little memory for {doing}; "), translated():
            await encoders.turn_to(Phase.PROMPTS, 1)
            encoder._prompts.connectors = full
            await encoders.call("embed", "a disc")
