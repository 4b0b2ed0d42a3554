"""Estimate of a job: tokens from its geometry, FLOP from them and the model's size, seconds from this cluster's speed.

A training step is a forward and a backward pass, about three times a forward pass; a preview is 30 steps of three
forward passes, four with audio, for the base model and for the LoRA. Before anything was measured here, the range is
that of one H100 and one card of 24 GB, and without a GPU that of two threads of a CPU. Memory is the trainer's plan's
for the model that this suite runs, in the format that is asked for, else in bfloat16, on a CPU in float32; and beside
it the way in which a card of each common size would hold the job.
"""

import json
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import BasePrecision, CardPlan, EstimateJobResponse, Job, JobOptions, Optimizer
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.enum_words import word

from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.upstream import errors_passed_on
from ltxtrain_services.train.prepare import preprocess_settings
from ltxtrain_services.train.spec import billable_units, preview_geometry, training_geometry
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.memory_plan import GIB, LADDER, MAX_CPU_WEIGHTS, Load, ModelSize, choose_plan, plan_for
from ltxtrain_trainer.model.folder import transformer_config
from ltxtrain_trainer.preview.recipe import STEPS, passes
from ltxtrain_trainer.reports import Preflight, Step

FILE = "estimates.json"
# FLOP a second of a training step, fast and slow: 2.2 s and 7.2 s for the published model and 6912 tokens; and those
# of the pocket model on two threads that are its own, and on a busy machine.
GPU_SPEEDS = (300e12, 90e12)
CPU_SPEEDS = (60e9, 5e9)
# Forward passes that a training step takes as long as.
STEP_PASSES = 3
# One step in so many is a sample of the speed; the first, which warm up, are none.
SAMPLE_EVERY_STEPS = 20
# Usable of cards of common sizes: what a context and a desktop take is gone.
CARDS_GIB = (16, 24, 32, 48, 80)
CARD_RESERVE_BYTES = GIB
# Host memory that a machine with such a card has to spare for a GPU.
HOST_BYTES = 64 * GIB


@dataclass
class Measured:
    """FLOP a second of all steps that were looked at with one model on one kind of device; zero before the first."""

    model: str
    on_gpu: bool
    fastest: float = 0.0
    slowest: float = 0.0


