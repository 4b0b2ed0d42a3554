"""What a training set made for people becomes the job's own: contact sheet and debug archive."""

import tempfile
from pathlib import Path

from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.preprocess_pb2 import TrainingSet

from services.runtime.objects import ObjectStore
from services.train.artifacts import StoredFile, artifact, object_key
from trainer.plan import MadeFile

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
