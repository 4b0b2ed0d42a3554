"""A training set on one page: what the model is given and what it has to continue, for every sample.

The small parts of a sample (`thumbnails`, `peaks`) are made where its frames are; the page is put together later.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from ltxtrain_services.pages.charts import waveform
from ltxtrain_services.pages.render import data_uri, render

THUMBNAIL_PIXELS = 320  # the longer side
PEAK_COUNT = 240


@dataclass(frozen=True, kw_only=True)
class Thumbnails:
    """JPEG files of four frames of a sample."""

    first: bytes
    last_prefix: bytes
    first_generated: bytes
    last: bytes


@dataclass(frozen=True, kw_only=True)
class SheetSample:
    """One sample of the training set; peaks None without audio."""

    # The clip's path in its archive.
    path: str
    # Where in the clip it begins; empty for the whole of one.
    scene: str = ""
    # Among the samples of the training set.
    name: str
    caption: str
    thumbnails: Thumbnails
    peaks: Sequence[float] | None
    width: int
    height: int
    frame_count: int
    frame_rate: float
    note: str = ""


def thumbnails(frames: npt.NDArray[np.uint8], conditioning_frames: int) -> Thumbnails:
    """Thumbnails of frames [T, H, W, 3], the first conditioning_frames of which are prefix."""
    numbers = (0, conditioning_frames - 1, conditioning_frames, len(frames) - 1)
    first, last_prefix, first_generated, last = (_jpeg(frames[number]) for number in numbers)
    return Thumbnails(first=first, last_prefix=last_prefix, first_generated=first_generated, last=last)


def peaks(audio: npt.NDArray[np.float32]) -> tuple[float, ...]:
    """The largest magnitude 0..1 in each of 240 equal parts of audio [C, S]; fewer when S is smaller."""
    loudest = np.abs(audio).max(axis=0)
    parts = np.array_split(loudest, min(PEAK_COUNT, len(loudest)))
    return tuple(round(min(float(part.max()), 1.0), 3) for part in parts)


def render_contact_sheet(
    title: str, conditioning_frames: int, samples: Sequence[SheetSample], warning: str = ""
) -> str:
    """The HTML of the page, about 50 kB a sample."""
    return render(
        "contact_sheet.html",
        title=title,
        warning=warning,
        conditioning_frames=conditioning_frames,
        samples=[_values(sample, conditioning_frames) for sample in samples],
    )


def _values(sample: SheetSample, conditioning_frames: int) -> dict[str, Any]:
    shown = sample.thumbnails
    seconds = sample.frame_count / sample.frame_rate
    return {
        "path": sample.path,
        "scene": sample.scene,
        "name": sample.name,
        "caption": sample.caption,
        "note": sample.note,
        "facts": f"{sample.width} × {sample.height}, {sample.frame_count} frames at {sample.frame_rate:g} a second, "
        f"{seconds:.2f} s",
        "frames": [
            (label, number, given, data_uri(jpeg, "image/jpeg"))
            for label, number, given, jpeg in (
                ("first", 1, True, shown.first),
                ("last given", conditioning_frames, True, shown.last_prefix),
                ("first to continue", conditioning_frames + 1, False, shown.first_generated),
                ("last", sample.frame_count, False, shown.last),
            )
        ],
        "waveform": None
        if sample.peaks is None
        else waveform(sample.peaks, conditioning_frames / sample.frame_count, width=960),
    }


def _jpeg(frame: npt.NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(frame)
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
