"""The pass before step 1 measures and leaves nothing behind."""

import pytest

from ltxtrain_trainer.errors import PrefixCoversClip
from ltxtrain_trainer.training.preflight import preflight
from tests.trainer.golden import LATENT_SHAPE, run, same, samples, settings, weights, with_lora


def test_it_says_what_a_clip_costs() -> None:
    found = preflight(with_lora(settings()), samples(), settings())
    assert found.seconds > 0
    assert found.tokens == LATENT_SHAPE[0] * LATENT_SHAPE[1] * LATENT_SHAPE[2] + 26
    assert found.peak_memory_bytes == 0, "there is no device to measure"


def test_a_training_after_it_is_the_same() -> None:
    transformer = with_lora(settings())
    before = weights(transformer)
    preflight(transformer, samples(), settings())
    assert same(weights(transformer), before)
    assert same(run(settings(), transformer=transformer)[1], run(settings())[1])


def test_a_prefix_that_covers_the_clip_is_found_before_step_1() -> None:
    with pytest.raises(PrefixCoversClip):
        preflight(with_lora(settings()), samples(), settings(conditioning_frames=25))
