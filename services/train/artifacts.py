"""What a job leaves behind: names, keys in the object store, and which checkpoints stay."""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path, PurePath

from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Stage

from services.runtime.objects import ObjectStore
from services.runtime.store import Edit
from services.runtime.work import Attempt
from trainer.plan import MadeFile

COLLECTION = "artifacts"
KEPT_CHECKPOINTS = 2
OF_CHECKPOINT = frozenset({Artifact.KIND_CHECKPOINT, Artifact.KIND_LORA, Artifact.KIND_METRICS})


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a job that the object store holds."""

    file: MadeFile
    key: str
    size_bytes: int
    sha256: str


def object_key(job: str, file: MadeFile) -> str:
    """jobs/{job}/{file name}: a job's own blobs go with the job."""
    return f"{job}/{file.path.name}"


def artifact(job: str, stored: StoredFile) -> Artifact:
    file = stored.file
    made = Artifact(
        name=f"{job}/artifacts/{file.path.name}",
        kind=f"KIND_{file.kind}",
        blob=Blob(key=stored.key, size_bytes=stored.size_bytes, sha256=stored.sha256, content_type=file.content_type),
        step=file.step,
        validation_index=file.validation_index,
    )
    made.create_time.GetCurrentTime()
    return made


def short_name(artifact: Artifact) -> str:
    return PurePath(artifact.name).name


async def artifacts(attempt: Attempt[Job]) -> list[Artifact]:
    return await attempt.children(COLLECTION, Artifact)


def latest_checkpoint(found: Sequence[Artifact]) -> dict[str, Artifact]:
    """CHECKPOINT, LORA and METRICS of the newest step that has a checkpoint; empty when there is none."""
    steps = [item.step for item in found if item.kind == Artifact.KIND_CHECKPOINT]
    if not steps:
        return {}
    return {
        Artifact.Kind.Name(item.kind).removeprefix("KIND_"): item
        for item in found
        if item.kind in OF_CHECKPOINT and item.HasField("step") and item.step == max(steps)
    }


def outdated(found: Sequence[Artifact], preview_steps: frozenset[int]) -> list[Artifact]:
    """Checkpoints and what belongs to them that are neither among the last two nor of a preview."""
    steps = sorted({item.step for item in found if item.kind == Artifact.KIND_CHECKPOINT})
    kept = set(steps[-KEPT_CHECKPOINTS:]) | preview_steps
    return [item for item in found if item.kind in OF_CHECKPOINT and item.HasField("step") and item.step not in kept]


def record(edit: Edit[Job], files: Sequence[Artifact]) -> None:
    """Put artifacts and their events into an edit."""
    for made in files:
        edit.put_child(COLLECTION, short_name(made), made)
        stage = Stage.STAGE_TRAIN if made.kind in OF_CHECKPOINT else Stage.STAGE_PUBLISH
        edit.add_event(Event(stage=stage, artifact=made))


CONTACT_SHEET = MadeFile(kind="CONTACT_SHEET", path=Path("contact-sheet.html"), content_type="text/html")
DEBUG_DATASET = MadeFile(kind="DEBUG_DATASET", path=Path("debug-dataset.zip"), content_type="application/zip")


async def publish_training_set(objects: ObjectStore, job: str, training_set: TrainingSet) -> list[Artifact]:
    """Copies under jobs/{job}/, so that they live as long as the job, whatever becomes of the training set."""
    made = []
    for file, present, blob in (
        (CONTACT_SHEET, training_set.HasField("contact_sheet"), training_set.contact_sheet),
        (DEBUG_DATASET, training_set.HasField("archive"), training_set.archive),
    ):
        if present:
            made.append(artifact(job, await _copied(objects, job, file, blob)))
    return made


async def _copied(objects: ObjectStore, job: str, file: MadeFile, blob: Blob) -> StoredFile:
    with tempfile.TemporaryDirectory(prefix="ltxtrain-publish-") as folder:
        path = Path(folder) / file.path.name
        await objects.get_file(blob.key, path, sha256=blob.sha256)
        stored = await objects.put_file(object_key(job, file), path, file.content_type, sha256=blob.sha256)
    return StoredFile(file=file, key=stored.key, size_bytes=stored.size_bytes, sha256=stored.sha256)
