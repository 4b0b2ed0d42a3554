"""Decoding that does not fit is done in tiles, with what the first attempt held given back."""

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.plan import PreviewSettings
from ltxtrain_trainer.preview import previewer
from ltxtrain_trainer.preview.sampler import Sampled
from tests.trainer.golden import golden_transformer


@pytest.mark.parametrize(
    ("kind", "text"),
    [(torch.OutOfMemoryError, "CUDA out of memory"), (RuntimeError, "CUDNN_STATUS_ALLOC_FAILED")],
)
def test_what_does_not_fit_is_decoded_in_tiles(
    kind: type[RuntimeError], text: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, held, tiled = previewer.decode_video, list[weakref.ref[torch.Tensor]](), list[bool]()

    def decode(vae: Any, latents: torch.Tensor, *, tiling: bool = False) -> Any:
        tiled.append(tiling)
        if not tiling:
            computed = torch.zeros(8)
            held.append(weakref.ref(computed))
            raise kind(text)
        gc.collect()
        assert held[0]() is None, "the first attempt's memory is needed"
        return real(vae, latents, tiling=tiling)

    monkeypatch.setattr(previewer, "decode_video", decode)
    settings = PreviewSettings(frame_count=9, stg_scale=0.0, schedule_tokens=0, negative=tmp_path, inputs=())
    sampler = previewer.Previewer(
        folder=resolve_model(str(tiny_model)),
        transformer=golden_transformer(),
        settings=settings,
        seed=0,
        work_dir=tmp_path,
    )
    pixels, sound = sampler._decode(Sampled(torch.zeros(128, 2, 2, 2), None))
    assert tiled == [False, True] and sound is None
    assert pixels.shape == (9, 64, 64, 3) and pixels.dtype == np.uint8
