"""The loss on clips that are not trained on, with fixed noise: comparable between steps and between trainings."""

from collections.abc import Sequence

import torch

from trainer.distributed import Worker
from trainer.losses import clip_loss, fixed_draw
from trainer.samples import Samples, read_sample
from trainer.settings import TrainSettings
from trainer.velocity import VelocityModel

# The middles of the quarters of the noise levels.
LEVELS = (0.125, 0.375, 0.625, 0.875)

PATIENCE = 3


def held_out_loss(
    model: VelocityModel, samples: Samples, indices: Sequence[int], settings: TrainSettings, worker: Worker
) -> float:
    """Mean loss over the clips at indices and over LEVELS; each worker measures its share, all get the mean."""
    total = torch.zeros(1, dtype=torch.float64, device=model.device)
    with torch.no_grad():
        for position in range(worker.rank, len(indices), worker.count):
            clip, prompt = read_sample(samples, indices[position], settings.with_audio)
            for level in LEVELS:
                draw = fixed_draw(clip, level, position)
                total += clip_loss(model, clip, prompt, draw, settings.conditioning_frames).total
    worker.sum(total)
    return total.item() / (len(indices) * len(LEVELS))


def suggested_stop(history: Sequence[tuple[int, float]]) -> int | None:
    """The step of the lowest of the losses (step, held-out loss) once PATIENCE later ones were all above it."""
    if not history:
        return None
    best = min(range(len(history)), key=lambda index: history[index][1])
    return history[best][0] if len(history) - best > PATIENCE else None
