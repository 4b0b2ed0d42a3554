"""What a training actor is told: the samples of a training set, the resolved spec, and where to go on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.train_pb2 import BasePrecision, Job, Optimizer, Schedule
from ltxtrain_client.plain import plain

from services.runtime.addresses import shown
from services.runtime.telemetry import current_trace
from services.train.actors import Remote, TrainTask
from services.train.artifacts import latest_checkpoint
from services.train.spec import ASPECT_NAMES, RESOLUTION_NAMES, billable_units
from trainer.geometry import BUCKETS, Geometry
from trainer.model.folder import ModelFolder
from trainer.pages.job_page import ReportRow
from trainer.plan import EarlierPreview, JobPlan, PreviewInput, PreviewSettings, SampleFiles
from trainer.preview.previewer import DECORATED
from trainer.training.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a training starts from. shared: artifacts that the job has from its training set."""

    model: ModelFolder
    training_set: TrainingSet
    samples: list[Sample]
    report: tuple[ReportRow, ...]
    shared: list[Artifact]


class _Files:
    """Names of the files that a plan needs, each once."""

    def __init__(self) -> None:
        self.remote: dict[str, Remote] = {}

    def add(self, blob: Blob, suffix: str = ".safetensors") -> Path:
        name = f"{blob.sha256}{suffix}"
        self.remote[name] = Remote(blob.key, blob.sha256)
        return Path(name)

    def sample(self, sample: Sample) -> SampleFiles:
        return SampleFiles(latents=self.add(sample.latents), prompt=self.add(sample.prompt))


def train_task(
    job: Job, prepared: Prepared, found: Sequence[Artifact], worker_count: int, unit_price_usd: float
) -> TrainTask:
    """The whole task; samples in the order of their names, so that a run does not depend on who finished first."""
    files = _Files()
    checkpoint = latest_checkpoint(found)
    units = billable_units(job.effective_spec.number_of_steps)
    ordered = sorted(prepared.samples, key=lambda sample: sample.name)
    trained = [sample for sample in ordered if not sample.HasField("validation_index")]
    entries = [sample for sample in ordered if sample.HasField("validation_index")]
    plan = JobPlan(
        model=prepared.model.reference,
        revision=prepared.model.revision,
        precision=BasePrecision.Name(job.options.base_precision).removeprefix("BASE_PRECISION_").lower(),
        settings=train_settings(job),
        samples=tuple(files.sample(sample) for sample in trained),
        previews=_previews(job, prepared.training_set, entries, files) if entries else None,
        identity={
            "model": prepared.model.revision,
            "samples": ",".join(sample.latents.sha256[:16] for sample in trained),
        },
        geometry=_geometry(job),
        spec=spec_json(job),
        manifest=manifest(job, prepared.training_set),
        report=prepared.report,
        billing={"billable_units": units, "unit_price_usd": unit_price_usd, "price_usd": units * unit_price_usd},
        work_dir=Path("made"),
        checkpoint=files.add(checkpoint["CHECKPOINT"].blob) if checkpoint else None,
        metrics=files.add(checkpoint["METRICS"].blob, ".parquet") if "METRICS" in checkpoint else None,
        earlier_previews=_earlier_previews(found, checkpoint, files) if checkpoint else (),
    )
    return TrainTask(job=job.name, plan=plan, files=files.remote, worker_count=worker_count, trace=current_trace())


def train_settings(job: Job) -> TrainSettings:
    spec, options = job.effective_spec, job.options
    schedule = Schedule.Name(options.schedule).removeprefix("SCHEDULE_").lower()
    optimizer = Optimizer.Name(options.optimizer).removeprefix("OPTIMIZER_").lower()
    return TrainSettings(
        rank=spec.rank,
        steps=spec.number_of_steps,
        learning_rate=spec.learning_rate,
        conditioning_frames=spec.conditioning_frames,
        with_audio=spec.with_audio,
        seed=options.seed,
        batch_size=options.batch_size,
        schedule=cast(Literal["linear", "constant"], schedule),
        optimizer=cast(Literal["adamw", "adamw_8bit"], optimizer),
        holdout_fraction=options.holdout_fraction,
        checkpoint_interval=options.checkpoint_interval,
        preview_interval=options.preview_interval,
    )


def spec_json(job: Job) -> dict[str, Any]:
    """The resolved spec in the sheet's own words, its URLs without what may be secret in them."""
    spec = plain(job.effective_spec)
    if "training_data_url" in spec:
        spec["training_data_url"] = shown(spec["training_data_url"])
    for entry in spec["validation"]:
        entry["video_url"] = shown(entry["video_url"])
    return spec


def manifest(job: Job, training_set: TrainingSet) -> dict[str, object]:
    """Where the data came from, and the options as a sheet has them; the actor adds versions and device."""
    return {
        "job": job.name,
        "dataset": job.dataset,
        "validation_dataset": job.validation_dataset,
        "training_set": training_set.name,
        "preprocess_report": plain(training_set.report),
        "options": plain(job.options),
    }


def _geometry(job: Job) -> Geometry:
    spec = job.effective_spec
    width, height = BUCKETS[RESOLUTION_NAMES[spec.resolution], ASPECT_NAMES[spec.aspect_ratio]]
    return Geometry(width=width, height=height, frame_count=spec.number_of_frames, frame_rate=spec.frame_rate)


def _earlier_previews(
    found: Sequence[Artifact], checkpoint: dict[str, Artifact], files: _Files
) -> tuple[EarlierPreview, ...]:
    """Plain LoRA previews before the checkpoint's step; that step's own is made again."""
    return tuple(
        EarlierPreview(step=item.step, index=item.validation_index, path=files.add(item.blob, ".mp4"))
        for item in found
        if item.kind == Artifact.KIND_VALIDATION_VIDEO
        and item.step < checkpoint["CHECKPOINT"].step
        and not item.name.endswith(DECORATED)
    )


def _previews(job: Job, training_set: TrainingSet, entries: Sequence[Sample], files: _Files) -> PreviewSettings:
    spec = job.effective_spec
    inputs = [
        PreviewInput(
            index=sample.validation_index,
            prompt=spec.validation[sample.validation_index].prompt,
            prefix=files.sample(sample),
            prefix_frames=files.add(sample.prefix_frames, ".mkv"),
        )
        for sample in entries
    ]
    return PreviewSettings(
        frame_count=spec.validation_number_of_frames,
        stg_scale=spec.stg_scale,
        negative=files.add(training_set.negative_prompt),
        inputs=tuple(sorted(inputs, key=lambda entry: entry.index)),
    )
