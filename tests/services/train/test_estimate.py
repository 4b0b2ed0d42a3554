"""Estimates before and after this cluster was measured."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from google.type.money_pb2 import Money
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import (
    Attention,
    BasePrecision,
    EstimateBasis,
    EstimateJobResponse,
    Job,
    JobOptions,
    Optimizer,
)

from ltxtrain_pocket.model import TRANSFORMER_CONFIG
from ltxtrain_services.runtime.extend_prefix import resolve, resolve_options
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.settings import Settings, UnitPrice
from ltxtrain_services.train.estimate import FILE, Estimator, conditions_of
from ltxtrain_services.train.measured import WINDOW, Conditions
from ltxtrain_services.train.upstream import Upstream
from ltxtrain_trainer.memory_plan import GIB
from ltxtrain_trainer.reports import Step

URL = "https://example.com/clips.zip"
# Tokens of 768 x 768 x 89.
TOKENS = 24 * 24 * 12
BF16 = Conditions("bf16", "adamw")


def estimator(state_dir: Path, gpu_count: int = 1, **settings: Any) -> Estimator:
    chosen = Settings(state_dir=state_dir, **settings)
    # Without a dataset in the spec nobody is asked.
    nothing, cluster = cast(Any, None), cast(Any, SimpleNamespace(gpu_count=gpu_count))
    return Estimator(Runtime(chosen, nothing, nothing, nothing, nothing, cluster), Upstream(chosen))


async def estimate(asked: Estimator, options: JobOptions | None = None, **fields: Any) -> EstimateJobResponse:
    spec, wrong = resolve(ExtendPrefixSpec(training_data_url=URL, **fields), lambda url: None)
    chosen, wrong_options = resolve_options(options or JobOptions(), spec.number_of_steps)
    assert not wrong and not wrong_options
    return await asked.estimate(spec, chosen, "me")


def job() -> Job:
    """One with the default sheet."""
    spec, _ = resolve(ExtendPrefixSpec(training_data_url=URL), lambda url: None)
    return Job(effective_spec=TaskSpec(extend_prefix=spec))


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
    assert (await estimate(asked)).basis == EstimateBasis.ESTIMATE_BASIS_PUBLISHED
    for number, speed in ((1, 1.0), (20, 1000.0), (40, 500.0)):
        asked.observe(job(), step(number, speed), BF16, 1)
    for found in (asked, estimator(tmp_path)):
        answer = await estimate(found, number_of_steps=100)
        # The first steps warm up and do not count; a tenth of the way from the fastest to the slowest, and back.
        assert answer.seconds_low == pytest.approx(100 * TOKENS * (0.001 + 0.1 * 0.001))
        assert answer.seconds_high == pytest.approx(100 * TOKENS * (0.002 - 0.1 * 0.001))
        assert answer.basis == EstimateBasis.ESTIMATE_BASIS_MEASURED


async def test_an_old_extreme_leaves_the_window(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    asked.observe(job(), step(20, 1.0), BF16, 1)
    for _ in range(WINDOW):
        asked.observe(job(), step(20, 1000.0), BF16, 1)
    answer = await estimate(asked, number_of_steps=100)
    assert answer.seconds_low == answer.seconds_high == pytest.approx(100 * TOKENS / 1000)


async def test_precision_and_optimizer_are_told_apart(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    asked.observe(job(), step(20, 1000.0), BF16, 1)
    asked.observe(job(), step(20, 400.0), Conditions("nf4", "adamw"), 1)
    seconds = {}
    for precision in ("BF16", "NF4", "INT8", "AUTO"):
        options = JobOptions(base_precision=getattr(BasePrecision, f"BASE_PRECISION_{precision}"))
        answer = await estimate(asked, options, number_of_steps=100)
        seconds[precision] = round(answer.seconds_low / TOKENS, 4), answer.basis
    measured, otherwise = EstimateBasis.ESTIMATE_BASIS_MEASURED, EstimateBasis.ESTIMATE_BASIS_MEASURED_OTHERWISE
    # What was never tried is told by the newest of all, and so is what the cluster would choose.
    assert seconds == {
        "BF16": (0.1, measured),
        "NF4": (0.25, measured),
        "INT8": (0.25, otherwise),
        "AUTO": (0.25, measured),
    }
    eight_bit = JobOptions(optimizer=Optimizer.OPTIMIZER_ADAMW_8BIT)
    assert (await estimate(asked, eight_bit)).basis == otherwise


async def test_compiled_blocks_and_the_fastest_attention_are_measured_apart(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    held = {
        1000.0: JobOptions(),
        1250.0: JobOptions(compile_blocks=True),
        1600.0: JobOptions(attention=Attention.ATTENTION_FASTEST),
        2000.0: JobOptions(compile_blocks=True, attention=Attention.ATTENTION_FASTEST),
    }
    for speed, options in held.items():
        resolved, _ = resolve_options(options, 100)
        asked.observe(job(), step(20, speed), conditions_of(resolved, "bf16", 1), 1)
    for speed, options in held.items():
        answer = await estimate(asked, options, number_of_steps=100)
        assert answer.seconds_low == pytest.approx(100 * TOKENS / speed)
        assert answer.basis == EstimateBasis.ESTIMATE_BASIS_MEASURED


async def test_gpus_share_the_steps(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    # Two GPUs with 2000 tokens a second together.
    asked.observe(job(), step(20, 2000.0), BF16, 2)
    one = await estimate(asked, JobOptions(batch_size=4, gpu_count=1), number_of_steps=100)
    assert one.seconds_low == pytest.approx(4 * 100 * TOKENS / 1000)
    four = await estimate(asked, JobOptions(batch_size=4, gpu_count=4), number_of_steps=100)
    assert four.seconds_low == pytest.approx(one.seconds_low / 4)


async def test_gpus_that_share_a_clip_are_told_and_measured_apart(tmp_path: Path) -> None:
    asked = estimator(tmp_path, gpu_count=4)
    alone, shared = JobOptions(), JobOptions(gpu_count=4)
    asked.observe(job(), step(20, 1000.0), BF16, 1)
    # Four GPUs on one clip, which wait on each other.
    asked.observe(job(), step(20, 3000.0), Conditions("bf16", "adamw", 4), 4)
    one, four = [await estimate(asked, options, number_of_steps=100) for options in (alone, shared)]
    assert (one.seconds_low, four.seconds_low) == (
        pytest.approx(100 * TOKENS / 1000),
        pytest.approx(100 * TOKENS / 3000),
    )
    assert {one.basis, four.basis} == {EstimateBasis.ESTIMATE_BASIS_MEASURED}
    assert (one.gpus_per_clip, four.gpus_per_clip) == (1, 4)
    # Of a clip's activations each has a quarter.
    assert four.peak_memory_bytes < one.peak_memory_bytes - 4 * GIB


async def test_preparation_is_counted_in(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    asked.observe(job(), step(20, 1000.0), BF16, 1)
    before = await estimate(asked)
    assert before.preparation_seconds_high == 0.0
    for seconds in (100.0, 200.0):
        asked.observe_preparation(seconds)
    after = await estimate(asked)
    assert (after.preparation_seconds_low, after.preparation_seconds_high) == (pytest.approx(110), pytest.approx(190))
    assert after.seconds_high - before.seconds_high == pytest.approx(190)


@pytest.mark.parametrize("content", ["", "[]", '{"seconds_per_token_low": 0.1}', '{"step/bf16/adamw": ["x"]}'])
async def test_a_file_that_cannot_be_read_is_begun_anew(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert (await estimate(estimator(tmp_path))).basis == EstimateBasis.ESTIMATE_BASIS_PUBLISHED


async def test_what_was_measured_of_another_model_or_device_does_not(tmp_path: Path) -> None:
    plain = await estimate(estimator(tmp_path))
    other = estimator(tmp_path, gpu_count=0, model="other/model")
    other.observe(job(), step(20, 1.0), BF16, 1)
    assert await estimate(estimator(tmp_path)) == plain


async def test_a_longer_clip_takes_more_than_in_proportion(tmp_path: Path) -> None:
    """Attention grows with the square; in the real model at 6912 tokens it is a sixth of the work."""
    asked = estimator(tmp_path)
    asked.observe(job(), step(20, 1000.0), BF16, 1)
    short, long = await estimate(asked, number_of_frames=41), await estimate(asked, number_of_frames=121)
    assert 1.05 < long.seconds_low / short.seconds_low * short.tokens_per_clip / long.tokens_per_clip < 1.3


async def test_a_small_model_on_a_cpu_is_not_taken_for_the_published_one(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer/config.json").write_text(json.dumps(TRANSFORMER_CONFIG))
    small = await estimate(estimator(tmp_path, gpu_count=0, model=str(tmp_path)))
    assert small.on_cpu and not small.gpu_missing and not small.card_plans
    assert small.peak_memory_bytes < 3 * 2**30
    # 2000 steps of 6912 tokens, each of some 80 MFLOP.
    assert 3 * 3600 < small.seconds_low < 12 * 3600
    on_card = await estimate(estimator(tmp_path, model=str(tmp_path)))
    assert not on_card.on_cpu and on_card.card_plans and on_card.seconds_high < 600


async def test_the_published_model_without_a_gpu(tmp_path: Path) -> None:
    """A job would be refused; the figures say what it takes to have a GPU."""
    with_gpu = await estimate(estimator(tmp_path))
    without = await estimate(estimator(tmp_path, gpu_count=0))
    assert without.gpu_missing and not without.on_cpu and not with_gpu.gpu_missing
    assert without.card_plans == with_gpu.card_plans and without.seconds_low == with_gpu.seconds_low
    forced = JobOptions(base_precision=BasePrecision.BASE_PRECISION_BF16)
    assert (await estimate(estimator(tmp_path, gpu_count=0), forced)).on_cpu


async def test_memory_is_the_plans_for_format_rank_and_audio(tmp_path: Path) -> None:
    asked = estimator(tmp_path)
    plain = await estimate(asked)
    assert plain.peak_memory_bytes == pytest.approx(33.8 * 2**30, rel=0.01)
    small = await estimate(asked, JobOptions(base_precision=BasePrecision.BASE_PRECISION_INT8))
    assert small.peak_memory_bytes == pytest.approx(22.2 * 2**30, rel=0.01)
    assert (await estimate(asked, with_audio=True)).peak_memory_bytes == pytest.approx(48 * 2**30, rel=0.01)


async def test_each_common_card_has_its_plan(tmp_path: Path) -> None:
    plans = {plan.card_gib: plan for plan in (await estimate(estimator(tmp_path))).card_plans}
    assert all(plan.fits for plan in plans.values())
    assert plans[80].base_precision == BasePrecision.BASE_PRECISION_BF16 and not plans[80].streamed_blocks
    assert plans[24].streamed_blocks > 0 and plans[24].device_bytes < 23 * 2**30
    assert plans[16].streamed_blocks > plans[24].streamed_blocks and plans[16].host_bytes > 0
