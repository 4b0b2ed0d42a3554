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
# The LoRA whose weights a training starts from; as step 0 it goes when there are checkpoints to go on from.
INITIAL_LORA = "lora-000000.safetensors"


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of a training, and where the object store has it."""

    file: MadeFile
    blob: StoredBlob


def object_key(job: str, name: str) -> str:
    """jobs/{job}/{file name}: a job's own blobs go with the job."""
    return f"{job}/{name}"


def training_artifact(job: str, stored: StoredFile, requested: bool = False) -> Artifact:
    """The artifact of a file that a training made."""
    file = stored.file
    kind: Artifact.Kind = getattr(Artifact, f"KIND_{file.kind}")
    made = artifact(job, file.path.name, kind, stored.blob, file.step, file.validation_index)
    made.requested = requested
    return made


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
    return of_step(found, max(steps))


def of_step(found: Sequence[Artifact], step: int) -> dict[str, Artifact]:
    """CHECKPOINT, LORA and METRICS of one step."""
    return {
        Artifact.Kind.Name(item.kind).removeprefix("KIND_"): item
        # Of a step's two LoRAs the first: a finished training's other one has the name of a result.
        for item in reversed(found)
        if item.kind in OF_CHECKPOINT and item.HasField("step") and item.step == step
    }


def outdated(found: Sequence[Artifact]) -> list[Artifact]:
    """Checkpoints but the last two; their LoRAs and metrics too, but for those of a preview or a request."""
    steps = sorted({item.step for item in found if item.kind == Artifact.KIND_CHECKPOINT})
    newest = set(steps[-KEPT_CHECKPOINTS:])
    shown = {item.step for item in found if item.kind == Artifact.KIND_VALIDATION_VIDEO or item.requested}
    return [
        item
        for item in found
        if item.kind in OF_CHECKPOINT
        and item.HasField("step")
        # What a training goes on from is gigabytes; a LoRA is what people look back at.
        and item.step not in (newest if item.kind == Artifact.KIND_CHECKPOINT else newest | shown)
    ]


async def drop(objects: ObjectStore, attempt: Attempt[Job], old: Sequence[Artifact]) -> None:
    """Forget artifacts, then delete their bytes: what is left of them by a crash goes with the job."""
    if not old:
        return
    async with attempt.edit() as edit:
        for item in old:
            edit.drop_child(COLLECTION, short_name(item))
    for item in old:
        await objects.delete(item.blob.key)


async def drop_states(objects: ObjectStore, attempt: Attempt[Job], *, keep_last: bool) -> None:
    """Drop the optimizer states of a job that ends, but for the last one, from which another can go on."""
    states = [item for item in await artifacts(attempt) if item.kind == Artifact.KIND_CHECKPOINT]
    states.sort(key=lambda item: item.step)
    await drop(objects, attempt, states[:-1] if keep_last else states)


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
