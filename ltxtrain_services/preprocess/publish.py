"""Results of a finished training set: its samples, contact sheet and debug archive."""

import json
import wave
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, Sample, TrainingSet
from ltxtrain.v1.work_pb2 import ReportLine

from ltxtrain_services.pages.contact_sheet import SheetSample, render_contact_sheet
from ltxtrain_services.preprocess.cache import as_blob
from ltxtrain_services.preprocess.context import Context
from ltxtrain_services.preprocess.outcome import SERVICE
from ltxtrain_services.preprocess.report import no_text_line
from ltxtrain_services.preprocess.results import Results
from ltxtrain_services.preprocess.sample_files import load_sheet
from ltxtrain_services.runtime.disk import scratch_folder
from ltxtrain_services.runtime.objects import Objects, StoredBlob
from ltxtrain_services.runtime.report import COLLECTION
from ltxtrain_services.runtime.store import Edit
from ltxtrain_services.runtime.work import Ending
from ltxtrain_trainer.media.audio import SAMPLE_RATE
from ltxtrain_trainer.media.downmix import Sound
from ltxtrain_trainer.media.video_file import read_lossless

SAMPLES = "samples"
SAMPLES_AN_EDIT = 500


async def publish(context: Context, results: Results) -> Ending[TrainingSet]:
    """Write all samples; the ending sets the rest."""
    samples = results.samples(context.name)
    await _put_samples(context, samples)
    sheet = await store_sheet(context, results, samples) if context.training_set.dataset else None
    archive = await _archive(context, samples) if context.settings.export_archive else None
    negative = results.prompts.blob(context.settings.negative_prompt) if results.plan.validation else None

    def ending(edit: Edit[TrainingSet]) -> None:
        edit.body.report.CopyFrom(results.report())
        for field, blob in (("contact_sheet", sheet), ("archive", archive), ("negative_prompt", negative)):
            if blob is not None:
                getattr(edit.body, field).CopyFrom(blob)

    return ending


async def _put_samples(context: Context, samples: Sequence[Sample]) -> None:
    """All of them in their order, and none that an earlier attempt may have left beyond."""
    names = [sample.name.rpartition("/")[2] for sample in samples]
    older = {sample.name.rpartition("/")[2] for sample in await context.attempt.children(SAMPLES, Sample)}
    async with context.attempt.edit() as edit:
        for name in older.difference(names):
            edit.drop_child(SAMPLES, name)
    for start in range(0, len(samples), SAMPLES_AN_EDIT):
        async with context.attempt.edit() as edit:
            for name, sample in zip(names[start:], samples[start : start + SAMPLES_AN_EDIT], strict=False):
                edit.put_child(SAMPLES, name, sample)


async def store_sheet(context: Context, results: Results, samples: Sequence[Sample]) -> Blob:
    """The contact sheet of the samples, in the store as long as the training set."""
    objects = context.runtime.objects
    parts = list(results.sheets(samples))
    paths = {item.clip.name: item.clip.path for item in results.plan.training}
    warning = no_text_line().description if results.plan.has_no_text(context.settings) else ""
    stored = await objects.run(
        lambda: store_sheet_page(context.name, context.settings, parts, paths, objects.objects, warning)
    )
    return await _held(context, stored)


async def _archive(context: Context, samples: Sequence[Sample]) -> Blob:
    objects = context.runtime.objects
    lines = await context.attempt.children(COLLECTION, ReportLine)

    def make() -> StoredBlob:
        with scratch_folder("archive") as folder:
            path = folder / "archive.zip"
            write_archive(path, context.training_set, samples, lines, objects.objects)
            return objects.objects.put_content(SERVICE, path, CONTENT_TYPE)

    return await _held(context, await objects.run(make))


async def _held(context: Context, stored: StoredBlob) -> Blob:
    blob = as_blob(stored)
    await context.cache.hold(blob, context.name)
    return blob


HTML = "text/html; charset=utf-8"
# About 50 kB each: a page of more could not be opened.
MAX_SAMPLES = 500


