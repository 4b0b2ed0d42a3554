"""The training itself: a generator that computes a step when asked and says what it found.

The caller stops by not asking again, and may use the transformer between two reports (for previews, say): nothing that
the training computes depends on random state or on anything else that such a use could change.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor

from ltxtrain_trainer.data.dataset import Samples, prefetch, read_sample, split_held_out
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding
from ltxtrain_trainer.errors import TrainingDiverged
from ltxtrain_trainer.model.loading import block_stream
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.reports import QUARTERS, Step
from ltxtrain_trainer.seeds import sample_at
from ltxtrain_trainer.training.checkpoint import Checkpoint, fingerprint, require_same
from ltxtrain_trainer.training.distributed import ALONE, Worker
from ltxtrain_trainer.training.lora import adapter, adapter_digest
from ltxtrain_trainer.training.losses import ClipLoss, Draw, clip_loss, held_out_loss, token_count, training_draw
from ltxtrain_trainer.training.optim import AdapterOptimizer, learning_rate
from ltxtrain_trainer.training.requests import Request, Requests
from ltxtrain_trainer.training.settings import TrainSettings


@dataclass(frozen=True)
class CheckpointDue:
    """Time to store the checkpoint; its tensors are live, so before the next report is asked for."""

    step: int
    checkpoint: Checkpoint
    requested: bool = False


@dataclass(frozen=True)
class PreviewDue:
    """Time to sample with the transformer as it is; after a resume at such a step it is due once more."""

    step: int
    requested: bool = False


Report = Step | CheckpointDue | PreviewDue


def train(
    transformer: Any,
    samples: Samples,
    settings: TrainSettings,
    *,
    identity: Mapping[str, str],
    worker: Worker = ALONE,
    resume: Checkpoint | None = None,
    requests: Requests | None = None,
) -> Iterator[Report]:
    """Train the adapter that add_lora gave the transformer, from its start or from a checkpoint.

    identity: what else must be equal for a checkpoint to be continued (model revision, digest of the training set).
    requests: taken after each step; STOP ends the training with a checkpoint of that step.
    Every worker of several runs this with the same arguments but its own worker, and gets the same reports; requests
    are the first one's, which alone stops: the others are to be ended.
    Raises CheckpointMismatch for a checkpoint of another training, TrainingDiverged when a loss or gradient is not
    finite, before it reaches the weights, and PrefixCoversClip when a clip has nothing to learn.
    """
    trained, held_out = split_held_out(len(samples), settings.holdout_fraction, settings.seed)
    if not trained:
        raise ValueError("There is no sample to train on.")
    share = worker.share(settings.batch_size)
    this_training = fingerprint(
        settings, {"samples": str(len(samples)), "adapter": adapter_digest(transformer), **identity}
    )
    if resume is not None:
        require_same(resume.fingerprint, this_training)
    requests = requests or Requests()
    if worker.team is not None and settings.compile_blocks:
        raise ValueError("Blocks are not compiled where workers share the tokens of a clip.")
    prepare(transformer, settings)
    model = VelocityModel(transformer, worker.team)
    optimizer = AdapterOptimizer(adapter(transformer), settings.optimizer)
    done = 0
    if resume is not None:
        optimizer.load(resume.adapter, resume.optimizer)
        done = resume.step
        if settings.is_preview_due(done):
            yield PreviewDue(done)

    def checkpoint(requested: bool) -> CheckpointDue:
        weights, state = optimizer.weights_by_name(), optimizer.state()
        return CheckpointDue(step, Checkpoint(step, weights, state, this_training), requested)

    def read(place: tuple[int, int]) -> tuple[EncodedClip, PromptEmbedding, Draw]:
        step, index = place
        position = (step - 1) * settings.batch_size + index
        sample = trained[sample_at(settings.seed, position, len(trained))]
        clip, prompt = read_sample(samples, sample, settings.with_audio)
        return clip, prompt, training_draw(clip, settings.seed, step, index)

    steps = range(done + 1, settings.steps + 1)
    batches = prefetch(read, ((step, index) for step in steps for index in share))
    for step in steps:
        started = time.perf_counter()
        tally = _Tally()
        optimizer.clear()
        for _ in share:
            (clip, prompt, draw), waited = next(batches)
            with exact(model.device, settings):
                loss = clip_loss(model, clip, prompt, draw, settings.conditioning_frames)
                (loss.total / settings.batch_size).backward()
            tally.add(loss, draw.video.level.item(), token_count(clip), waited)
        worker.sum(optimizer.gradients)
        taken = requests.take()
        numbers = tally.sum(worker, model.device, preview_asked=Request.PREVIEW in taken)
        norm = optimizer.clip().item()
        if not math.isfinite(norm) or not math.isfinite(numbers.video + numbers.audio):
            raise TrainingDiverged(step)
        rate = learning_rate(settings, step)
        optimizer.step(rate)
        seconds = time.perf_counter() - started
        evaluate = held_out and settings.is_due(settings.evaluation_interval, step)
        yield Step(
            step=step,
            loss=(numbers.video + numbers.audio) / settings.batch_size,
            video_loss=numbers.video / settings.batch_size,
            audio_loss=numbers.audio / settings.batch_size if settings.with_audio else None,
            quarter_losses=numbers.quarter_losses(),
            gradient_norm=norm,
            learning_rate=rate,
            seconds=seconds,
            tokens_per_second=numbers.tokens / seconds,
            data_wait_seconds=numbers.waited / worker.shares,
            held_out_loss=held_out_loss(model, samples, held_out, settings, worker) if evaluate else None,
        )
        asked = Request.CHECKPOINT in taken
        if due := asked or settings.is_due(settings.checkpoint_interval, step):
            yield checkpoint(asked)
        if not requests.stopping and (numbers.preview_asked or settings.is_preview_due(step)):
            yield PreviewDue(step, numbers.preview_asked)
        if requests.stopping:
            if not due:
                yield checkpoint(False)
            return


@dataclass(frozen=True)
class _Numbers:
    """Sums over the clips of a batch; per quarter of the noise level as well."""

    video: float
    audio: float
    tokens: float
    waited: float
    preview_asked: bool
    quarter_sums: tuple[float, ...]
    quarter_counts: tuple[float, ...]

    def quarter_losses(self) -> tuple[float | None, ...]:
        return tuple(
            total / count if count else None
            for total, count in zip(self.quarter_sums, self.quarter_counts, strict=True)
        )


class _Tally:
    """Collects what a batch computes and leaves it on the device until the batch is done."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []
        self._levels: list[float] = []
        self._tokens = 0
        self._waited = 0.0

    def add(self, loss: ClipLoss, video_level: float, tokens: int, waited: float) -> None:
        video = loss.video.detach()
        self._losses.append(
            torch.stack([video, torch.zeros_like(video) if loss.audio is None else loss.audio.detach()])
        )
        self._levels.append(video_level)
        self._tokens += tokens
        self._waited += waited

    def sum(self, worker: Worker, device: torch.device, *, preview_asked: bool) -> _Numbers:
        losses: list[list[float]] = torch.stack(self._losses).tolist()
        sums, counts = [0.0] * QUARTERS, [0.0] * QUARTERS
        for (video, _), level in zip(losses, self._levels, strict=True):
            quarter = min(int(level * QUARTERS), QUARTERS - 1)
            sums[quarter] += video
            counts[quarter] += 1
        video_sum, audio_sum = (sum(column) for column in zip(*losses, strict=True))
        numbers = torch.tensor(
            # Every worker samples a preview, so every one learns of the request, in the sum that there is anyway.
            [video_sum, audio_sum, self._tokens, self._waited, float(preview_asked), *sums, *counts],
            dtype=torch.float64,
            device=device,
        )
        worker.sum(numbers)
        # A team's workers have the same clips, and the same numbers of them.
        video_sum, audio_sum, tokens, waited, asked, *quarters = (numbers / worker.team_size).tolist()
        return _Numbers(
            video_sum, audio_sum, tokens, waited, asked > 0, tuple(quarters[:QUARTERS]), tuple(quarters[QUARTERS:])
        )


