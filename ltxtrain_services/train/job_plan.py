"""The task of a training actor: samples, settings of a resolved spec, and the checkpoint to go on from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.extend_prefix_pb2 import ValidationInput
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.train_pb2 import Attention, BasePrecision, Job, Optimizer, Schedule
from ltxtrain_client.enum_words import word

from ltxtrain_services.runtime.telemetry import current_trace
from ltxtrain_services.train.actors import Remote, TrainTask
from ltxtrain_services.train.artifacts import INITIAL_LORA, latest_checkpoint, short_name
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.plan import JobPlan, PreviewInput, PreviewSettings, SampleFiles
from ltxtrain_trainer.training.settings import TrainSettings, workers_per_clip


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The inputs of a training."""

    model: ModelFolder
    training_set: TrainingSet
    samples: list[Sample]


class PlanFiles:
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
    job: Job, prepared: Prepared, found: Sequence[Artifact], worker_count: int, streamed_blocks: int = 0
) -> TrainTask:
    """The whole task; samples in the order of their names, so that a run does not depend on who finished first."""
    files = PlanFiles()
    checkpoint = latest_checkpoint(found)
    initial = next((item for item in found if short_name(item) == INITIAL_LORA), None)
    ordered = sorted(prepared.samples, key=lambda sample: sample.name)
    trained = [sample for sample in ordered if not sample.HasField("validation_index")]
    entries = [sample for sample in ordered if sample.HasField("validation_index")]
    plan = JobPlan(
        model=prepared.model.reference,
        revision=prepared.model.revision,
        precision=word(BasePrecision.DESCRIPTOR, job.options.base_precision),
        settings=train_settings(job),
        trigger_phrase=job.effective_spec.extend_prefix.trigger_phrase,
        samples=tuple(files.sample(sample) for sample in trained),
        previews=_previews(job, prepared.training_set, entries, files) if entries else None,
        identity={
            "model": prepared.model.revision,
            "samples": ",".join(sample.latents.sha256[:16] for sample in trained),
        },
        work_dir=Path("made"),
        checkpoint=files.add(checkpoint["CHECKPOINT"].blob) if checkpoint else None,
        metrics=files.add(checkpoint["METRICS"].blob, ".parquet") if "METRICS" in checkpoint else None,
        initial_lora=files.add(initial.blob) if initial is not None and not checkpoint else None,
        streamed_blocks=streamed_blocks,
    )
    return TrainTask(
        job=job.name,
        plan=plan,
        files=files.remote,
        worker_count=worker_count,
        trace=current_trace(),
        team_size=workers_per_clip(worker_count, plan.settings.batch_size),
    )


def train_settings(job: Job) -> TrainSettings:
    spec, options = job.effective_spec.extend_prefix, job.options
    schedule = word(Schedule.DESCRIPTOR, options.schedule)
    optimizer = word(Optimizer.DESCRIPTOR, options.optimizer)
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
        compile_blocks=options.compile_blocks,
        # A job of before there was a choice has none.
        attention="fastest" if options.attention == Attention.ATTENTION_FASTEST else "exact",
        checkpoint_interval=options.checkpoint_interval,
        preview_interval=options.preview_interval,
    )


def preview_inputs(
    samples: Sequence[Sample], openings: Sequence[ValidationInput], files: PlanFiles
) -> tuple[PreviewInput, ...]:
    """Openings to continue, in their order: each encoded, with its own frames and what is to happen next."""
    inputs = [
        PreviewInput(
            index=sample.validation_index,
            prompt=openings[sample.validation_index].prompt,
            prefix=files.sample(sample),
            prefix_frames=files.add(sample.prefix_frames, ".mkv"),
        )
        for sample in samples
    ]
    return tuple(sorted(inputs, key=lambda entry: entry.index))


def _previews(job: Job, training_set: TrainingSet, entries: Sequence[Sample], files: PlanFiles) -> PreviewSettings:
    spec = job.effective_spec.extend_prefix
    return PreviewSettings(
        frame_count=spec.validation_number_of_frames,
        stg_scale=spec.stg_scale,
        schedule_tokens=job.options.preview_schedule_tokens,
        negative=files.add(training_set.negative_prompt),
        inputs=preview_inputs(entries, spec.validation, files),
    )