def store_sheet_page(
    name: str,
    settings: PreprocessSettings,
    samples: Sequence[tuple[Sample, Blob]],
    paths: Mapping[str, str],
    objects: Objects,
    warning: str = "",
) -> StoredBlob:
    """One page with the first 500 training samples, in the store. `paths`: of the clips, by their names."""
    scenes = Counter(sample.clip for sample, _ in samples)
    shown = []
    for sample, blob in samples[:MAX_SAMPLES]:
        pictures, waveform = load_sheet(objects.get_bytes(blob.key, sha256=blob.sha256))
        shown.append(
            SheetSample(
                path=paths[sample.clip],
                scene=f"scene from frame {sample.start_frame}" if sample.start_frame or scenes[sample.clip] > 1 else "",
                name=sample.name.removeprefix(f"{name}/"),
                caption=sample.caption,
                thumbnails=pictures,
                peaks=waveform,
                width=settings.training.width,
                height=settings.training.height,
                frame_count=sample.frame_count,
                frame_rate=sample.frame_rate,
                note=f"played at {sample.speed:.2f} times its speed" if sample.speed != 1 else "",
            )
        )
    more = f" (the first {MAX_SAMPLES} of {len(samples)} samples)" if len(samples) > MAX_SAMPLES else ""
    page = render_contact_sheet(name + more, settings.conditioning_frames, shown, warning)
    return objects.put_content(SERVICE, page.encode(), HTML)


CONTENT_TYPE = "application/zip"
# Equal training sets have equal archives.
EPOCH = (1980, 1, 1, 0, 0, 0)
FULL_SCALE = 32767


def write_archive(
    path: Path, training_set: TrainingSet, samples: Sequence[Sample], lines: Sequence[ReportLine], objects: Objects
) -> None:
    """Write the archive to `path`; it needs room for one sample's file more."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for index, sample in enumerate(samples):
            _add_sample(archive, f"samples/{index:06}", sample, objects, path.parent)
        _add_text(archive, "report.json", _json([_as_dict(line) for line in lines]))
        _add_text(archive, "manifest.json", _json(_manifest(training_set, samples)))


def _add_sample(archive: zipfile.ZipFile, stem: str, sample: Sample, objects: Objects, folder: Path) -> None:
    blob = sample.prefix_frames if sample.HasField("validation_index") else sample.clip_preview
    clip = folder / "sample.mkv"
    objects.get_file(blob.key, clip, sha256=blob.sha256)
    with clip.open("rb") as source, archive.open(_entry(f"{stem}.mkv"), "w", force_zip64=True) as target:
        while chunk := source.read(1 << 20):
            target.write(chunk)
    audio = read_lossless(clip).audio
    clip.unlink()
    if audio is not None:
        with archive.open(_entry(f"{stem}.wav"), "w") as target:
            _write_wave(target, audio)
    _add_text(archive, f"{stem}.txt", sample.caption)


def _write_wave(target: object, audio: Sound) -> None:
    """16 bit, for every player; the exact sound is in the lossless clip."""
    with wave.open(target, "wb") as sound:  # type: ignore[call-overload] # anything that can be written to
        sound.setnchannels(audio.shape[0])
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        sound.writeframesraw(np.round(np.clip(audio, -1, 1) * FULL_SCALE).astype("<i2").T.tobytes())


def _manifest(training_set: TrainingSet, samples: Sequence[Sample]) -> dict[str, object]:
    return {
        "dataset": training_set.dataset,
        "validationDataset": training_set.validation_dataset,
        "settings": _as_dict(training_set.settings),
        "samples": [
            {"file": f"samples/{index:06}.mkv"}
            | _as_dict(sample, without=("name", "clip_preview", "prefix_frames"))
            | {"index": index}
            for index, sample in enumerate(samples)
        ],
    }


def _as_dict(message: Message, without: Sequence[str] = ()) -> dict[str, object]:
    copy = type(message)()
    copy.CopyFrom(message)
    for field in without:
        copy.ClearField(field)
    return MessageToDict(copy)


def _json(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2)


def _add_text(archive: zipfile.ZipFile, name: str, text: str) -> None:
    archive.writestr(_entry(name), text.encode())


def _entry(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(str(PurePath(name)), EPOCH)
