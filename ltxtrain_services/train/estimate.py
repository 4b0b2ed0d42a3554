"""Estimate of a job: tokens from its geometry, FLOP from them and the model's size, seconds from this cluster's speed.

A training step is a forward and a backward pass, about three times a forward pass; a preview is 30 steps of three
forward passes, four with audio, for the base model and for the LoRA. What counts is what was measured here with the
same precision, optimizer, attention and compilation, else with others; before anything was measured, what is published
of one H100 and one card of 24 GB, and without a GPU what two threads of a CPU do; the answer says which. Preparation is
what it took the jobs before. Memory is the trainer's plan's for the model that this suite runs, in the format that is
asked for, else in bfloat16, on a CPU in float32; and beside it the way in which a card of each common size would hold
the job.
"""

from contextlib import aclosing

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip
from ltxtrain.v1.train_pb2 import (
    Attention,
    BasePrecision,
    CardPlan,
    EstimateBasis,
    EstimateJobResponse,
    Job,
    JobOptions,
    Optimizer,
)
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.enum_words import word

from ltxtrain_services.runtime.extend_prefix import (
    billable_units,
    preprocess_settings,
    preview_geometry,
    price,
    training_geometry,
)
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.upstream import errors_passed_on
from ltxtrain_services.train.measured import NOTHING, Conditions, Measurements, Range
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.memory_plan import GIB, LADDER, MAX_CPU_WEIGHTS, Load, ModelSize, choose_plan, plan_for
from ltxtrain_trainer.model.folder import transformer_config
from ltxtrain_trainer.preview.recipe import STEPS, passes
from ltxtrain_trainer.reports import Loaded, Step
from ltxtrain_trainer.training.settings import workers_per_clip

FILE = "estimates.json"
# Seconds a TFLOP of a step: 2.2 s and 7.2 s for the published model and 6912 tokens, 300 and 90 TFLOP a second;
# and the pocket model's on two threads that are its own, and on a busy machine.
PUBLISHED = Range(1 / 300, 1 / 90)
PUBLISHED_CPU = Range(1 / 0.06, 1 / 0.005)
TFLOP = 1e12
# Forward passes that a training step takes as long as.
STEP_PASSES = 3
# One step in so many is a sample of the speed; the first, which warm up, are none.
SAMPLE_EVERY_STEPS = 20
# Usable of cards of common sizes: what a context and a desktop take is gone.
CARDS_GIB = (16, 24, 32, 48, 80)
CARD_RESERVE_BYTES = GIB
# Host memory that a machine with such a card has to spare for a GPU.
HOST_BYTES = 64 * GIB

# Kinds of measurements: seconds a TFLOP and GPU of steps under some conditions, the base model's loading, and the whole
# preparation of the data.
STEP, LOADING, PREPARATION = "step", "loading", "preparation"


