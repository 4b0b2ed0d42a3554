"""The model of video alone, and blocks streamed from host memory: the same numbers as the whole model in place."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.training import golden_transformer, run, same, samples, settings, weights, with_lora
from trainer.model.folder import ModelFolder, resolve_model
from trainer.model.loading import block_stream, load_transformer
from trainer.model.precision import Precision
from trainer.model.streaming import PlainLane, spread
from trainer.model.transformer import Stream, VelocityModel
from trainer.model.video_half import VideoTransformer, is_audio


def video_half(whole: Any) -> Any:
    half = VideoTransformer.from_config(whole.config)
    half.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if not is_audio(name)})
    return half.eval()


def test_x(tiny_model):
    folder = resolve_model(str(tiny_model), components=["transformer"])
    whole = load_transformer(folder, "cpu", Precision.FP32)
    half = load_transformer(folder, "cpu", Precision.FP32, video_only=True, streamed_blocks=3)
    print(sum(p.numel() for p in whole.parameters()), block_stream(half).host_bytes)
    g = torch.Generator().manual_seed(0)
    level = torch.tensor([0.5])
    s = Stream(torch.randn(1, 16, 128, generator=g), torch.randn(1, 8, 64, generator=g), level.expand(1, 16), level)
    for skip in ((), (1,)):
        with torch.no_grad():
            a = VelocityModel(whole)(s, None, frame_rate=24.0, latent_shape=(4, 2, 2), skip_self_attention=skip)
            b = VelocityModel(half)(s, None, frame_rate=24.0, latent_shape=(4, 2, 2), skip_self_attention=skip)
        assert torch.equal(a[0], b[0])
