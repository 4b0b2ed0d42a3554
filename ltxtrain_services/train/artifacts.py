"""Artifacts of a job: names, keys in the object store, and which checkpoints stay."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePath

from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Stage

from ltxtrain_services.runtime.object_types import StoredBlob
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_trainer.reports import MadeFile

COLLECTION = "artifacts"
KEPT_CHECKPOINTS = 2
OF_CHECKPOINT = frozenset({Artifact.KIND_CHECKPOINT, Artifact.KIND_LORA, Artifact.KIND_METRICS})


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a training, and where the object store has it."""

    file: MadeFile
    blob: StoredBlob


def object_key(job: str, name: str) -> str:
    """jobs/{job}/{file name}: a job's own blobs go with the job."""
    return f"{job}/{name}"


def training_artifact(job: str, stored: StoredFile) -> Artifact:
    """The artifact of a file that a training made."""
    file = stored.file
    kind: Artifact.Kind = getattr(Artifact, f"KIND_{file.kind}")
    return artifact(job, file.path.name, kind, stored.blob, file.step, file.validation_index)


def artifact(
    job: str,
    name: str,
    kind: "Artifact.Kind",
    stored: StoredBlob,
    step: int | None = None,
    validation_index: int | None = None,
) -> Artifact:
    made = Artifact(
        name=f"{job}/artifacts/{name}",
        kind=kind,
        blob=Blob(**asdict(stored)),
        step=step,
        validation_index=validation_index,
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
    """Checkpoints but the last two; their LoRAs and metrics too, but for those of a preview."""
    steps = sorted({item.step for item in found if item.kind == Artifact.KIND_CHECKPOINT})
    newest = set(steps[-KEPT_CHECKPOINTS:])
    return [
        item
        for item in found
        if item.kind in OF_CHECKPOINT
        and item.HasField("step")
        # What a training goes on from is gigabytes; a LoRA is what people look back at.
        and item.step not in (newest if item.kind == Artifact.KIND_CHECKPOINT else newest | preview_steps)
    ]


def record(edit: Edit[Job], files: Sequence[Artifact]) -> None:
    """Put artifacts and their events into an edit."""
    for made in files:
        edit.put_child(COLLECTION, short_name(made), made)
        stage = Stage.STAGE_TRAIN if made.kind in OF_CHECKPOINT else Stage.STAGE_PUBLISH
        edit.add_event(Event(stage=stage, artifact=made))


async def publish_training_set(objects: ObjectStore, attempt: Attempt[Job], training_set: TrainingSet) -> None:
    """Copy contact sheet and debug archive under jobs/{job}/, once: they live as long as the job does."""
    known = {item.kind for item in await artifacts(attempt)}
    made = []
    for name, kind, present, blob in (
        ("contact-sheet.html", Artifact.KIND_CONTACT_SHEET, "contact_sheet", training_set.contact_sheet),
        ("debug-dataset.zip", Artifact.KIND_DEBUG_DATASET, "archive", training_set.archive),
    ):
        if training_set.HasField(present) and kind not in known:
            made.append(artifact(attempt.name, name, kind, await _copied(objects, attempt.name, name, blob)))
    async with attempt.edit() as edit:
        record(edit, made)


async def _copied(objects: ObjectStore, job: str, name: str, blob: Blob) -> StoredBlob:
    with tempfile.TemporaryDirectory(prefix="ltxtrain-publish-") as folder:
        path = Path(folder) / name
        await objects.get_file(blob.key, path, sha256=blob.sha256)
        return await objects.put_file(object_key(job, name), path, blob.content_type, sha256=blob.sha256)
