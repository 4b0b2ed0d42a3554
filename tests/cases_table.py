"""The manifest of tests/data/cases, and what its words mean here."""

import asyncio
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


def bounded(expect: dict[str, Any]) -> asyncio.Timeout:
    """Where a case names seconds, ten times as many: for ever is what it must not take, and machines are slow."""
    return asyncio.timeout(10 * expect["max_seconds"] if "max_seconds" in expect else None)