def prepare(transformer: Any, settings: TrainSettings) -> None:
    """Sets the transformer up for training; what is set already stays."""
    kept = settings.kept_blocks or not settings.gradient_checkpointing
    if block_stream(transformer) is not None and (settings.compile_blocks or kept):
        raise ValueError("Blocks in host memory are there for one pass at a time: they need checkpointing, uncompiled.")
    if settings.gradient_checkpointing:
        transformer.enable_gradient_checkpointing(_checkpointing_all_but(transformer, settings.kept_blocks))
    else:
        transformer.disable_gradient_checkpointing()
    if settings.compile_blocks:
        transformer.compile_repeated_blocks()


def _checkpointing_all_but(transformer: Any, kept: int) -> Callable[..., Any]:
    """Calls a block so that it is computed once more in the backward pass, which comes to the last ones first.

    The whole block: to keep the prompt's keys and values alone, which the noise does not change, would save 0.5 % of a
    step's FLOP at 768x768 and 2.4 % at 512x288 for 1.5 GiB. Blocks kept in as much memory save 0.4 % and 1.7 %.
    """
    blocks = transformer.transformer_blocks
    once = {id(block) for block in blocks[len(blocks) - kept :]}

    def call(block: Any, *inputs: Any) -> Any:
        if id(block) in once:
            return block(*inputs)
        return torch.utils.checkpoint.checkpoint(block, *inputs, use_reentrant=False)

    return call


@contextmanager
def exact(device: torch.device, settings: TrainSettings) -> Iterator[None]:
    """Around what has to give the same bytes each time: on CUDA every operation in its deterministic form, or an error.

    Warnings alone would not do: attention takes its deterministic backward pass in strict mode only. There torch itself
    takes the fastest kernel that has one: flash attention, or the memory-efficient one on cards older than Ampere.
    cuDNN's, which it prefers on Hopper and Blackwell, has none, so that the setting for it is to leave this out.
    Previews are outside, since decoders have operations without such a form.
    """
    if device.type != "cuda" or settings.attention == "fastest":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
