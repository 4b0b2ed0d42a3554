"""One real forward and backward pass before step 1: what does not fit fails within a minute, not after an hour."""

import time
from typing import Any

import torch

from trainer.data.dataset import Samples, read_sample
from trainer.errors import DeviceMemoryExhausted
from trainer.model.transformer import VelocityModel
from trainer.reports import Preflight
from trainer.training.loop import prepare
from trainer.training.lora import adapter
from trainer.training.losses import clip_loss, token_count, training_draw
from trainer.training.settings import TrainSettings

# Of the optimizer, for each weight of the adapter: two moments, as float32 or as 8-bit codes.
_MOMENT_BYTES = {"adamw": 8, "adamw_8bit": 2}


def preflight(transformer: Any, samples: Samples, settings: TrainSettings) -> Preflight:
    """A training step of the first sample whose result is thrown away; the adapter stays as it is.

    DeviceMemoryExhausted names the setting to change when the device has too little memory.
    """
    prepare(transformer, settings)
    model = VelocityModel(transformer)
    parameters = adapter(transformer).values()
    clip, prompt = read_sample(samples, 0, settings.with_audio)
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    try:
        moments = torch.empty(  # the optimizer's share, allocated for as long as the pass lasts
            sum(parameter.numel() for parameter in parameters) * _MOMENT_BYTES[settings.optimizer],
            dtype=torch.uint8,
            device=model.device,
        )
        started = time.perf_counter()
        loss = clip_loss(model, clip, prompt, training_draw(clip, settings.seed, 0, 0), settings.conditioning_frames)
        loss.total.backward()  # type: ignore[no-untyped-call]
        loss.total.item()
        seconds = time.perf_counter() - started
        del moments
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryExhausted(
            f"The device has too little memory to train on clips of {token_count(clip)} tokens; "
            f"{_remedy(transformer, settings)}."
        ) from error
    finally:
        for parameter in parameters:
            parameter.grad = None
    peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else 0
    if on_gpu:
        torch.cuda.empty_cache()
    return Preflight(seconds=seconds, tokens=token_count(clip), peak_memory_bytes=peak)


def _remedy(transformer: Any, settings: TrainSettings) -> str:
    """The change that costs least of what is left to change."""
    block = transformer.transformer_blocks[0]
    base = block.attn1.to_q.get_base_layer().weight
    if not settings.gradient_checkpointing:
        return "turn gradient checkpointing on"
    if type(base) is torch.nn.Parameter and base.element_size() > 1:
        return "set base_precision to int8"
    if settings.optimizer == "adamw":
        return "set optimizer to adamw_8bit"
    if settings.rank > 8:
        return f"set rank to {settings.rank // 2}"
    return "lower resolution or number_of_frames"
