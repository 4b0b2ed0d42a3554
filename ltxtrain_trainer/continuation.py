"""Clips continued with the LoRA of an earlier training, as its previews are: the file is audited before it is used."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open

from ltxtrain_trainer.job import COMPONENTS, facts_of, reported
from ltxtrain_trainer.lora_file.audit import audit_lora
from ltxtrain_trainer.lora_file.export import read_lora
from ltxtrain_trainer.model.folder import ModelFolder, fetching_model
from ltxtrain_trainer.model.loading import load_report, loading_transformer
from ltxtrain_trainer.model.precision import Precision
from ltxtrain_trainer.plan import ContinuationPlan
from ltxtrain_trainer.preview.previewer import Previewer
from ltxtrain_trainer.reports import FileKind, Finished, Loaded, MadeFile, Report, Warned
from ltxtrain_trainer.training.fit import fit_sampling
from ltxtrain_trainer.training.lora import add_lora, fill_adapter


def continue_clips(plan: ContinuationPlan, *, device: torch.device) -> Iterator[Report]:
    """Each clip as soon as it is made, and Finished at the end. Stop by not asking again.

    Raises AuditFailed for a LoRA that is not sound, SamplingFailed, and what loading a model raises.
    """
    folder = yield from reported(fetching_model(plan.model, plan.revision, COMPONENTS))
    audit = audit_lora(plan.lora, folder, with_audio=plan.with_audio, device=device)
    weights = read_lora(plan.lora)
    rank = next(len(tensor) for name, tensor in weights.items() if name.endswith(".lora_A.weight"))
    fit = fit_sampling(plan, rank, folder, device)
    with fit.memory_for("loading the base model"):
        loading = loading_transformer(
            folder,
            device,
            Precision(fit.plan.precision),
            video_only=not plan.with_audio,
            streamed_blocks=fit.plan.streamed_blocks,
        )
        transformer = yield from reported(loading)
        add_lora(transformer, rank=rank, with_audio=plan.with_audio, seed=plan.seed)
        fill_adapter(transformer, weights)
    report = load_report(transformer)
    facts = facts_of(folder, fit, device, len(plan.clips.inputs))
    yield Loaded(facts=facts, reason=fit.reason, seconds=report.seconds, size_bytes=report.size_bytes)
    if other := _other_base(plan.lora, folder):
        yield Warned(other)
    previewer = Previewer(
        folder=folder,
        transformer=transformer,
        settings=plan.clips,
        seed=plan.seed,
        work_dir=plan.work_dir,
        kind=FileKind.CONTINUED_VIDEO,
    )
    with fit.memory_for("continuing a clip"):
        yield from previewer.run(plan.lora_step)
    files = []
    if plan.clips.base_model:
        reel = plan.work_dir / "reel.mp4"
        previewer.write_reel(reel)
        files.append(MadeFile(kind=FileKind.VALIDATION_REEL, path=reel, content_type="video/mp4"))
    yield Finished(files=tuple(files), audit=asdict(audit))


def _other_base(lora: Path, folder: ModelFolder) -> str:
    """A warning about a LoRA that was trained on another base model; empty for this one's."""
    with safe_open(lora, framework="pt") as stored:
        trained_on = (stored.metadata() or {}).get("base_model_revision", "")
    if trained_on in ("", folder.revision):
        return ""
    return f"The LoRA was trained on revision {trained_on} of the base model; it is used on {folder.revision}."
