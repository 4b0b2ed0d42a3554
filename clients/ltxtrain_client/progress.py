"""Live views of running work: bars on a terminal, lines of text elsewhere, JSON lines for scripts."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, TextIO

from ltxtrain.v1.work_pb2 import Event, Stage, TrainMetrics
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from ltxtrain_client.as_json import as_json
from ltxtrain_client.event_text import Measure, describe, measure, stage_word
from ltxtrain_client.quantities import duration_text, size_text
from ltxtrain_client.transfer import Transfer
from ltxtrain_client.view import View

# Seconds between two progress lines of a stage, by the events' own clock.
PLAIN_SECONDS = 10.0


def make_view(*, json_lines: bool, out: TextIO | None = None) -> View:
    """JSON lines when asked for, bars on a terminal, plain lines otherwise."""
    stream = out or sys.stdout
    if json_lines:
        return JsonView(stream)
    console = Console(file=stream)
    return BarView(console) if console.is_terminal else PlainView(stream)


class JsonView:
    """One JSON object a line: {"sequence": n, "event": {...}}, times in RFC 3339, enum values as words."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, sequence: int, event: Event) -> None:
        print_json({"sequence": sequence, "event": as_json(event)}, self._out)

    def show_transfer(self, label: str, step: Transfer) -> None:
        if step.completed_bytes >= step.total_bytes:
            print_json({"transfer": label, "size_bytes": step.total_bytes}, self._out)

    def show_files(self, paths: Sequence[Path]) -> None:
        print_json({"files": [str(path) for path in paths]}, self._out)


class PlainView:
    """A line per noteworthy event; progress every few seconds."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._notes = _Notes()
        self._shown: dict[int, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, sequence: int, event: Event) -> None:
        stage = stage_word(event.stage) if event.stage else "job"
        if (line := describe(event)) is not None:
            self._print(f"{stage}: {line}")
        self._notes.take(event)
        if event.HasField("progress") and self._due(event):
            text = f"{stage}: {measure(event.stage, event.progress).text}"
            self._print(", ".join([text, *self._notes.of(event.stage)]))

    def show_transfer(self, label: str, step: Transfer) -> None:
        if step.completed_bytes >= step.total_bytes:
            self._print(f"{label}: {size_text(step.total_bytes)}")

    def show_files(self, paths: Sequence[Path]) -> None:
        self._print(files_text(paths))

    def _due(self, event: Event) -> bool:
        now, before = event.time.seconds + event.time.nanos / 1e9, self._shown.get(event.stage)
        at = measure(event.stage, event.progress)
        done = 0 < at.total <= at.completed
        if before is not None and now - before < PLAIN_SECONDS and not done:
            return False
        self._shown[event.stage] = now
        return True

    def _print(self, text: str) -> None:
        print_line(text, self._out)


class BarView:
    """A bar for each stage and each transfer, with lines scrolling above."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._notes = _Notes()
        self._bars = self._make()
        self._tasks: dict[int | str, TaskID] = {}

    def _make(self) -> Progress:
        columns = (
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}", markup=False),
            TextColumn("{task.fields[note]}", markup=False, style="dim"),
        )
        return Progress(*columns, console=self._console)

    def __enter__(self) -> Self:
        # New ones: the old would be drawn again over what was printed meanwhile.
        self._bars, self._tasks = self._make(), {}
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def show(self, sequence: int, event: Event) -> None:
        if (line := describe(event)) is not None:
            style = {"warning": "yellow", "skipped": "yellow", "rejected": "red", "failed": "red"}
            self._console.print(line, style=style.get(line.split(":")[0].split(" ")[0]), markup=False, highlight=False)
        self._notes.take(event)
        if event.HasField("progress"):
            self._bar(event.stage, stage_word(event.stage), measure(event.stage, event.progress))
        elif event.HasField("train_metrics") and event.stage in self._tasks:
            self._bars.update(self._tasks[event.stage], note=", ".join(self._notes.of(event.stage)))

    def show_transfer(self, label: str, step: Transfer) -> None:
        text = f"{size_text(step.completed_bytes)}/{size_text(step.total_bytes)}"
        self._bar(label, label, Measure(step.completed_bytes, step.total_bytes, text))

    def show_files(self, paths: Sequence[Path]) -> None:
        self._console.print(files_text(paths), markup=False, highlight=False, soft_wrap=True)

    def _bar(self, key: int | str, label: str, at: Measure) -> None:
        note = ", ".join(self._notes.of(key))
        if key not in self._tasks:
            self._tasks[key] = self._bars.add_task(label, total=None, count="", note="")
        task = self._tasks[key]
        self._bars.update(task, completed=at.completed, total=at.total or None, count=at.text, note=note)


class _Notes:
    """Text beside a stage's count: the latest loss and the remaining time."""

    def __init__(self) -> None:
        self._metrics: TrainMetrics | None = None
        self._eta: dict[int | str, float | None] = {}

    def take(self, event: Event) -> None:
        if event.HasField("train_metrics"):
            self._metrics = event.train_metrics
        elif event.HasField("progress"):
            eta = event.progress.eta_seconds if event.progress.HasField("eta_seconds") else None
            self._eta[event.stage] = eta

    def of(self, stage: int | str) -> list[str]:
        notes = []
        if stage == Stage.STAGE_TRAIN and self._metrics is not None:
            notes += [f"loss {self._metrics.loss:.4f}", f"{self._metrics.seconds_per_step:.2f} s/step"]
        if (eta := self._eta.get(stage)) is not None:
            notes.append(f"{duration_text(eta)} left")
        return notes


def files_text(paths: Sequence[Path]) -> str:
    """List of downloaded files, one per line."""
    return "\n".join(["downloaded", *(f"  {path}" for path in paths)])


class OutputClosed(SystemExit):
    """The reader of the output is gone, as in `ltxtrain jobs | head -1`: end the process silently.

    The exit status is what a shell reports for SIGPIPE.
    """

    def __init__(self) -> None:
        super().__init__(141)
        # Flushing the rest of the buffer at exit would fail again.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_line(text: str, out: TextIO | None = None) -> None:
    """Print a line and flush it. Raises OutputClosed when the reader is gone."""
    try:
        print(text, file=out or sys.stdout, flush=True)
    except BrokenPipeError:
        raise OutputClosed from None


def print_json(document: Any, out: TextIO | None = None) -> None:
    """Print a line of JSON. Raises OutputClosed when the reader is gone."""
    print_line(json.dumps(document, ensure_ascii=False), out)
