import pytest

from ltxtrain_services.train.recorder import StepEvents, mean_metrics
from ltxtrain_trainer.reports import Step


def step(number: int, loss: float = 1.0) -> Step:
    return Step(
        step=number,
        loss=loss,
        video_loss=loss,
        audio_loss=None,
        quarter_losses=(None, loss, None, None),
        gradient_norm=0.5,
        learning_rate=1e-4,
        seconds=2.0,
        tokens_per_second=10.0,
        data_wait_seconds=0.0,
        held_out_loss=None,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("ltxtrain_services.train.recorder.time.monotonic", lambda: now[0])
    return now


def test_steps_of_a_second_become_one_event_with_their_mean(clock: list[float]) -> None:
    steps = StepEvents(total=100, logged=0)
    first = list(steps.add(step(1, 1.0)))
    assert [event.WhichOneof("detail") for event in first] == ["progress", "train_metrics"]
    assert list(steps.add(step(2, 2.0))) == []
    clock[0] += 1.5
    _, metrics = steps.add(step(3, 4.0))
    assert (metrics.train_metrics.step, metrics.train_metrics.loss) == (3, 3.0)
    assert [(item.quarter, item.video_loss) for item in metrics.train_metrics.quarter_losses] == [(1, 3.0)]


def test_the_last_step_is_told_at_once(clock: list[float]) -> None:
    steps = StepEvents(total=2, logged=0)
    list(steps.add(step(1)))
    progress, metrics = steps.add(step(2))
    assert progress.progress.completed == 2 and progress.progress.eta_seconds == 0
    assert metrics.train_metrics.step == 2


def test_after_a_resume_each_step_is_told_once(clock: list[float]) -> None:
    steps = StepEvents(total=100, logged=12)
    told: list[int] = []
    for number in range(11, 15):
        clock[0] += 2
        told += [event.train_metrics.step for event in steps.add(step(number)) if event.HasField("train_metrics")]
    assert told == [13, 14]


def test_means_leave_out_what_was_not_measured() -> None:
    metrics = mean_metrics([step(1), step(2)])
    assert not metrics.HasField("audio_loss") and not metrics.HasField("held_out_loss")