class Estimator:
    """Learns from every job of this service and answers EstimateJob."""

    def __init__(self, runtime: Runtime, upstream: Upstream) -> None:
        self._runtime = runtime
        self._upstream = upstream
        settings = runtime.settings
        # A repository is taken to hold the published sizes.
        self._model = ModelSize.of(transformer_config(settings.model))
        device = "gpu" if self._has_gpu else "cpu"
        measured_of = f"{settings.model}@{settings.model_revision} {device}"
        self._measured = Measurements(settings.state_dir / FILE, measured_of)

    @property
    def _has_gpu(self) -> bool:
        return self._runtime.cluster.gpu_count > 0

    def observe(self, job: Job, report: Loaded | Step, conditions: Conditions, workers: int) -> None:
        """Learn from a report of a job, held as `conditions` say on `workers` GPUs."""
        if isinstance(report, Loaded):
            self._measured.add(LOADING, report.seconds)
        elif report.step % SAMPLE_EVERY_STEPS == 0 and report.tokens_per_second:
            tokens = _clip_tokens(job.effective_spec.extend_prefix)
            flop = STEP_PASSES * self._model.forward_flop(tokens) / tokens * report.tokens_per_second
            self._measured.add(f"{STEP}/{conditions.key}", workers * TFLOP / flop)

    def observe_preparation(self, seconds: float) -> None:
        """Learn how long the datasets and the training set of a job took, whatever of them was cached."""
        self._measured.add(PREPARATION, seconds)

    async def estimate(self, spec: ExtendPrefixSpec, options: JobOptions, owner: str) -> EstimateJobResponse:
        """The estimate for a resolved spec."""
        training = training_geometry(spec)
        asked = _asked_precision(options)
        may_use_cpu = asked is not None or self._model.weights(spec.with_audio) <= MAX_CPU_WEIGHTS
        on_cpu = not self._has_gpu and may_use_cpu
        gpus = self._gpus(options)
        speed, basis = self._speed(options, on_cpu, gpus)
        before = self._before()
        whole = speed.times(self._flop(spec, options) / TFLOP / gpus).plus(before)
        units = billable_units(spec.number_of_steps)
        load = memory_load(spec, options, gpus)
        precision = asked or ("fp32" if on_cpu else LADDER[0])
        response = EstimateJobResponse(
            tokens_per_clip=training.video_tokens,
            audio_tokens_per_clip=training.audio_tokens if spec.with_audio else 0,
            seconds_low=whole.low,
            seconds_high=whole.high,
            basis=basis,
            preparation_seconds_low=before.low,
            preparation_seconds_high=before.high,
            peak_memory_bytes=plan_for(load, precision, model=self._model).total_bytes,
            billable_units=units,
            price=price(units, self._runtime.settings.unit_price),
            card_plans=[] if on_cpu else [self._card_plan(card, load, asked) for card in CARDS_GIB],
            on_cpu=on_cpu,
            gpu_missing=not self._has_gpu and not may_use_cpu,
            gpus_per_clip=load.workers_per_clip,
        )
        if spec.dataset:
            async with errors_passed_on():
                dataset = await self._upstream.ingest(owner).get_dataset(spec.dataset)
                response.total_samples = dataset.clip_count + len(spec.validation)
                response.cached_samples = await self._cached(spec, owner)
        return response

    def _speed(self, options: JobOptions, on_cpu: bool, gpus: int) -> "tuple[Range, EstimateBasis]":
        """Seconds a TFLOP and GPU of a training step, and what they are known from."""
        asked = _asked_precision(options)

        def same(kind: str) -> bool:
            first, _, conditions = kind.partition("/")
            precision = asked or conditions.partition("/")[0]
            return first == STEP and conditions == conditions_of(options, precision, gpus).key

        for fits, basis in (
            (same, EstimateBasis.ESTIMATE_BASIS_MEASURED),
            (lambda kind: kind.startswith(f"{STEP}/"), EstimateBasis.ESTIMATE_BASIS_MEASURED_OTHERWISE),
        ):
            kind = self._measured.newest(fits)
            if kind is not None and (found := self._measured.range_of(kind)) is not None:
                return found, basis
        return PUBLISHED_CPU if on_cpu else PUBLISHED, EstimateBasis.ESTIMATE_BASIS_PUBLISHED

    def _before(self) -> Range:
        """Seconds from the start of a job to its first step, as far as they were measured here."""
        return (self._measured.range_of(PREPARATION) or NOTHING).plus(self._measured.range_of(LOADING) or NOTHING)

    def _gpus(self, options: JobOptions) -> int:
        """GPUs that the job would train on."""
        if options.gpu_count:
            return options.gpu_count
        available = max(1, self._runtime.cluster.gpu_count)
        return max(count for count in range(1, available + 1) if options.batch_size % count == 0)

    async def _cached(self, spec: ExtendPrefixSpec, owner: str) -> int:
        """Samples of the newest training set that was made of this dataset with the same geometry and audio."""
        wanted = preprocess_settings(spec, OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE)
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


def conditions_of(options: JobOptions, precision: str, gpus: int) -> Conditions:
    """How a job of these options is held on so many GPUs, with the base model in that format."""
    return Conditions(
        precision=precision,
        optimizer=word(Optimizer.DESCRIPTOR, options.optimizer),
        workers_per_clip=workers_per_clip(gpus, options.batch_size),
        compiled=options.compile_blocks,
        fastest=options.attention == Attention.ATTENTION_FASTEST,
    )


def memory_load(spec: ExtendPrefixSpec, options: JobOptions, gpus: int) -> Load:
    """The load that a resolved job puts on each of its cards."""
    return Load(
        tokens=_clip_tokens(spec),
        rank=spec.rank,
        with_audio=spec.with_audio,
        optimizer=word(Optimizer.DESCRIPTOR, options.optimizer),
        preview_tokens=preview_geometry(spec).video_tokens if spec.validation else 0,
        workers_per_clip=workers_per_clip(gpus, options.batch_size),
    )


def _clip_tokens(spec: ExtendPrefixSpec) -> int:
    """Tokens of one training clip, with its sound's where there is any."""
    training = training_geometry(spec)
    return training.video_tokens + (training.audio_tokens if spec.with_audio else 0)


def _asked_precision(options: JobOptions) -> str | None:
    asked = word(BasePrecision.DESCRIPTOR, options.base_precision)
    return None if asked == "auto" else asked
