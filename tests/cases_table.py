"""The manifest of tests/data/cases, and what its words mean here."""

import json
from pathlib import Path
from typing import Any

from ltxtrain_trainer import errors

FOLDER = Path(__file__).parent / "data" / "cases"

# What the media modules raise for a reason of the manifest; the services map their own errors.
CLIP_ERRORS: dict[str, type[errors.ClipError]] = {
    "too_short": errors.ClipTooShort,
    "validation_too_short": errors.ClipTooShort,
    "audio_missing": errors.AudioTrackMissing,
    "audio_undecodable": errors.AudioUndecodable,
    "undecodable": errors.Undecodable,
    "no_video_stream": errors.NoVideoTrack,
    "image_entry": errors.StillImage,
}


def cases(*kinds: str) -> list[dict[str, Any]]:
    manifest = json.loads((FOLDER / "cases.json").read_text())
    return [case for case in manifest["cases"] if case["kind"] in kinds]


def media(case: dict[str, Any]) -> Path:
    return FOLDER / str(case["file"])
