"""Trainings that go on from another, and what is asked of one while it runs."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ltxtrain_trainer.errors import CheckpointMismatch
from ltxtrain_trainer.lora_file.export import lora_metadata, lora_tensors, read_lora, write_lora
from ltxtrain_trainer.reports import Step
from ltxtrain_trainer.training.checkpoint import (
    Checkpoint,
    fingerprint,
    read_checkpoint,
    require_same,
    write_checkpoint,
)
from ltxtrain_trainer.training.loop import CheckpointDue, PreviewDue, Report, train
from ltxtrain_trainer.training.lora import adapter, fill_adapter
from ltxtrain_trainer.training.requests import Request, Requests
from ltxtrain_trainer.training.settings import TrainSettings
from tests.trainer.golden import IDENTITY, run, same, samples, settings, weights, with_lora

# Four clips are trained on: the second half begins in the midst of an epoch.
WHOLE = settings(
    steps=4,
    schedule="constant",
    batch_size=1,
    with_audio=False,
    holdout_fraction=0.2,
    evaluation_interval=2,
    checkpoint_interval=0,
)
HALF = replace(WHOLE, steps=2)

# Steps without their times, LoRA file and last checkpoint of a training.
Trained = tuple[list[Step], bytes, Path]


def lora_bytes(transformer: Any, wanted: TrainSettings, path: Path) -> bytes:
    metadata = lora_metadata(base_model="golden", revision="1", trigger_phrase="", settings=wanted, step=wanted.steps)
    write_lora(lora_tensors(adapter(transformer)), metadata, path)
    return path.read_bytes()


def trained(wanted: TrainSettings, folder: Path, resume: Checkpoint | None = None) -> Trained:
    """A training whose LoRA and checkpoint go through files."""
    transformer = with_lora(wanted)
    steps, stored = [], folder / f"checkpoint-{wanted.steps}-{resume is None}"
    for report in train(transformer, samples(), wanted, identity=IDENTITY, resume=resume):
        if isinstance(report, Step):
            steps.append(replace(report, seconds=0.0, tokens_per_second=0.0, data_wait_seconds=0.0))
        elif isinstance(report, CheckpointDue):
            write_checkpoint(report.checkpoint, stored)
    return steps, lora_bytes(transformer, wanted, folder / "lora"), stored


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(WHOLE, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(HALF, tmp_path_factory.mktemp("half"))


def test_half_the_steps_and_as_many_more_are_the_whole_training(whole: Trained, half: Trained, tmp_path: Path) -> None:
    steps, lora, state = trained(WHOLE, tmp_path, resume=read_checkpoint(half[2]))
    assert [*half[0], *steps] == whole[0]
    assert lora == whole[1]
    assert state.read_bytes() == whole[2].read_bytes(), "optimizer and weights in float32"


def test_a_linear_schedule_is_another_training_with_more_steps() -> None:
    few, many = (fingerprint(replace(wanted, schedule="linear"), IDENTITY) for wanted in (HALF, WHOLE))
    with pytest.raises(CheckpointMismatch, match="steps is 2 in the checkpoint and 4 here"):
        require_same(few, many)
    with pytest.raises(CheckpointMismatch, match=r"schedule is linear .* and constant here; steps is 2 .* and 4 here"):
        require_same(few, fingerprint(WHOLE, IDENTITY))


def test_a_training_starts_from_the_weights_of_a_lora(half: Trained) -> None:
    start = read_lora(half[2].parent / "lora")
    wanted = replace(WHOLE, seed=7, steps=1)
    transformer = with_lora(wanted)
    fill_adapter(transformer, start)
    assert same({name: tensor.bfloat16() for name, tensor in weights(transformer).items()}, start)
    begun = weights(transformer)
    run(wanted, data=samples(2), transformer=transformer)
    assert not same(weights(transformer), begun)


@pytest.mark.parametrize("change", [{"rank": 16}, {"with_audio": True}])
def test_a_lora_of_another_shape_is_refused(half: Trained, change: dict[str, Any]) -> None:
    transformer = with_lora(replace(WHOLE, **change))
    before = weights(transformer)
    with pytest.raises(CheckpointMismatch, match="not of this rank and these modules"):
        fill_adapter(transformer, read_lora(half[2].parent / "lora"))
    assert same(weights(transformer), before), "nothing of it is taken"


def test_a_file_that_is_no_lora_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lora").write_bytes(b"not a LoRA")
    with pytest.raises(CheckpointMismatch, match="is not a LoRA"):
        read_lora(tmp_path / "lora")


def asked(wanted: TrainSettings, at: int, *kinds: Request) -> Iterator[tuple[Report, Any]]:
    """Reports of a training that is asked after a step has been told, so that the next one takes it."""
    requests, transformer = Requests(), with_lora(wanted)
    for report in train(transformer, samples(), wanted, identity=IDENTITY, requests=requests):
        if isinstance(report, Step) and report.step == at:
            for kind in kinds:
                requests.put(kind)
        yield report, transformer


def marks(reports: Sequence[Report]) -> list[tuple[str, int, bool]]:
    """Checkpoints and previews with their steps, and whether somebody asked for them."""
    return [
        (type(report).__name__, report.step, report.requested)
        for report in reports
        if isinstance(report, CheckpointDue | PreviewDue)
    ]


def test_a_checkpoint_and_previews_are_had_between_two_steps_and_change_no_byte(whole: Trained, tmp_path: Path) -> None:
    # Put five times, had once.
    given = list(asked(WHOLE, 1, *[Request.CHECKPOINT, Request.PREVIEW] * 5))
    assert marks([report for report, _ in given]) == [
        ("CheckpointDue", 2, True),
        ("PreviewDue", 2, True),
        ("CheckpointDue", 4, False),
        ("PreviewDue", 4, False),
    ]
    assert lora_bytes(given[-1][1], WHOLE, tmp_path / "asked") == whole[1]


def test_a_training_that_is_stopped_leaves_the_step_that_it_was_at(half: Trained, tmp_path: Path) -> None:
    given = [report for report, _ in asked(WHOLE, 2, Request.STOP)]
    # The step was told before the request: its checkpoint is made, and no further step.
    assert [report.step for report in given if isinstance(report, Step)] == [1, 2]
    last = given[-1]
    assert isinstance(last, CheckpointDue) and last.step == 2
    kept = read_checkpoint(half[2])
    assert same(last.checkpoint.adapter, kept.adapter) and same(last.checkpoint.optimizer, kept.optimizer)


@pytest.mark.parametrize(
    ("interval", "expected"), [(0, ["PreviewDue", "CheckpointDue"]), (1, ["CheckpointDue", "PreviewDue"])]
)
def test_a_stop_in_the_midst_of_previews_leaves_one_checkpoint_of_their_step(
    interval: int, expected: list[str]
) -> None:
    wanted, requests = replace(WHOLE, preview_interval=1, checkpoint_interval=interval), Requests()
    reports = []
    for report in train(with_lora(wanted), samples(), wanted, identity=IDENTITY, requests=requests):
        reports.append(report)
        if isinstance(report, PreviewDue):
            requests.put(Request.STOP)
    assert marks(reports) == [(name, 1, False) for name in expected]


@pytest.mark.parametrize(
    ("steps", "interval", "due", "left_out"),
    [
        (150, 37, [37, 74, 111, 150], 148),
        (150, 60, [60, 120, 150], None),
        (150, 100, [100, 150], None),
        (100, 25, [25, 50, 75, 100], None),
        (100, 60, [60, 100], None),
        (120, 50, [50, 120], 100),
        (5, 1, [1, 2, 3, 4, 5], None),
        (100, 0, [100], None),
        (100, 300, [100], None),
    ],
)
def test_two_previews_close_to_the_end_become_one(
    steps: int, interval: int, due: list[int], left_out: int | None
) -> None:
    wanted = settings(steps=steps, preview_interval=interval)
    assert [step for step in range(1, steps + 1) if wanted.is_preview_due(step)] == due
    assert wanted.preview_left_out == left_out
