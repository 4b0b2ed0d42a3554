"""Two workers compute what one does."""

import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training.distributed import join
from ltxtrain_trainer.training.loop import train
from tests.trainer.golden import IDENTITY, run, samples, settings, weights, with_lora

WANTED = settings(steps=4, batch_size=4, holdout_fraction=0.4, evaluation_interval=2)

# The steps that each worker reported, and its adapter at the end.
Workers = list[tuple[list[Step], dict[str, torch.Tensor]]]


def work(rank: int, address: str, folder: Path) -> None:
    torch.set_num_threads(1)
    transformer = with_lora(WANTED)
    with join(rank, 2, address, torch.device("cpu")) as worker:
        reports = [
            report
            for report in train(transformer, samples(), WANTED, identity=IDENTITY, worker=worker)
            if isinstance(report, Step)
        ]
    torch.save([vars(report) for report in reports], folder / f"reports-{rank}")
    torch.save(weights(transformer), folder / f"weights-{rank}")


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Workers:
    folder = tmp_path_factory.mktemp("workers")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    spawn(work, (address, folder), nprocs=2)
    return [
        ([Step(**report) for report in torch.load(folder / f"reports-{rank}")], torch.load(folder / f"weights-{rank}"))
        for rank in range(2)
    ]


def test_both_end_with_the_same_bits(two_workers: Workers) -> None:
    (_, first), (_, second) = two_workers
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_both_report_the_same_numbers(two_workers: Workers) -> None:
    first, second = (
        [replace(step, seconds=0.0, tokens_per_second=0.0, data_wait_seconds=0.0) for step in reports]
        for reports, _ in two_workers
    )
    assert first == second


def test_they_train_what_one_worker_trains(two_workers: Workers) -> None:
    reports, alone = run(WANTED)
    alone_steps = [report for report in reports if isinstance(report, Step)]
    for one, both in zip(alone_steps, two_workers[0][0], strict=True):
        assert both.loss == pytest.approx(one.loss, rel=1e-5)
        assert both.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-4)
        pairs = zip((*both.quarter_losses, both.held_out_loss), (*one.quarter_losses, one.held_out_loss), strict=True)
        assert all(found == (loss and pytest.approx(loss, rel=1e-5)) for found, loss in pairs)
    difference = torch.cat([(two_workers[0][1][name] - alone[name]).flatten() for name in alone]).norm()
    moved = torch.cat([tensor.flatten() for name, tensor in alone.items() if "lora_B" in name]).norm()
    assert difference < 1e-3 * moved
