"""What a finished training set leaves: its samples, and what people look at."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.work_pb2 import ReportLine

from services.preprocess.archive import CONTENT_TYPE, write_archive
from services.preprocess.attempt import Attempt
from services.preprocess.cache import as_blob
from services.preprocess.pieces import SERVICE
from services.preprocess.samples import Results
from services.preprocess.sheet import store_sheet_page
from services.runtime.objects import StoredBlob
from services.runtime.store import Edit, Store

SAMPLES = "samples"
SAMPLES_AN_EDIT = 500


async def publish(
    attempt: Attempt, sets: Store[TrainingSet], number: int, results: Results
) -> Callable[[Edit[TrainingSet]], None]:
    """Writes all samples; what is returned sets the rest in the transaction that ends the training set."""
    samples = results.samples(attempt.name)
    await _put_samples(attempt, sets, number, samples)
    sheet = await _sheet(attempt, results, samples)
    archive = await _archive(attempt, sets, samples) if attempt.settings.export_archive else None
    negative = results.prompts.blob(attempt.settings.negative_prompt) if results.plan.validation else None

    def outcome(edit: Edit[TrainingSet]) -> None:
        edit.body.report.CopyFrom(results.report())
        for field, blob in (("contact_sheet", sheet), ("archive", archive), ("negative_prompt", negative)):
            if blob is not None:
                getattr(edit.body, field).CopyFrom(blob)

    return outcome


async def _put_samples(attempt: Attempt, sets: Store[TrainingSet], number: int, samples: Sequence[Sample]) -> None:
    """All of them in their order, and none that an earlier attempt may have left beyond."""
    names = [sample.name.rpartition("/")[2] for sample in samples]
    older = {sample.name.rpartition("/")[2] for sample in await sets.all_children(attempt.name, SAMPLES, Sample)}
    async with sets.edit(attempt.name, attempt=number) as edit:
        for name in older.difference(names):
            edit.drop_child(SAMPLES, name)
    for start in range(0, len(samples), SAMPLES_AN_EDIT):
        async with sets.edit(attempt.name, attempt=number) as edit:
            for name, sample in zip(names[start:], samples[start : start + SAMPLES_AN_EDIT], strict=False):
                edit.put_child(SAMPLES, name, sample)


async def _sheet(attempt: Attempt, results: Results, samples: Sequence[Sample]) -> Blob:
    objects = attempt.runtime.objects
    parts = list(results.sheets(samples))
    paths = {item.clip.name: item.clip.path for item in results.plan.training}
    stored = await objects.run(lambda: store_sheet_page(attempt.name, attempt.settings, parts, paths, objects.objects))
    return await _held(attempt, stored)


async def _archive(attempt: Attempt, sets: Store[TrainingSet], samples: Sequence[Sample]) -> Blob:
    objects = attempt.runtime.objects
    lines = await sets.all_children(attempt.name, "report", ReportLine)

    def make() -> StoredBlob:
        with tempfile.TemporaryDirectory(prefix="ltxtrain-archive-") as folder:
            path = Path(folder) / "archive.zip"
            write_archive(path, attempt.training_set, samples, lines, objects.objects)
            return objects.objects.put_content(SERVICE, path, CONTENT_TYPE)

    return await _held(attempt, await objects.run(make))


async def _held(attempt: Attempt, stored: StoredBlob) -> Blob:
    blob = as_blob(stored)
    await attempt.cache.hold(blob, attempt.name)
    return blob
