"""How a job is held on the devices that it got: one memory plan for all its workers, and for all its starts."""

from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch

from ltxtrain_trainer.data.dataset import SampleFolder, read_files, read_sample
from ltxtrain_trainer.errors import CheckpointMismatch, DeviceUnusable, ModelUnsupported
from ltxtrain_trainer.geometry import latent_frames
from ltxtrain_trainer.memory_plan import (
    CPU_KEPT_SHARE,
    LADDER,
    MAX_CPU_WEIGHTS,
    NO_OPTIMIZER,
    Load,
    MemoryPlan,
    ModelSize,
    choose_plan,
    keeping,
    more_streamed,
    plan_for,
    remedy,
)
from ltxtrain_trainer.model.device import free_bytes, host_free_bytes, memory_for
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.precision import Precision, is_available
from ltxtrain_trainer.plan import ContinuationPlan, JobPlan, PreviewSettings
from ltxtrain_trainer.training.checkpoint import Checkpoint
from ltxtrain_trainer.training.distributed import Worker
from ltxtrain_trainer.training.losses import token_count

AUTO = "auto"


@dataclass(frozen=True)
class Fit:
    """A chosen plan with what it was chosen by, for the error that names the next one."""

    plan: MemoryPlan
    reason: str
    load: Load
    model: ModelSize
    host_bytes: int
    precisions: Collection[str]

    def memory_for(self, doing: str) -> AbstractContextManager[None]:
        """Guard a part of the job. Raises DeviceMemoryExhausted with the next smaller setting on a full device."""
        following = more_streamed(self.plan, self.load, self.host_bytes, self.model)
        return memory_for(
            doing,
            remedy(self.plan, self.load, self.host_bytes, self.precisions, self.model),
            following.streamed_blocks if following else None,
        )


def fit_to_device(
    job: JobPlan, folder: ModelFolder, device: torch.device, worker: Worker, resume: Checkpoint | None
) -> Fit:
    """The plan of a job, the same on every worker: chosen by the one with the least memory.

    A job that goes on keeps the number format that it began in. Raises CheckpointMismatch when another is asked for,
    DeviceUnusable for a model that a CPU should not be given, and ModelUnsupported for one with too few heads to share.
    """
    model = ModelSize.of(folder.config("transformer"))
    if model.heads % worker.team_size or model.audio_heads % worker.team_size:
        raise ModelUnsupported(
            f"The {model.heads} attention heads of {folder.reference} cannot be shared by {worker.team_size} GPUs a "
            "clip. Set gpu_count so that fewer share one, or raise batch_size."
        )
    load = load_of(job, worker)
    began_in = resume.fingerprint.get("precision") if resume else None
    if began_in and job.precision not in (AUTO, began_in):
        raise CheckpointMismatch(
            f"The training began with a base model in {began_in} and cannot go on in {job.precision}: "
            f"its numbers would change. Set base_precision to {began_in} or auto."
        )
    asked = began_in or (None if job.precision == AUTO else job.precision)
    # Compiled blocks are never streamed (ltxtrain_trainer.training.loop.prepare), and computed in one way.
    host = 0 if job.settings.compile_blocks else worker.least(host_free_bytes() // worker.count, device)
    if device.type != "cuda":
        return _on_cpu(load, asked, min(job.streamed_blocks, model.layers), model, host)
    fit = _on_gpu(load, asked, job.streamed_blocks, model, worker.least(free_bytes(device), device), host)
    return replace(fit, precisions=()) if resume else fit


def fit_sampling(plan: ContinuationPlan, rank: int, folder: ModelFolder, device: torch.device) -> Fit:
    """The plan of sampling alone, with a LoRA of this rank. Raises DeviceUnusable as fit_to_device."""
    model = ModelSize.of(folder.config("transformer"))
    load = Load(
        tokens=0,
        rank=rank,
        with_audio=plan.with_audio,
        optimizer=NO_OPTIMIZER,
        preview_tokens=_preview_tokens(plan.clips),
    )
    asked = None if plan.precision == AUTO else plan.precision
    if device.type != "cuda":
        return _on_cpu(load, asked, min(plan.streamed_blocks, model.layers), model, 0)
    return _on_gpu(load, asked, plan.streamed_blocks, model, free_bytes(device), host_free_bytes())


def _on_gpu(
    load: Load, asked: str | None, streamed_blocks: int, model: ModelSize, device_bytes: int, host_bytes: int
) -> Fit:
    available = [name for name in LADDER if is_available(Precision(name))]
    choice = choose_plan(load, device_bytes, host_bytes, (asked,) if asked else available, model)
    plan, reason = choice.plan, choice.reason
    if streamed_blocks > plan.streamed_blocks:
        plan = plan_for(load, plan.precision, min(streamed_blocks, model.layers), model)
        reason = f"{plan}, after the device was full"
    return Fit(plan, reason, load, model, host_bytes, available)


def _on_cpu(load: Load, asked: str | None, streamed_blocks: int, model: ModelSize, host_bytes: int) -> Fit:
    weights = model.weights(load.with_audio)
    if asked is None and weights > MAX_CPU_WEIGHTS:
        raise DeviceUnusable(
            f"There is no GPU for a base model of {weights / 1e9:.0f} billion weights, and a CPU would need hours for "
            "its first step. Run the training where there is one, or set base_precision to train on the CPU anyhow."
        )
    plan = plan_for(load, asked or Precision.FP32, streamed_blocks, model)
    plan = keeping(plan, load, CPU_KEPT_SHARE * host_bytes, model)
    reason = "asked for" if asked else "there is no GPU"
    return Fit(plan, reason, load, model, 0, () if asked else LADDER[:1])


def load_of(job: JobPlan, worker: Worker) -> Load:
    """Tokens of its first training clip (all are of one shape) and of its largest preview, and the adapter."""
    settings = job.settings
    clip, _ = read_sample(SampleFolder(job.samples), 0, settings.with_audio)
    return Load(
        tokens=token_count(clip),
        rank=settings.rank,
        with_audio=settings.with_audio,
        optimizer=settings.optimizer,
        preview_tokens=_preview_tokens(job.previews) if job.previews else 0,
        workers_per_clip=worker.team_size,
    )


def _preview_tokens(previews: PreviewSettings) -> int:
    def tokens(latents: torch.Tensor) -> int:
        return latent_frames(previews.frame_count) * latents.shape[2] * latents.shape[3]

    return max((tokens(read_files(entry.prefix)[0].video) for entry in previews.inputs), default=0)
