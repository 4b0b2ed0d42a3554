"""From the trainer's reports to events: at most one a second, means of the steps between, each step once."""

import time
from collections.abc import Iterator
from statistics import fmean

from ltxtrain.v1 import work_pb2
from ltxtrain.v1.work_pb2 import Event, Progress, QuarterLoss, Stage, TrainMetrics

from trainer.plan import Previewed, Previewing
from trainer.training.loop import Step

EVENT_SECONDS = 1.0
# Steps whose mean duration the remaining time is guessed from.
ETA_STEPS = 50


class StepEvents:
    """Collects steps and says when an event about them is due.

    `logged`: the last step that the event log has already; a resumed training computes those again, and equal.
    """

    def __init__(self, total: int, logged: int) -> None:
        self._total = total
        self._logged = logged
        self._steps: list[Step] = []
        self._seconds: list[float] = []
        self._sent = 0.0

    def add(self, step: Step) -> Iterator[Event]:
        """The events that are due after this step."""
        self._seconds = [*self._seconds[1 - ETA_STEPS :], step.seconds]
        if step.step > self._logged:
            self._steps.append(step)
        if time.monotonic() - self._sent >= EVENT_SECONDS or step.step == self._total:
            yield from self.flush(step.step)

    def flush(self, step: int) -> Iterator[Event]:
        """Events about everything up to a step."""
        self._sent = time.monotonic()
        eta = fmean(self._seconds) * (self._total - step) if self._seconds else 0.0
        yield Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=step, total=self._total, eta_seconds=eta))
        if self._steps:
            yield Event(stage=Stage.STAGE_TRAIN, train_metrics=mean_metrics(self._steps))
            self._logged = self._steps[-1].step
            self._steps = []

    @property
    def logged(self) -> int:
        return self._logged


def mean_metrics(steps: list[Step]) -> TrainMetrics:
    """Means of some steps; the learning rate and the held-out loss are the last ones."""
    last = steps[-1]
    metrics = TrainMetrics(
        step=last.step,
        loss=fmean(step.loss for step in steps),
        video_loss=fmean(step.video_loss for step in steps),
        learning_rate=last.learning_rate,
        seconds_per_step=fmean(step.seconds for step in steps),
        gradient_norm=fmean(step.gradient_norm for step in steps),
        tokens_per_second=fmean(step.tokens_per_second for step in steps),
        data_wait_seconds=fmean(step.data_wait_seconds for step in steps),
    )
    if audio := [step.audio_loss for step in steps if step.audio_loss is not None]:
        metrics.audio_loss = fmean(audio)
    if held_out := [step.held_out_loss for step in steps if step.held_out_loss is not None]:
        metrics.held_out_loss = held_out[-1]
    for quarter, losses in enumerate(zip(*(step.quarter_losses for step in steps), strict=True)):
        if known := [loss for loss in losses if loss is not None]:
            metrics.quarter_losses.append(QuarterLoss(quarter=quarter, video_loss=fmean(known)))
    return metrics


def preview_progress(report: Previewing) -> Event:
    return Event(stage=Stage.STAGE_PREVIEW, progress=Progress(completed=report.completed, total=report.total))


def preview_metrics(report: Previewed) -> Event:
    numbers = report.metrics
    metrics = work_pb2.PreviewMetrics(
        step=0 if report.base_model else report.step,
        validation_index=report.index,
        base_model=report.base_model,
        prefix_latents_equal=numbers.prefix_latents_equal,
        prefix_psnr_db=numbers.prefix_psnr_db,
        join_colour_jump=numbers.join_colour_jump,
        join_contrast_jump=numbers.join_contrast_jump,
        join_luminance_jump=numbers.join_luminance_jump,
        join_motion_break=numbers.join_motion_break,
        colour_drift=numbers.colour_drift,
        contrast_drift=numbers.contrast_drift,
        first_second_motion=numbers.first_second_motion,
        loudness_step_db=numbers.loudness_step_db,
    )
    return Event(stage=Stage.STAGE_PREVIEW, preview_metrics=metrics)
