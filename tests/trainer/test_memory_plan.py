"""The plan of a card's memory: counts of the published model, the ladder, and what follows when it was not enough."""

import pytest

from ltxtrain_trainer.memory_plan import (
    GIB,
    PUBLISHED,
    Load,
    choose_plan,
    more_streamed,
    plan_for,
    remedy,
    rungs,
)

DEFAULT = Load(tokens=6912, rank=32, with_audio=False)
JOINT = Load(tokens=7005, rank=32, with_audio=True)
SMALL = Load(tokens=1728, rank=16, with_audio=False)
HOST = 64 * GIB


def test_weights_are_those_of_the_published_model() -> None:
    # Counted on the class itself, without memory: bench/memory.py does it anew.
    assert PUBLISHED.weights(with_audio=True) == 18_988_838_144
    assert PUBLISHED.weights(with_audio=False) == 13_124_316_288
    assert PUBLISHED.adapter_weights(32, with_audio=False) == 163_577_856
    assert PUBLISHED.adapter_weights(32, with_audio=True) == 308_281_344


@pytest.mark.parametrize(
    ("load", "card_gib", "host_gib", "precision", "streams"),
    [
        (DEFAULT, 79, 64, "bf16", False),
        (DEFAULT, 39, 64, "bf16", False),
        (DEFAULT, 31, 64, "bf16", True),
        (DEFAULT, 23, 64, "bf16", True),
        (DEFAULT, 23, 8, "int8", False),
        (DEFAULT, 17, 6, "nf4", False),
        (SMALL, 15, 32, "bf16", True),
        (JOINT, 79, 64, "bf16", False),
        (JOINT, 32, 8, "int8", False),
        (JOINT, 31, 16, "int8", True),
    ],
)
def test_the_most_exact_rung_that_fits_card_and_host_is_taken(
    load: Load, card_gib: int, host_gib: int, precision: str, streams: bool
) -> None:
    choice = choose_plan(load, card_gib * GIB, host_gib * GIB)
    assert choice.fits and choice.plan.total_bytes <= card_gib * GIB
    assert (choice.plan.precision, choice.plan.streamed_blocks > 0) == (precision, streams)
    assert precision in choice.reason and f"{card_gib}.0 GiB free" in choice.reason


@pytest.mark.parametrize(("load", "card_gib"), [(DEFAULT, 79), (SMALL, 47), (JOINT, 79), (JOINT, 139)])
def test_activations_are_kept_as_far_as_they_fit_well(load: Load, card_gib: int) -> None:
    plan = choose_plan(load, card_gib * GIB, HOST).plan
    assert (plan.precision, plan.streamed_blocks) == ("bf16", 0) and 1 < plan.kept_blocks <= PUBLISHED.layers
    assert plan.total_bytes <= 0.9 * card_gib * GIB
    more = plan_for(load, "bf16", kept_blocks=plan.kept_blocks + 1)
    assert plan.kept_blocks == PUBLISHED.layers or more.total_bytes > 0.9 * card_gib * GIB
    assert f"{plan.kept_blocks} of its blocks computed once" in str(plan)
    # What is kept goes first when the device is full after all, so there has to be host memory for the next rung.
    following = more_streamed(plan, load, HOST)
    assert following is not None and following.kept_blocks == 0
    assert choose_plan(load, card_gib * GIB, 0).plan.kept_blocks == 0


def test_the_last_block_is_kept_for_nothing() -> None:
    assert plan_for(DEFAULT, "bf16", kept_blocks=1).total_bytes == plan_for(DEFAULT, "bf16").total_bytes


def test_no_more_blocks_are_streamed_than_it_takes() -> None:
    plan = choose_plan(DEFAULT, 23 * GIB, HOST).plan
    assert plan_for(DEFAULT, "bf16", plan.streamed_blocks - 1).total_bytes > 23 * GIB


def test_what_fits_nowhere_takes_the_smallest_and_says_so() -> None:
    choice = choose_plan(JOINT, 4 * GIB, HOST)
    assert not choice.fits
    assert choice.plan == min(rungs(JOINT, HOST), key=lambda plan: plan.total_bytes)
    assert "the least that is possible here" in choice.reason


def test_a_preview_larger_than_the_clips_counts() -> None:
    with_preview = Load(tokens=1728, rank=16, with_audio=False, preview_tokens=10_800)
    assert plan_for(with_preview, "bf16").activation_bytes > plan_for(SMALL, "bf16").activation_bytes


def test_after_a_full_device_more_blocks_are_streamed_until_all_are() -> None:
    plan = plan_for(DEFAULT, "int8")
    seen = []
    while (following := more_streamed(plan, DEFAULT, HOST)) is not None:
        assert following.precision == "int8" and following.total_bytes < plan.total_bytes
        plan = following
        seen.append(plan.streamed_blocks)
    assert seen == sorted(set(seen)) and seen[-1] == PUBLISHED.layers
    assert more_streamed(plan_for(DEFAULT, "int8"), DEFAULT, host_bytes=0) is None


def test_remedies_are_rungs_that_exist() -> None:
    plan = plan_for(DEFAULT, "bf16")
    assert "base_precision to int8" in remedy(plan, DEFAULT, 0, ["bf16", "int8"], PUBLISHED)
    int8 = plan_for(DEFAULT, "int8")
    assert "base_precision to nf4" in remedy(int8, DEFAULT, 0, ["bf16", "int8", "nf4"], PUBLISHED)
    assert "optimizer to adamw_8bit" in remedy(int8, DEFAULT, 0, ["bf16", "int8"], PUBLISHED)
    frugal = Load(tokens=6912, rank=32, with_audio=False, optimizer="adamw_8bit")
    assert remedy(int8, frugal, 0, ["int8"], PUBLISHED) == "set rank to 16"
    least = Load(tokens=6912, rank=8, with_audio=False, optimizer="adamw_8bit")
    assert remedy(int8, least, 0, ["int8"], PUBLISHED) == "lower resolution or number_of_frames"
