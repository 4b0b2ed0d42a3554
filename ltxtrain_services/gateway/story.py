"""The events of a job or a dataset, folded into what pages and logs show of them.

A story is a cache and nothing else: it is read again from the service's event log whenever it is missing, and it is
shown only to a caller whom the service has just told of the resource.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field

from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.work_pb2 import (
    Event,
    Lifecycle,
    Outcome,
    PreviewMetrics,
    Progress,
    QueuePosition,
    ReportLine,
    Stage,
    State,
    TrainMetrics,
)
from ltxtrain_client.errors import from_status
from ltxtrain_client.event_text import describe, describe_error, measure, stage_word
from ltxtrain_client.quantities import duration_text
from ltxtrain_client.watch import is_terminal

Watch = Callable[[str, int], AsyncGenerator[tuple[int, Event], None]]

MOST_STORIES = 64
MOST_LINES = 2_000
MOST_REPORT_LINES = 1_000
# Beyond it every other point is left out, and from then on only as many are taken.
MOST_POINTS = 4_000
# Between two log lines about the progress of a stage, by the events' own clock.
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True)
class LogLine:
    """One event worth a line."""

    sequence: int
    timestamp: str
    level: str
    message: str


@dataclass
class Curve:
    """Points over steps, thinned evenly when there are many."""

    points: list[tuple[float, float]] = field(default_factory=list)
    _every: int = 1
    _seen: int = 0

    def add(self, step: float, value: float) -> None:
        self._seen += 1
        if (self._seen - 1) % self._every == 0:
            self.points.append((step, value))
        if len(self.points) > MOST_POINTS:
            self.points = self.points[::2]
            self._every *= 2


@dataclass
class Story:
    """Events up to `cursor`, folded."""

    cursor: int = 0
    lifecycle: Lifecycle = field(default_factory=Lifecycle)
    stage: int = 0
    ended: bool = False
    lines: deque[LogLine] = field(default_factory=lambda: deque(maxlen=MOST_LINES))
    # Latest progress of each stage, in the order in which the stages came.
    stages: dict[int, Progress] = field(default_factory=dict)
    # While the job waits for GPUs.
    waiting: QueuePosition | None = None
    numbers: TrainMetrics = field(default_factory=TrainMetrics)
    curves: dict[str, Curve] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    measured: list[PreviewMetrics] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    # Files as they were found, and clips as they were fitted.
    found: list[ReportLine] = field(default_factory=list)
    fitted: list[ReportLine] = field(default_factory=list)
    # How often a part has changed: what a page has to draw again.
    changes: dict[str, int] = field(default_factory=dict)
    # The latest drawing, for all who look at it: what it shows, and its text.
    drawn: tuple[object, str] = (None, "")
    _told: dict[int, float] = field(default_factory=dict)

    @property
    def training(self) -> bool:
        """Whether optimizer steps are being made, or previews in between."""
        stages = (Stage.STAGE_TRAIN, Stage.STAGE_PREVIEW)
        return bool(self.numbers.step) and self.stage in stages and self.lifecycle.state == State.STATE_RUNNING

    def take(self, sequence: int, event: Event) -> bool:
        """Fold the next event in; False for one that is known already."""
        if sequence != self.cursor + 1:
            return False
        self.cursor = sequence
        trained = self.training
        self.stage = event.stage or self.stage
        changed = self._fold(event)
        if self.training is not trained:
            changed = (*changed, "actions")
        for part in changed:
            self.changes[part] = self.changes.get(part, 0) + 1
        if (line := self._line(sequence, event)) is not None:
            self.lines.append(line)
            self.changes["log"] = self.changes.get("log", 0) + 1
        return True

    def _fold(self, event: Event) -> tuple[str, ...]:
        """Names of the parts that the event changes."""
        match event.WhichOneof("detail"):
            case "lifecycle":
                self.lifecycle.CopyFrom(event.lifecycle)
                self.ended = is_terminal(event)
                return ("head", "actions", "files")
            case "progress":
                self.waiting = None
                self.stages[event.stage] = event.progress
                return ("head",)
            case "queue_position":
                self.waiting = event.queue_position
                return ("head",)
            case "train_metrics":
                self.waiting = None
                self._add_numbers(event.train_metrics)
                return ("head", "training")
            case "report_line":
                # Clips that are kept as they are say the least: they are the first to be left out.
                kept = event.report_line.outcome == Outcome.OUTCOME_KEPT
                most = MOST_REPORT_LINES if kept else 2 * MOST_REPORT_LINES
                report = self.found if event.stage == Stage.STAGE_INGEST else self.fitted
                if len(report) < most:
                    report.append(event.report_line)
                return ("dataset",)
            case "artifact":
                self.artifacts[event.artifact.name] = event.artifact
                previews = (Artifact.KIND_VALIDATION_VIDEO, Artifact.KIND_BASE_VIDEO)
                kinds = (*previews, Artifact.KIND_CONTINUED_VIDEO)
                return ("previews", "files") if event.artifact.kind in kinds else ("files",)
            case "preview_metrics":
                self.measured.append(event.preview_metrics)
                return ("metrics",)
            case "warning":
                self.warnings.append(describe_error(from_status(event.warning)))
                return ("head",)
        return ()

    def _add_numbers(self, numbers: TrainMetrics) -> None:
        self.numbers = numbers
        values = {
            "video_loss": numbers.video_loss,
            "gradient_norm": numbers.gradient_norm,
            "learning_rate": numbers.learning_rate,
            "seconds": numbers.seconds_per_step,
        }
        for name in ("audio_loss", "held_out_loss"):
            if numbers.HasField(name):
                values[name] = getattr(numbers, name)
        for name, value in values.items():
            self.curves.setdefault(name, Curve()).add(numbers.step, value)

    def _line(self, sequence: int, event: Event) -> LogLine | None:
        text, level = describe(event), "INFO"
        match event.WhichOneof("detail"):
            case "progress" | "train_metrics" if text is None:
                text = self._progress_text(event)
            case "warning":
                level = "WARN"
            case "lifecycle" if event.lifecycle.HasField("error"):
                level = "ERROR"
        if text is None:
            return None
        where = stage_word(event.stage) if event.stage else "job"
        return LogLine(sequence, time_text(event.time), level, f"{where}: {text}")

    def _progress_text(self, event: Event) -> str | None:
        """How far a stage is, now and then; losses stand for the steps of training."""
        training = event.HasField("train_metrics")
        if (event.stage == Stage.STAGE_TRAIN) is not training:
            return None
        numbers, progress = event.train_metrics, self.stages.get(event.stage, Progress())
        now, before = event.time.seconds + event.time.nanos / 1e9, self._told.get(event.stage)
        done = 0 < progress.total <= (numbers.step if training else progress.completed)
        if before is not None and now - before < PROGRESS_SECONDS and not done:
            return None
        self._told[event.stage] = now
        if not training:
            return measure(event.stage, event.progress).text
        total = f"/{progress.total}" if progress.total else ""
        left = f", {duration_text(progress.eta_seconds)} left" if progress.HasField("eta_seconds") else ""
        return f"step {numbers.step}{total}: loss {numbers.loss:.4f}{left}"


class Stories:
    """The latest stories, by resource name."""

    def __init__(self, most: int = MOST_STORIES) -> None:
        self._most = most
        self._stories: OrderedDict[str, Story] = OrderedDict()

    def of(self, name: str) -> Story:
        """A story, new or as far as it was read. Ask the service first whether its caller may see it."""
        story = self._stories.setdefault(name, Story())
        self._stories.move_to_end(name)
        while len(self._stories) > self._most:
            self._stories.popitem(last=False)
        return story

    async def read(self, name: str, watch: Watch, last_sequence: int) -> Story:
        """The story up to an event that the log is known to have."""
        story = self.of(name)
        if story.cursor < last_sequence:
            async with aclosing(watch(name, story.cursor)) as events:
                async for sequence, event in events:
                    story.take(sequence, event)
                    if sequence >= last_sequence:
                        break
        return story

    async def follow(self, name: str, watch: Watch) -> AsyncGenerator[Story, None]:
        """The story now, and after each event until the last. Every follower has a watch of its own.

        Of followers of one story the first to hear of an event folds it in; it has changed for all of them.
        """
        story = self.of(name)
        # Of now: what others fold in while this one is drawn would be missed, the end of it too.
        cursor = story.cursor
        yield story
        async with aclosing(watch(name, cursor)) as events:
            async for sequence, event in events:
                story.take(sequence, event)
                yield story


def time_text(time: Timestamp) -> str:
    return time.ToJsonString()
