"""A job's event log in an experiment tracker: losses, measurements and previews, live or afterwards.

Follows the events from wherever they can be reached; neither the trainer nor the services know of any tracker.
"""

import asyncio
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, PreviewMetrics, State, TrainMetrics

from ltxtrain_client.as_json import as_json
from ltxtrain_client.errors import NotFound, from_status
from ltxtrain_client.event_text import describe_error, state_word
from ltxtrain_client.outputs import LABELLED, file_name
from ltxtrain_client.train import TrainClient

_VIDEOS = frozenset(
    {
        Artifact.KIND_VALIDATION_VIDEO,
        Artifact.KIND_BASE_VIDEO,
        Artifact.KIND_VALIDATION_REEL,
        Artifact.KIND_CONTINUED_VIDEO,
    }
)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """The run of a tracker that a job becomes."""

    key: str
    """Id of the job: the same run at every export."""

    name: str
    """For people."""

    config: Mapping[str, Any]
    """Effective spec and options of the job; URLs without query and user."""


class Tracker(Protocol):
    """Writes one run. Every method may block; they are called in order, one at a time."""

    @property
    def last_sequence(self) -> int:
        """Sequence of the last event that an earlier export left in the run; 0: none, or the run is begun anew."""

    def numbers(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Values by name at a step; `seconds`: since 1970."""

    def video(self, step: int, seconds: float, name: str, path: Path) -> None:
        """An MP4 file, which is deleted afterwards."""

    def text(self, step: int, seconds: float, name: str, text: str) -> None:
        """A remark, such as a warning of the job."""

    def close(self, state: "State") -> None:
        """End the run as its job ended; STATE_RUNNING when the export stops before it has."""


class Exporter:
    """Writes a job's events into a tracker, one by one."""

    def __init__(self, train: TrainClient, tracker: Tracker) -> None:
        self._train = train
        self._tracker = tracker
        self._step = 0
        self._state = State.STATE_RUNNING

    async def show(self, sequence: int, event: Event) -> None:
        """Write an event that the run does not have yet. A preview that is gone from the store is left out."""
        if sequence <= self._tracker.last_sequence:
            return
        seconds = event.time.seconds + event.time.nanos / 1e9
        match event.WhichOneof("detail"):
            case "train_metrics":
                self._step = event.train_metrics.step
                await self._write(self._tracker.numbers, self._step, seconds, train_numbers(event.train_metrics))
            case "preview_metrics":
                measured = event.preview_metrics
                await self._write(self._tracker.numbers, measured.step, seconds, preview_numbers(measured))
            case "artifact" if event.artifact.kind in _VIDEOS:
                await self._video(event.artifact, seconds)
            case "warning":
                text = describe_error(from_status(event.warning))
                await self._write(self._tracker.text, self._step, seconds, "warning", text)
            case "lifecycle":
                self._state = event.lifecycle.state
                if event.lifecycle.HasField("error"):
                    text = describe_error(from_status(event.lifecycle.error))
                    await self._write(self._tracker.text, self._step, seconds, state_word(self._state), text)

    async def close(self) -> None:
        """End the run."""
        await self._write(self._tracker.close, self._state)

    async def _video(self, artifact: Artifact, seconds: float) -> None:
        step = artifact.step if artifact.HasField("step") else self._step
        with tempfile.TemporaryDirectory(prefix="ltxtrain-export-") as folder:
            path = Path(folder) / file_name(artifact)
            try:
                await self._train.download(artifact.name, path)
            except NotFound:
                return
            await self._write(self._tracker.video, step, seconds, video_name(artifact), path)

    async def _write(self, write: Any, *values: object) -> None:
        await asyncio.to_thread(write, *values)


def run_info(job: Job) -> RunInfo:
    """The run that a job becomes."""
    key = job.name.rpartition("/")[2]
    spec = as_json(job.effective_spec)
    config = {"job": job.name, **_without_secrets(spec), "options": as_json(job.options)}
    return RunInfo(key=key, name=key, config=config)


def _without_secrets(document: Any) -> Any:
    """A document whose URLs have no query, fragment and user part: they may be signed, and a tracker is shared."""
    if isinstance(document, Mapping):
        return {key: _without_secrets(value) for key, value in document.items()}
    if isinstance(document, list):
        return [_without_secrets(value) for value in document]
    if not isinstance(document, str) or "://" not in document:
        return document
    try:
        parts = urlsplit(document)
    except ValueError:
        return "(not a URL)"
    # Free text may hold the mark too.
    return (
        document
        if " " in document
        else parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
    )


def train_numbers(metrics: TrainMetrics) -> dict[str, float]:
    """Numbers of a step by name: "train/loss", ...; those that were not measured are left out."""
    values = {
        f"train/{field.name}": float(value)
        for field, value in metrics.ListFields()
        if field.name not in ("step", "quarter_losses")
    }
    # ListFields leaves zeros out, which these are for a reason.
    values |= {f"train/{name}": float(getattr(metrics, name)) for name in ("loss", "video_loss", "learning_rate")}
    return values | {f"train/quarter_{item.quarter}_loss": item.video_loss for item in metrics.quarter_losses}


def preview_numbers(metrics: PreviewMetrics) -> dict[str, float]:
    """Measurements of a preview by name: "preview_1/prefix_psnr_db", "base_1/...", clips counted from 1."""
    side = f"{'base' if metrics.base_model else 'preview'}_{metrics.validation_index + 1}"
    fields: Any = metrics.DESCRIPTOR.fields
    return {
        f"{side}/{field.name}": float(getattr(metrics, field.name))
        for field in fields
        if field.name not in ("step", "validation_index", "base_model")
        and (not field.has_presence or metrics.HasField(field.name))
    }


def video_name(artifact: Artifact) -> str:
    """Name of a preview among a tracker's media: "preview_1/video"; the reel's is "reel"."""
    if artifact.kind == Artifact.KIND_VALIDATION_REEL:
        return "reel"
    side = f"{'base' if artifact.kind == Artifact.KIND_BASE_VIDEO else 'preview'}_{artifact.validation_index + 1}"
    return f"{side}/beside_base" if artifact.name.endswith(LABELLED) else f"{side}/video"
