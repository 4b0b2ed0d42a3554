"""A pretraining that is cut short ends as one that was not, and its schedule is the one that is told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ltxtrain_pocket import pretraining
from ltxtrain_pocket.pretraining import Plan, average_of, pretrain, rate_at

PLAN = Plan(name="line", steps=12, learning_rate=0.05)


def fresh_line() -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return nn.Linear(4, 1)


def fit(line: nn.Linear, plan: Plan, folder: Path) -> nn.Linear:
    def losses(step: int) -> dict[str, Tensor]:
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {"loss": (line(inputs)[:, 0] - inputs.sum(1)).square().mean()}

    pretrain(line, plan, losses, folder)
    return line


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "CHECKPOINT_STEPS", 5)


class Killed(Exception):
    pass


def test_a_training_cut_short_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = fit(fresh_line(), PLAN, tmp_path / "whole")
    line = fresh_line()

    def losses(step: int) -> dict[str, Tensor]:
        if step == 8:
            raise Killed
        inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        return {"loss": (line(inputs)[:, 0] - inputs.sum(1)).square().mean()}

    with pytest.raises(Killed):
        pretrain(line, PLAN, losses, tmp_path / "cut")
    resumed = fit(fresh_line(), PLAN, tmp_path / "cut")
    assert torch.equal(resumed.weight, whole.weight) and torch.equal(resumed.bias, whole.bias)
    assert torch.equal(average_of(PLAN, tmp_path / "cut")["weight"], whole.weight)


def test_it_learns(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=400)
    line = fit(fresh_line(), plan, tmp_path)
    assert line.weight.detach()[0].tolist() == pytest.approx([1.0] * 4, abs=0.1)


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 1000) for step in range(1, 1001)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[top] == pytest.approx(1.0) and rates[-1] == pytest.approx(pretraining.LAST_RATE)
