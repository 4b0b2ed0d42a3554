"""Estimates before and after this cluster was measured."""

from pathlib import Path
from typing import Any, cast

import pytest
from google.type.money_pb2 import Money
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.train_pb2 import BasePrecision, EstimateJobResponse, JobOptions

from ltxtrain_services.runtime.extend_prefix import resolve, resolve_options
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings, UnitPrice
from ltxtrain_services.train.estimate import Estimator
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.reports import Preflight, Step

URL = "https://example.com/clips.zip"
# Tokens of 768 x 768 x 89.
TOKENS = 24 * 24 * 12


def estimator(state_dir: Path, **settings: Any) -> Estimator:
    chosen = Settings(state_dir=state_dir, **settings)
    # Without a dataset in the spec nobody is asked.
    nothing = cast(Any, None)
    return Estimator(Runtime(chosen, nothing, nothing, nothing, nothing, nothing), Upstream(chosen))


async def estimate(asked: Estimator, options: JobOptions | None = None, **fields: Any) -> EstimateJobResponse:
    spec, wrong = resolve(ExtendPrefixSpec(training_data_url=URL, **fields), lambda url: None)
    chosen, wrong_options = resolve_options(options or JobOptions(), spec.number_of_steps)
    assert not wrong and not wrong_options
    return await asked.estimate(spec, chosen, "me")


def step(number: int, tokens_per_second: float) -> Step:
    return Step(
        step=number,
        loss=1.0,
        video_loss=1.0,
        audio_loss=None,
        quarter_losses=(None,) * 4,
        gradient_norm=1.0,
        learning_rate=0.0002,
        seconds=1.0,
        tokens_per_second=tokens_per_second,
        data_wait_seconds=0.0,
        held_out_loss=None,
    )


async def test_tokens_and_price_are_exact(tmp_path: Path) -> None:
    plain = await estimate(estimator(tmp_path))
    assert (plain.tokens_per_clip, plain.audio_tokens_per_clip) == (TOKENS, 0)
    assert plain.billable_units == 2000 and not plain.HasField("price")
    assert not plain.HasField("total_samples")
    heard = await estimate(
        estimator(tmp_path, unit_price=UnitPrice.parse("0.0062 EUR")), with_audio=True, number_of_steps=100
    )
    assert (heard.audio_tokens_per_clip, heard.price) == (93, Money(currency_code="EUR", nanos=620_000_000))


async def test_time_grows_with_steps_batch_and_previews(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    plain = await estimate(asked)
    assert 0 < plain.seconds_low < plain.seconds_high
    assert (await estimate(asked, number_of_steps=4000)).seconds_low == pytest.approx(2 * plain.seconds_low)
    assert (await estimate(asked, JobOptions(batch_size=4))).seconds_high == pytest.approx(4 * plain.seconds_high)
    seldom, often = JobOptions(preview_interval=0), JobOptions(preview_interval=100)
    inputs = [ValidationInput(video_url=URL)]
    with_previews = [(await estimate(asked, options, validation=inputs)).seconds_low for options in (seldom, often)]
    assert plain.seconds_low < with_previews[0] < with_previews[1]


async def test_memory_grows_with_rank_and_tokens(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    small = await estimate(asked, rank=8, number_of_frames=25)
    assert small.peak_memory_bytes < (await estimate(asked, rank=128, number_of_frames=25)).peak_memory_bytes
    assert small.peak_memory_bytes < (await estimate(asked, rank=8, number_of_frames=121)).peak_memory_bytes


async def test_what_was_measured_here_counts_and_is_kept(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    for number, speed in ((1, 1.0), (20, 1000.0), (40, 500.0)):
        asked.observe(step(number, speed))
    for found in (asked, estimator(tmp_path)):
        answer = await estimate(found, number_of_steps=100)
        # The first steps warm up and do not count.
        assert answer.seconds_low == pytest.approx(100 * TOKENS / 1000)
        assert answer.seconds_high == pytest.approx(100 * TOKENS / 500)


async def test_memory_is_the_plans_for_format_rank_and_audio(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    plain = await estimate(asked)
    assert plain.peak_memory_bytes == pytest.approx(33.8 * 2**30, rel=0.01)
    small = await estimate(asked, JobOptions(base_precision=BasePrecision.BASE_PRECISION_INT8))
    assert small.peak_memory_bytes == pytest.approx(22.2 * 2**30, rel=0.01)
    assert (await estimate(asked, with_audio=True)).peak_memory_bytes == pytest.approx(48 * 2**30, rel=0.01)
    # What an earlier job took says nothing of one with another rank, format or audio.
    asked.observe(Preflight(seconds=1.0, tokens=TOKENS, peak_memory_bytes=50 * 10**9))
    assert (await estimate(asked)).peak_memory_bytes == plain.peak_memory_bytes


async def test_each_common_card_has_its_plan(tmp_path: Path) -> None:
    plans = {plan.card_gib: plan for plan in (await estimate(estimator(tmp_path))).card_plans}
    assert all(plan.fits for plan in plans.values())
    assert plans[80].base_precision == BasePrecision.BASE_PRECISION_BF16 and not plans[80].streamed_blocks
    assert plans[24].streamed_blocks > 0 and plans[24].device_bytes < 23 * 2**30
    assert plans[16].streamed_blocks > plans[24].streamed_blocks and plans[16].host_bytes > 0
