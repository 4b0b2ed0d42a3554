"""Golden values of the published sampler."""

import pytest
import torch

from ltxtrain_trainer.preview.recipe import sequence_shift
from ltxtrain_trainer.training.losses import MIN_LEVEL, draw_levels, stretched_logit_normal

SHIFTS = [
    (93, 0.616634),
    (192, 0.652083),
    (1024, 0.95),
    (2048, 1.316667),
    (4096, 2.05),
    (6912, 3.058333),
    (16896, 6.633333),
]


@pytest.mark.parametrize(("tokens", "shift"), SHIFTS)
def test_the_shift_is_linear_in_the_token_count_and_not_clamped(tokens: int, shift: float) -> None:
    assert sequence_shift(tokens) == pytest.approx(shift, abs=1e-6)


@pytest.mark.parametrize(
    ("tokens", "levels"),
    [
        (1024, (0.063535, 0.115872, 0.394836, 0.680320, 0.868920, 0.960349, 0.998043)),
        (4096, (0.150732, 0.226441, 0.593045, 0.826187, 0.936733, 0.981850, 0.999123)),
    ],
)
def test_levels_of_whole_deviations(tokens: int, levels: tuple[float, ...]) -> None:
    """The first of each is a reflection: it would lie below MIN_LEVEL."""
    found = stretched_logit_normal(torch.arange(-3.0, 4.0), sequence_shift(tokens))
    assert found.tolist() == pytest.approx(levels, abs=1e-6)


def test_draws_come_in_the_order_of_the_reference() -> None:
    found = draw_levels(8, 1024, torch.Generator().manual_seed(42))
    expected = (0.756663, 0.711059, 0.734865, 0.733959, 0.357430, 0.441922, 0.971307, 0.831854)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@pytest.mark.parametrize(
    ("tokens", "mean", "deviation", "quantiles"),
    [
        (1024, 0.6259, 0.2356, (0.168, 0.470, 0.668, 0.816, 0.937)),
        (4096, 0.7429, 0.2183, (0.258, 0.646, 0.811, 0.905, 0.970)),
    ],
)
def test_distribution_of_many_draws(tokens: int, mean: float, deviation: float, quantiles: tuple[float, ...]) -> None:
    levels = draw_levels(1_000_000, tokens, torch.Generator().manual_seed(0))
    assert levels.mean().item() == pytest.approx(mean, abs=1e-3)
    assert levels.std().item() == pytest.approx(deviation, abs=1e-3)
    ranked = levels.sort().values
    found = [ranked[int(share * len(ranked))].item() for share in QUANTILES]
    assert found == pytest.approx(quantiles, abs=2e-3)
    assert levels.min() > 0 and levels.max() == 1.0


def test_a_tenth_of_the_draws_is_uniform() -> None:
    """Draws for a long sequence, whose logit-normal has practically nothing below 0.3."""
    levels = draw_levels(1_000_000, 16896, torch.Generator().manual_seed(0))
    low = (levels < 0.3).float().mean().item()
    normal = stretched_logit_normal(
        torch.randn(1_000_000, generator=torch.Generator().manual_seed(1)), sequence_shift(16896)
    )
    expected = 0.1 * (0.3 - MIN_LEVEL) / (1 - MIN_LEVEL) + 0.9 * (normal < 0.3).float().mean().item()
    assert low == pytest.approx(expected, abs=1e-3)
