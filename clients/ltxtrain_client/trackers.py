"""The experiment trackers that a job can be exported to, each through its own library, an extra of the distribution.

Where they write is their own settings' matter: WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, TRACKIO_DIR, ...
"""

import io
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import StrEnum
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from ltxtrain.v1.work_pb2 import State

from ltxtrain_client.errors import LibraryMissing
from ltxtrain_client.export import RunInfo, Tracker

PROJECT = "ltxtrain"
# TensorBoard shows moving pictures as GIF alone.
GIF_PIXELS = 320
GIF_RATE = 12


class TensorBoard:
    """Event files in FOLDER/JOB."""

    last_sequence = 0

    def __init__(self, run: RunInfo, folder: Path, *, fresh: bool) -> None:
        # The writer of its own package, which needs neither TensorFlow nor torch.
        from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
        from tensorboard.plugins.text import metadata
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event: Any = event_pb2.Event
        self._summary: Any = summary_pb2.Summary
        self._text: Any = partial(tensor_pb2.TensorProto, dtype=types_pb2.DT_STRING)
        self._text_metadata: Any = metadata.create_summary_metadata(display_name=None, description=None)
        place = folder / run.key
        if fresh:
            shutil.rmtree(place, ignore_errors=True)
        self._writer: Any = EventFileWriter(str(place))
        if fresh:
            self.text(0, time.time(), "config", _markdown(run.config))

    def numbers(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._write(step, seconds, *(self._summary.Value(tag=tag, simple_value=value) for tag, value in values.items()))

    def video(self, step: int, seconds: float, name: str, path: Path) -> None:
        gif, width, height = as_gif(path)
        image = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._write(step, seconds, self._summary.Value(tag=name, image=image))

    def text(self, step: int, seconds: float, name: str, text: str) -> None:
        tensor = self._text(string_val=[text.encode()])
        self._write(step, seconds, self._summary.Value(tag=name, metadata=self._text_metadata, tensor=tensor))

    def close(self, state: "State") -> None:
        self._writer.close()

    def _write(self, step: int, seconds: float, *values: Any) -> None:
        self._writer.add_event(self._event(step=step, wall_time=seconds, summary=self._summary(value=values)))
        self._writer.flush()


class Wandb:
    """A run of Weights & Biases with the job's id, which is continued: it cannot be replaced.

    WANDB_MODE=offline writes below FOLDER alone.
    """

    def __init__(self, run: RunInfo, folder: Path, *, fresh: bool) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.key,
            name=run.name,
            config=dict(run.config),
            dir=str(folder),
            resume="allow",
        )
        # Previews come after steps that were logged before them, and its own step only grows.
        self.last_sequence: int = self._run.summary.get("sequence", 0) if self._run.resumed else 0
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def numbers(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    def video(self, step: int, seconds: float, name: str, path: Path) -> None:
        self._run.log({name: self._wandb.Video(str(path), format="mp4"), "step": step})

    def text(self, step: int, seconds: float, name: str, text: str) -> None:
        self._run.log({name: self._wandb.Html(f"<pre>{_escaped(text)}</pre>"), "step": step})

    def close(self, state: "State") -> None:
        self._run.finish(exit_code=int(state == State.STATE_FAILED))


class Mlflow:
    """A run of MLflow that is tagged with the job. Media are its artifacts."""

    last_sequence = 0

    _STATUS = {  # noqa: RUF012
        State.STATE_SUCCEEDED: "FINISHED",
        State.STATE_FAILED: "FAILED",
        State.STATE_CANCELLED: "KILLED",
    }

    def __init__(self, run: RunInfo, folder: Path, *, fresh: bool) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric

        self._metric: Any = Metric
        self._client: Any = MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment is not None else self._client.create_experiment(name)
        earlier = [item.info.run_id for item in self._client.search_runs([place], f"tags.ltxtrain_job = '{run.key}'")]
        if earlier and not fresh:
            self._id: str = earlier[0]
            return
        for run_id in earlier:
            self._client.delete_run(run_id)
        self._id = self._client.create_run(place, run_name=run.name, tags={"ltxtrain_job": run.key}).info.run_id
        for key, value in _flat(run.config):
            self._client.log_param(self._id, key, value)

    def numbers(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        at = round(seconds * 1000)
        self._client.log_batch(self._id, [self._metric(name, value, at, step) for name, value in values.items()])

    def video(self, step: int, seconds: float, name: str, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), f"previews/{name}")

    def text(self, step: int, seconds: float, name: str, text: str) -> None:
        self._client.log_text(self._id, text, f"notes/{step:06}-{name}-{round(seconds * 1000)}.txt")

    def close(self, state: "State") -> None:
        if state in self._STATUS:
            self._client.set_terminated(self._id, self._STATUS[state])


class Trackio:
    """A run of Trackio, in a database of this machine (TRACKIO_DIR) unless it is told otherwise."""

    last_sequence = 0

    def __init__(self, run: RunInfo, folder: Path, *, fresh: bool) -> None:
        import trackio

        self._trackio: Any = trackio
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        if fresh:
            with suppress(ValueError):  # no such project yet
                for earlier in [item for item in trackio.Api().runs(project) if item.name == run.key]:
                    earlier.delete()
        self._run: Any = trackio.init(
            project=project,
            name=run.key,
            config=dict(run.config),
            resume="allow",
            embed=False,
        )

    def numbers(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def video(self, step: int, seconds: float, name: str, path: Path) -> None:
        self._run.log({name: self._trackio.Video(str(path), format="mp4")}, step=step)

    def text(self, step: int, seconds: float, name: str, text: str) -> None:
        self._run.log({name: self._trackio.Markdown(text)}, step=step)

    def close(self, state: "State") -> None:
        self._run.finish()


class TrackerName(StrEnum):
    """Trackers by the name of their extra."""

    TENSORBOARD = "tensorboard"
    WANDB = "wandb"
    MLFLOW = "mlflow"
    TRACKIO = "trackio"


TRACKERS: dict[TrackerName, Callable[..., Tracker]] = {
    TrackerName.TENSORBOARD: TensorBoard,
    TrackerName.WANDB: Wandb,
    TrackerName.MLFLOW: Mlflow,
    TrackerName.TRACKIO: Trackio,
}


def open_tracker(name: TrackerName, run: RunInfo, folder: Path, *, fresh: bool = True) -> Tracker:
    """The run of a job: `fresh` replaces what an earlier export made, for the event log has all of it.

    Raises LibraryMissing when the library is not installed.
    """
    try:
        return TRACKERS[name](run, folder, fresh=fresh)
    except ModuleNotFoundError as error:
        raise LibraryMissing(
            f"--to {name} needs the package {error.name}: pip install 'ltxtrain-client[{name}]'"
        ) from None


def as_gif(path: Path) -> tuple[bytes, int, int]:
    """A video as GIF of at most GIF_PIXELS a side and GIF_RATE frames a second, with its width and height."""
    import av

    pictures = []
    with av.open(str(path)) as video:
        stream = video.streams.video[0]
        rate = stream.average_rate or Fraction(GIF_RATE)
        every = max(1, round(rate / GIF_RATE))
        for index, frame in enumerate(video.decode(stream)):
            if index % every == 0:
                picture = frame.to_image()  # type: ignore[no-untyped-call]
                picture.thumbnail((GIF_PIXELS, GIF_PIXELS))
                pictures.append(picture)
    buffer = io.BytesIO()
    milliseconds = round(1000 * every / rate)
    first, *rest = pictures
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=milliseconds, loop=0)
    return buffer.getvalue(), first.width, first.height


def _flat(config: Mapping[str, Any], above: str = "") -> list[tuple[str, str]]:
    """Leaves of a document by dotted path, as text of at most 500 characters."""
    pairs: list[tuple[str, str]] = []
    for key, value in config.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{above}{key}.")
        elif value not in ("", None, []):
            pairs.append((f"{above}{key}", str(value)[:500]))
    return pairs


def _markdown(config: Mapping[str, Any]) -> str:
    cells = [f"| {key} | {value.replace('|', '&#124;')} |" for key, value in _flat(config)]
    return "\n".join(["| setting | value |", "| --- | --- |", *cells])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
