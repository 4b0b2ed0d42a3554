"""The debug archive (O4): what the model is given, as files that people can open.

samples/{index}.mkv is the fitted clip, lossless, with its sound; .wav the sound alone; .txt the caption as embedded.
report.json has a line for every clip and scene, manifest.json the settings and what each sample came from.
"""

import json
import wave
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from ltxtrain.v1.preprocess_pb2 import Sample, TrainingSet
from ltxtrain.v1.work_pb2 import ReportLine

from services.runtime.objects import Objects
from trainer.media.audio import SAMPLE_RATE
from trainer.media.downmix import Sound
from trainer.media.video_file import read_lossless

CONTENT_TYPE = "application/zip"
# Equal training sets have equal archives.
EPOCH = (1980, 1, 1, 0, 0, 0)
FULL_SCALE = 32767


def write_archive(
    path: Path, training_set: TrainingSet, samples: Sequence[Sample], lines: Sequence[ReportLine], objects: Objects
) -> None:
    """A zip at `path`; one sample's file at a time is beside it."""
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
    """16 bit: what every player opens; the exact sound is in the clip beside it."""
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
