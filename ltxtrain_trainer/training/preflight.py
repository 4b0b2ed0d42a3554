"""One real forward and backward pass before step 1: what does not fit fails within a minute, not after an hour."""

import time
from typing import Any

import torch

from ltxtrain_trainer.data.dataset import Samples, read_sample
from ltxtrain_trainer.model.team import Team
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.reports import Preflight
from ltxtrain_trainer.training.loop import exact, prepare
from ltxtrain_trainer.training.lora import adapter
from ltxtrain_trainer.training.losses import clip_loss, token_count, training_draw
from ltxtrain_trainer.training.optim import AdapterOptimizer
from ltxtrain_trainer.training.settings import TrainSettings


def preflight(transformer: Any, samples: Samples, settings: TrainSettings, team: Team | None = None) -> Preflight:
    """A training step of the first sample, with the optimizer's own, at rate 0: the adapter stays as it is.

    team: the workers that share the tokens of a clip, each of whom does this with the others.
    """
    prepare(transformer, settings)
    model = VelocityModel(transformer, team)
    clip, prompt = read_sample(samples, 0, settings.with_audio)
    on_gpu = model.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(model.device)
    optimizer = AdapterOptimizer(adapter(transformer), settings.optimizer)
    try:
        # Twice on a GPU: the first step makes the moments, and only the second has them beside its activations.
        for _ in range(2 if on_gpu else 1):
            started = time.perf_counter()
            draw = training_draw(clip, settings.seed, 0, 0)
            with exact(model.device, settings):
                loss = clip_loss(model, clip, prompt, draw, settings.conditioning_frames)
                loss.total.backward()
                loss.total.item()
            seconds = time.perf_counter() - started
            optimizer.step(0.0)
    finally:
        for parameter in optimizer.parameters.values():
            parameter.grad = None
    peak = torch.cuda.max_memory_allocated(model.device) if on_gpu else 0
    del optimizer
    if on_gpu:
        torch.cuda.empty_cache()
    return Preflight(seconds=seconds, tokens=token_count(clip), peak_memory_bytes=peak)
