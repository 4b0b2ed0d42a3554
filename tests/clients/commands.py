"""Running the command line beside the far side that serves it, and jobs for it to speak of. No test in here."""

import asyncio
import hashlib
import io
import zipfile
from typing import Any

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Lifecycle, State
from ltxtrain_client.cli import app
from typer.testing import CliRunner

from tests.clients.far_side import FarSide
from tests.clients.object_host import ObjectHost

JOB = "jobs/1"
# First bytes of an MP4 file.
MP4 = b"\0\0\0\x18ftypisom"


def clips_zip(**more: bytes) -> bytes:
    """A zip of one video, and more files by their names with "_" for ".": enough for the checks before an upload."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.mp4", MP4)
        for name, content in more.items():
            archive.writestr(name.replace("_", "."), content)
    return buffer.getvalue()


class Ltxtrain:
    """Runs the command beside the event loop that serves it."""

    def __init__(self, far: FarSide) -> None:
        self._environ = {f"LTXTRAIN_{name}": far.address for name in ("TRAIN", "INGEST", "PREPROCESS")}

    async def __call__(self, *arguments: object, code: int = 0, stdin: str | bytes | None = None) -> Any:
        runner = CliRunner(env=self._environ)
        done = await asyncio.to_thread(runner.invoke, app, [str(argument) for argument in arguments], input=stdin)
        assert done.exit_code == code, done.output
        return done


def add_job(far: FarSide, state: "State" = State.STATE_SUCCEEDED) -> Job:
    job = far.jobs[JOB] = Job(name=JOB, lifecycle=Lifecycle(state=state))
    return job


def add_results(far: FarSide, store: ObjectHost) -> dict[str, bytes]:
    """Files that every job has made, and a page; file name → content."""
    files = {"lora.safetensors": b"weights", "config.json": b"{}", "metrics.jsonl": b"{}\n"}
    kinds = (Artifact.KIND_LORA, Artifact.KIND_CONFIG, Artifact.KIND_METRICS)
    for (file, content), kind in zip(files.items(), kinds, strict=True):
        far.add_artifact(JOB, file, content, kind, hashlib.sha256(content).hexdigest())
        store.objects[f"/{JOB}/{file}"] = content
    far.output.lora_file = f"{JOB}/artifacts/lora.safetensors"
    far.output.config_file = f"{JOB}/artifacts/config.json"
    return files
