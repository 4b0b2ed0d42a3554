"""Estimate of a job: tokens from its geometry, seconds from this cluster's measured seconds a token.

A training step is a forward and a backward pass, about three times a forward pass; a preview is 30 steps of three
forward passes, four with audio, for the base model and for the LoRA. Before anything was measured here, the range is
that of one H100 and one card of 24 GB at 768x768x89. Memory is the trainer's plan's, of the format that is
asked for and else of bfloat16, and beside it the way in which a card of each common size would hold the job.
"""

import json
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip
from ltxtrain.v1.train_pb2 import BasePrecision, CardPlan, EstimateJobResponse, JobOptions, Optimizer
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
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.memory_plan import GIB, LADDER, Load, choose_plan, plan_for
from ltxtrain_trainer.preview.recipe import STEPS, passes
from ltxtrain_trainer.reports import Preflight, Step

FILE = "estimates.json"
# Seconds a token of a training step: 2.3 s and 7.5 s for 6912 tokens, 681 TFLOP at 300 and at 90 TFLOP a second.
PUBLISHED = (2.3 / 6912, 7.5 / 6912)
FORWARD_SHARE = 1 / 3
# One step in so many is a sample of the speed; the first, which warm up, are none.
SAMPLE_EVERY_STEPS = 20
# Usable of cards of common sizes: what a context and a desktop take is gone.
CARDS_GIB = (16, 24, 32, 48, 80)
CARD_RESERVE_BYTES = GIB
# Host memory that a machine with such a card has to spare for a GPU.
HOST_BYTES = 64 * GIB


@dataclass
class Measured:
    """Extremes of all measurements; zero before the first."""

    seconds_per_token_low: float = 0.0
    seconds_per_token_high: float = 0.0


class Estimator:
    """Learns from every job of this service and answers EstimateJob."""

    def __init__(self, runtime: Runtime, upstream: Upstream) -> None:
        self._runtime = runtime
        self._upstream = upstream
        self._path = runtime.settings.state_dir / FILE
        self._seen = _read(self._path)

    def observe(self, report: Preflight | Step) -> None:
        """Learn from a report of any job."""
        if isinstance(report, Preflight) or report.step % SAMPLE_EVERY_STEPS or not report.tokens_per_second:
            return
        seconds = 1 / report.tokens_per_second
        self._seen.seconds_per_token_low = min(self._seen.seconds_per_token_low or seconds, seconds)
        self._seen.seconds_per_token_high = max(self._seen.seconds_per_token_high, seconds)
        self._keep()

    def _keep(self) -> None:
        self._path.write_text(json.dumps(asdict(self._seen)))

    async def estimate(self, spec: ExtendPrefixSpec, options: JobOptions, owner: str) -> EstimateJobResponse:
        """The estimate for a resolved spec."""
        training = training_geometry(spec)
        audio_tokens = training.audio_tokens if spec.with_audio else 0
        tokens = training.video_tokens + audio_tokens
        work = float(spec.number_of_steps * options.batch_size * tokens) + self._preview_tokens(spec, options)
        low, high = (
            (self._seen.seconds_per_token_low, self._seen.seconds_per_token_high)
            if self._seen.seconds_per_token_low
            else PUBLISHED
        )
        units = billable_units(spec.number_of_steps)
        load = memory_load(spec, options)
        precisions = _precisions(options)
        response = EstimateJobResponse(
            tokens_per_clip=training.video_tokens,
            audio_tokens_per_clip=audio_tokens,
            seconds_low=work * low,
            seconds_high=work * high,
            peak_memory_bytes=plan_for(load, precisions[0]).total_bytes,
            billable_units=units,
            price=price(units, self._runtime.settings.unit_price),
            card_plans=[_card_plan(card, load, precisions) for card in CARDS_GIB],
        )
        if spec.dataset:
            async with errors_passed_on():
                dataset = await self._upstream.ingest(owner).get_dataset(spec.dataset)
                response.total_samples = dataset.clip_count + len(spec.validation)
                response.cached_samples = await self._cached(spec, owner)
        return response

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

    def _preview_tokens(self, spec: ExtendPrefixSpec, options: JobOptions) -> float:
        """Tokens of training steps that take as long as all previews."""
        if not spec.validation:
            return 0.0
        geometry = preview_geometry(spec)
        tokens = geometry.video_tokens + (geometry.audio_tokens if spec.with_audio else 0)
        times = 1 + (spec.number_of_steps - 1) // options.preview_interval if options.preview_interval else 1
        return (
            len(spec.validation)
            * (times + 1)
            * STEPS
            * passes(spec.stg_scale, spec.with_audio)
            * tokens
            * FORWARD_SHARE
        )


def memory_load(spec: ExtendPrefixSpec, options: JobOptions) -> Load:
    """The load that a resolved job puts on a card."""
    training = training_geometry(spec)
    return Load(
        tokens=training.video_tokens + (training.audio_tokens if spec.with_audio else 0),
        rank=spec.rank,
        with_audio=spec.with_audio,
        optimizer=word(Optimizer.DESCRIPTOR, options.optimizer),
        preview_tokens=preview_geometry(spec).video_tokens if spec.validation else 0,
    )


def _precisions(options: JobOptions) -> tuple[str, ...]:
    asked = word(BasePrecision.DESCRIPTOR, options.base_precision)
    return LADDER if asked == "auto" else (asked,)


def _card_plan(card_gib: int, load: Load, precisions: Sequence[str]) -> CardPlan:
    choice = choose_plan(load, card_gib * GIB - CARD_RESERVE_BYTES, HOST_BYTES, precisions)
    plan = choice.plan
    return CardPlan(
        card_gib=card_gib,
        fits=choice.fits,
        base_precision=f"BASE_PRECISION_{plan.precision.upper()}",
        streamed_blocks=plan.streamed_blocks,
        host_bytes=plan.host_bytes,
        device_bytes=plan.total_bytes,
    )


def _read(path: Path) -> Measured:
    try:
        kept = json.loads(path.read_text())
        return Measured(**{field.name: float(kept[field.name]) for field in fields(Measured)})
    except (OSError, ValueError, TypeError, KeyError):
        return Measured()
