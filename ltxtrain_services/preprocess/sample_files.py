"""Files of a fitted scene beside its latents: lossless clips, and its part of the contact sheet."""

import base64
import json
from pathlib import Path

from ltxtrain_services.pages.contact_sheet import Thumbnails, peaks, thumbnails
from ltxtrain_services.preprocess.outcome import SERVICE
from ltxtrain_services.runtime.objects import Objects, StoredBlob
from ltxtrain_trainer.media.fit import FittedClip
from ltxtrain_trainer.media.video_file import write_lossless

MATROSKA = "video/x-matroska"


def store_lossless(objects: Objects, fitted: FittedClip, folder: Path) -> StoredBlob:
    path = folder / "fitted.mkv"
    write_lossless(path, fitted.frames, fitted.frame_rate, fitted.audio)
    stored = objects.put_content(SERVICE, path, MATROSKA)
    path.unlink()
    return stored


def store_sheet(objects: Objects, fitted: FittedClip, conditioning_frames: int) -> StoredBlob:
    """Thumbnails and waveform, as JSON."""
    shown = thumbnails(fitted.frames, conditioning_frames)
    content = {
        "thumbnails": {name: base64.b64encode(jpeg).decode() for name, jpeg in vars(shown).items()},
        "peaks": None if fitted.audio is None else peaks(fitted.audio),
    }
    return objects.put_content(SERVICE, json.dumps(content).encode(), "application/json")


def load_sheet(data: bytes) -> tuple[Thumbnails, list[float] | None]:
    content = json.loads(data)
    jpegs = {name: base64.b64decode(text) for name, text in content["thumbnails"].items()}
    return Thumbnails(**jpegs), content["peaks"]
