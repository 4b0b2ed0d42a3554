"""Several workers compute what one does, with clips of their own or with clips that they share."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training.distributed import join
from ltxtrain_trainer.training.loop import train
from ltxtrain_trainer.training.settings import TrainSettings, workers_per_clip
from tests.trainer.golden import IDENTITY, run, same, samples, settings, weights, with_lora
from tests.trainer.workers import free_address, run_workers

SHORT = settings(steps=4, batch_size=4, holdout_fraction=0.4, evaluation_interval=2)
SHARED = replace(SHORT, steps=2, gradient_checkpointing=True)


@dataclass(frozen=True)
class Arrangement:
    """A training, and how many workers do it."""

    workers: int
    settings: TrainSettings

    @property
    def team_size(self) -> int:
        return workers_per_clip(self.workers, self.settings.batch_size)


ARRANGEMENTS = {
    "two with two clips each": Arrangement(2, SHORT),
    "two share each of two clips": Arrangement(4, replace(SHARED, batch_size=2, with_audio=False)),
    # 26 audio tokens, which do not come out even.
    "four share each clip": Arrangement(4, replace(SHARED, batch_size=1)),
}
MOST = max(arrangement.workers for arrangement in ARRANGEMENTS.values())

# By arrangement: the steps that each worker reported, and its adapter at the end.
Workers = dict[str, list[tuple[list[Step], dict[str, torch.Tensor]]]]


def work(rank: int, addresses: dict[str, str], folder: Path) -> None:
    for name, arrangement in ARRANGEMENTS.items():
        if rank >= arrangement.workers:
            continue
        wanted, count = arrangement.settings, arrangement.workers
        transformer = with_lora(wanted)
        with join(rank, count, addresses[name], torch.device("cpu"), team_size=arrangement.team_size) as worker:
            data = samples(with_audio=wanted.with_audio)
            reports = train(transformer, data, wanted, identity=IDENTITY, worker=worker)
            steps = [vars(report) for report in reports if isinstance(report, Step)]
        torch.save((steps, weights(transformer)), folder / f"{name}-{rank}")


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    folder = tmp_path_factory.mktemp("workers")
    run_workers(work, MOST, {name: free_address() for name in ARRANGEMENTS}, folder)

    def found(path: Path) -> tuple[list[Step], dict[str, torch.Tensor]]:
        steps, adapter = torch.load(path)
        return [Step(**step) for step in steps], adapter

    return {
        name: [found(folder / f"{name}-{rank}") for rank in range(arrangement.workers)]
        for name, arrangement in ARRANGEMENTS.items()
    }


def untimed(step: Step) -> Step:
    return replace(step, seconds=0.0, tokens_per_second=0.0, data_wait_seconds=0.0)


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_all_report_the_same_numbers_and_end_with_the_same_bits(workers: Workers, name: str) -> None:
    (steps, adapter), *others = workers[name]
    for other_steps, other in others:
        assert same(adapter, other)
        assert [untimed(step) for step in steps] == [untimed(step) for step in other_steps]


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_they_train_what_one_worker_trains(workers: Workers, name: str) -> None:
    wanted = ARRANGEMENTS[name].settings
    reports, alone = run(wanted, data=samples(with_audio=wanted.with_audio))
    steps, adapter = workers[name][0]
    for one, shared in zip([report for report in reports if isinstance(report, Step)], steps, strict=True):
        assert shared.loss == pytest.approx(one.loss, rel=1e-5)
        assert shared.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
        numbers: list[tuple[Any, Any]] = list(
            zip((*shared.quarter_losses, shared.held_out_loss), (*one.quarter_losses, one.held_out_loss), strict=True)
        )
        assert all(found == (loss and pytest.approx(loss, rel=1e-5)) for found, loss in numbers)
    difference = torch.cat([(adapter[name] - alone[name]).flatten() for name in alone]).norm()
    moved = torch.cat([tensor.flatten() for name, tensor in alone.items() if "lora_B" in name]).norm()
    assert difference < 1e-3 * moved
