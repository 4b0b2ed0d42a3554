"""A small dataset and an opening clip for the demo: the same bytes on every machine, made when absent."""

import io
import zipfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from ltxtrain_pocket.drawing import render
from ltxtrain_pocket.scenes import FRAMES, STYLE_CLIPS, opening, style_scene

WIDTH, HEIGHT, FRAME_RATE = 512, 288, 24
# Zip has no time zones and begins in 1980.
TIMESTAMP = (2026, 1, 1, 0, 0, 0)
SETTINGS = {
    "preset": "veryfast",
    "crf": "20",
    # One thread and no choice by the kind of CPU, for equal bytes everywhere.
    "x264-params": "threads=1:lookahead-threads=1:sliced-threads=0:cpu-independent=1",
}

Frame = NDArray[np.uint8]

SHORT_FRAMES = 12  # fewer than the demo trains on
# Of the openings that ltxtrain_pocket.scenes counts.
OPENING = 0


def make_demo_clips(folder: Path) -> Path:
    """clips.zip: clips over whose ground night falls, one that is too short, and what a Mac leaves in archives."""
    path = folder / "clips.zip"
    if not path.exists():
        write_archive(path, _demo_clips())
    return path


def _demo_clips() -> Iterator[tuple[str, Iterable[Frame], str]]:
    for index in range(STYLE_CLIPS):
        scene = style_scene(index)
        name = f"{scene.ground_name.replace(' ', '-')}/{index:02}-{scene.colour_name}-{scene.shape}.mp4"
        yield name, render(scene, FRAMES), scene.caption
    short = style_scene(STYLE_CLIPS)
    yield "too-short.mp4", render(short, SHORT_FRAMES), short.caption


def make_validation_clip(folder: Path) -> Path:
    """opening.mp4: most of a second of a scene without the style, to be continued by previews."""
    path = folder / "opening.mp4"
    if not path.exists():
        write_opening(path, render(opening(OPENING), FRAMES))
    return path


def opening_caption() -> str:
    return opening(OPENING).caption


def write_archive(path: Path, clips: Iterable[tuple[str, Iterable[Frame], str]]) -> None:
    """Write a zip of clips with captions, and of what a Mac leaves in archives; clips: name, frames, caption."""
    part = path.with_suffix(".part")
    with zipfile.ZipFile(part, "w") as archive:
        for name, frames, caption in clips:
            _add(archive, name, _encoded(frames))
            _add(archive, str(Path(name).with_suffix(".txt")), f"{caption}\n".encode())
        _add(archive, "__MACOSX/._clip.mp4", bytes.fromhex("00051607000200004d6163204f532058"))
    part.replace(path)


def write_opening(path: Path, frames: Iterable[Frame]) -> None:
    """Write one clip."""
    part = path.with_suffix(".part")
    part.write_bytes(_encoded(frames))
    part.replace(path)


def _encoded(frames: Iterable[Frame]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FRAME_RATE, options=SETTINGS)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.time_base = Fraction(1, FRAME_RATE)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, TIMESTAMP)
    entry.external_attr = 0o644 << 16
    entry.create_system = 3
    archive.writestr(entry, data)