class Estimator:
    """Learns from every job of this service and answers EstimateJob."""

    def __init__(self, runtime: Runtime, upstream: Upstream) -> None:
        self._runtime = runtime
        self._upstream = upstream
        self._path = runtime.settings.state_dir / FILE
        reference = runtime.settings.model
        # A repository is taken to hold the published sizes.
        self._model = ModelSize.of(transformer_config(reference))
        self._has_gpu = runtime.cluster.gpu_count > 0
        self._seen = _read(self._path, Measured(f"{reference}@{runtime.settings.model_revision}", self._has_gpu))

    def observe(self, job: Job, report: Preflight | Step) -> None:
        """Learn from a report of any job."""
        if isinstance(report, Preflight) or report.step % SAMPLE_EVERY_STEPS or not report.tokens_per_second:
            return
        tokens = _clip_tokens(job.effective_spec)
        speed = report.tokens_per_second * STEP_PASSES * self._model.forward_flop(tokens) / tokens
        self._seen.fastest = max(self._seen.fastest, speed)
        self._seen.slowest = min(self._seen.slowest or speed, speed)
        self._path.write_text(json.dumps(asdict(self._seen)))

    async def estimate(self, spec: ExtendPrefixSpec, options: JobOptions, owner: str) -> EstimateJobResponse:
        """The estimate for a resolved spec."""
        training = training_geometry(spec)
        asked = _asked_precision(options)
        may_use_cpu = asked is not None or self._model.weights(spec.with_audio) <= MAX_CPU_WEIGHTS
        on_cpu = not self._has_gpu and may_use_cpu
        fastest, slowest = (self._seen.fastest, self._seen.slowest) if self._seen.fastest else GPU_SPEEDS
        if on_cpu and not self._seen.fastest:
            fastest, slowest = CPU_SPEEDS
        flop = self._flop(spec, options)
        units = billable_units(spec.number_of_steps)
        load = memory_load(spec, options)
        precision = asked or ("fp32" if on_cpu else LADDER[0])
        response = EstimateJobResponse(
            tokens_per_clip=training.video_tokens,
            audio_tokens_per_clip=training.audio_tokens if spec.with_audio else 0,
            seconds_low=flop / fastest,
            seconds_high=flop / slowest,
            peak_memory_bytes=plan_for(load, precision, model=self._model).total_bytes,
            billable_units=units,
            price_usd=units * self._runtime.settings.unit_price_usd,
            card_plans=[] if on_cpu else [self._card_plan(card, load, asked) for card in CARDS_GIB],
            on_cpu=on_cpu,
            gpu_missing=not self._has_gpu and not may_use_cpu,
        )
        if spec.dataset:
            async with errors_passed_on():
                dataset = await self._upstream.ingest(owner).get_dataset(spec.dataset)
                response.total_samples = dataset.clip_count + len(spec.validation)
                response.cached_samples = await self._cached(spec, owner)
        return response

    async def _cached(self, spec: ExtendPrefixSpec, owner: str) -> int:
        """Samples of the newest training set that was made of this dataset with the same geometry and audio."""
        wanted = preprocess_settings(Job(effective_spec=spec), "")
        async with aclosing(self._upstream.preprocess(owner).list_training_sets()) as training_sets:
            async for made in training_sets:
                settings = made.settings
                if settings.fit_only:  # a check of data encodes nothing
                    continue
                same = (settings.training, settings.auto_scale_input, settings.audio) == (
                    wanted.training,
                    wanted.auto_scale_input,
                    wanted.audio,
                )
                if made.dataset == spec.dataset and same and made.lifecycle.state == State.STATE_SUCCEEDED:
                    return made.report.samples
        return 0

    def _flop(self, spec: ExtendPrefixSpec, options: JobOptions) -> float:
        """FLOP of all training steps and previews."""
        steps = float(spec.number_of_steps * options.batch_size)
        flop = steps * STEP_PASSES * self._model.forward_flop(_clip_tokens(spec))
        if spec.validation:
            geometry = preview_geometry(spec)
            tokens = geometry.video_tokens + (geometry.audio_tokens if spec.with_audio else 0)
            times = 1 + (spec.number_of_steps - 1) // options.preview_interval if options.preview_interval else 1
            forwards = len(spec.validation) * (times + 1) * STEPS * passes(spec.stg_scale, spec.with_audio)
            flop += forwards * self._model.forward_flop(tokens)
        return flop

    def _card_plan(self, card_gib: int, load: Load, asked: str | None) -> CardPlan:
        precisions = (asked,) if asked else LADDER
        choice = choose_plan(load, card_gib * GIB - CARD_RESERVE_BYTES, HOST_BYTES, precisions, self._model)
        plan = choice.plan
        return CardPlan(
            card_gib=card_gib,
            fits=choice.fits,
            base_precision=f"BASE_PRECISION_{plan.precision.upper()}",
            streamed_blocks=plan.streamed_blocks,
            host_bytes=plan.host_bytes,
            device_bytes=plan.total_bytes,
        )


def memory_load(spec: ExtendPrefixSpec, options: JobOptions) -> Load:
    """The load that a resolved job puts on a card."""
    return Load(
        tokens=_clip_tokens(spec),
        rank=spec.rank,
        with_audio=spec.with_audio,
        optimizer=word(Optimizer.DESCRIPTOR, options.optimizer),
        preview_tokens=preview_geometry(spec).video_tokens if spec.validation else 0,
    )


def _clip_tokens(spec: ExtendPrefixSpec) -> int:
    """Tokens of one training clip, with its sound's where there is any."""
    training = training_geometry(spec)
    return training.video_tokens + (training.audio_tokens if spec.with_audio else 0)


def _asked_precision(options: JobOptions) -> str | None:
    asked = word(BasePrecision.DESCRIPTOR, options.base_precision)
    return None if asked == "auto" else asked


def _read(path: Path, empty: Measured) -> Measured:
    """The kept speeds; `empty` when there are none, or they are of another model or device."""
    try:
        kept = Measured(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return empty
    return kept if (kept.model, kept.on_gpu) == (empty.model, empty.on_gpu) else empty
