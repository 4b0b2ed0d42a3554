"""Reels and previews, before encoding pixel for pixel and after it as PyAV reads the file."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ltxtrain_trainer.preview.panels import (
    GENERATED,
    GENERATED_AHEAD,
    GIVEN,
    GIVEN_AHEAD,
    PROMPT_LINES,
    Lettering,
    Panels,
    printable,
)
from ltxtrain_trainer.preview.reel import Continuation, Segment, paste_prefix, segment_frames, write_preview, write_reel

PREFIX, TOTAL, WIDTH, HEIGHT = 9, 17, 160, 96
HOSTILE = "Ein Drache\x00\n\tüber den Dünen 风筝 العربية 🎬 \ud800 नमस्ते " + "sehr" * 200


def frames(seed: int, count: int = TOTAL, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.uint8]:
    """Noise in large blocks, which H.264 keeps apart frame from frame."""
    blocks = np.random.default_rng(seed).integers(0, 256, (count, size[0] // 16, size[1] // 16, 3), dtype=np.uint8)
    return blocks.repeat(16, axis=1).repeat(16, axis=2)


def tone(hertz: float, seconds: float = TOTAL / 24, level: float = 0.5) -> NDArray[np.float32]:
    t = np.arange(round(seconds * 48_000)) / 48_000
    return np.stack([level * np.sin(2 * np.pi * hertz * t)] * 2).astype(np.float32)


def segment(
    seed: int = 0,
    *,
    audio: NDArray[np.float32] | None = None,
    prompt: str = "A red kite turns over the dunes.",
    size: tuple[int, int] = (HEIGHT, WIDTH),
    count: int = TOTAL,
) -> Segment:
    return Segment(
        prompt=prompt,
        prefix=frames(seed, PREFIX, size),
        continuations=(
            Continuation(label="Base model", frames=frames(seed + 1, count, size), audio=audio),
            Continuation(label="LoRA, step 2000", frames=frames(seed + 2, count, size), audio=audio),
        ),
    )


def panels_of(part: Segment) -> Panels:
    total, height, width, _ = part.continuations[0].frames.shape
    return Panels(
        size=(width, height),
        labels=tuple(side.label for side in part.continuations),
        prompt=part.prompt,
        given_frames=len(part.prefix),
        frame_count=total,
    )


def cut_out(canvas: NDArray[np.uint8], part: Segment, index: int) -> NDArray[np.uint8]:
    left, top = panels_of(part).picture_corner(index)
    height, width = part.prefix.shape[1:3]
    return canvas[top : top + height, left : left + width]


def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32] | None, dict[str, Any]]:
    """Frames [T, H, W, 3], audio [2, S] or None, and the video stream's facts."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        facts = {
            "codec": stream.codec_context.name,
            "format": stream.codec_context.pix_fmt,
            "rate": stream.average_rate,
            "size": (stream.width, stream.height),
            "tags": (stream.codec_context.colorspace, stream.codec_context.color_range),
            "streams": [(s.type, s.codec_context.name) for s in container.streams],
        }
        pictures, sound = [], list[NDArray[np.float32]]()
        for frame in container.decode():
            if isinstance(frame, av.VideoFrame):
                pictures.append(frame.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray())
            else:
                sound.append(frame.to_ndarray())
    return np.stack(pictures), np.concatenate(sound, axis=1) if sound else None, facts


def psnr(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def test_source_frames_are_pasted_exactly_and_the_rest_is_the_models() -> None:
    part = segment()
    canvases = list(segment_frames(part))
    assert len(canvases) == TOTAL
    for number, canvas in enumerate(canvases):
        for index, side in enumerate(part.continuations):
            expected = part.prefix[number] if number < PREFIX else side.frames[number]
            assert np.array_equal(cut_out(canvas, part, index), expected)


def test_the_mark_changes_at_the_join() -> None:
    part = segment()
    left, top = panels_of(part).picture_corner(0)
    borders = [tuple(canvas[top + 10, left - 1]) for canvas in segment_frames(part)]
    assert borders == [GIVEN] * PREFIX + [GENERATED] * (TOTAL - PREFIX)


def test_the_strip_fills_from_source_to_generated() -> None:
    part = segment()
    strip = [count_colours(canvas) for canvas in segment_frames(part)]
    for number, (given, generated, given_ahead, generated_ahead) in enumerate(strip):
        assert (given_ahead == 0) == (number >= PREFIX - 1)
        assert (generated == 0) == (number < PREFIX)
        assert (generated_ahead == 0) == (number == TOTAL - 1)
        assert given > 0
    shares = [given / (given + ahead) for given, _, ahead, _ in strip[:PREFIX]]
    assert shares == pytest.approx([(number + 1) / PREFIX for number in range(PREFIX)], abs=0.02)


def count_colours(canvas: NDArray[np.uint8]) -> list[int]:
    """Pixels of each colour of the strip, on its middle row."""
    row = next(
        row for row in canvas[::-1] if (row == GENERATED).all(-1).any() or (row == GENERATED_AHEAD).all(-1).any()
    )
    return [int((row == colour).all(-1).sum()) for colour in (GIVEN, GENERATED, GIVEN_AHEAD, GENERATED_AHEAD)]


def test_a_reel_has_the_right_frames_rate_size_and_streams(tmp_path: Path) -> None:
    parts = [segment(0, audio=tone(440)), segment(10, audio=tone(440))]
    write_reel(tmp_path / "reel.mp4", parts, 24)
    pictures, _, facts = read(tmp_path / "reel.mp4")
    assert facts == {
        "codec": "h264",
        "format": "yuv420p",
        "rate": 24,
        "size": panels_of(parts[0]).canvas_size,
        "tags": (1, 1),
        "streams": [("video", "h264"), ("audio", "aac")],
    }
    expected = [canvas for part in parts for canvas in segment_frames(part)]
    assert len(pictures) == len(expected) == 2 * TOTAL
    for part, start in zip(parts, (0, TOTAL), strict=True):
        for number in range(TOTAL):
            for index, side in enumerate(part.continuations):
                source = part.prefix[number] if number < PREFIX else side.frames[number]
                assert psnr(cut_out(pictures[start + number], part, index), source) > 28
    data = (tmp_path / "reel.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("rate", [8, 23.976, 24, 60])
def test_sound_lasts_as_long_as_the_pictures(tmp_path: Path, rate: float) -> None:
    seconds = TOTAL / rate
    # One is longer than its pictures, the other shorter: the second must still begin with its own pictures.
    parts = [segment(0, audio=tone(440, seconds + 0.2)), segment(1, audio=tone(880, seconds - 0.1, level=0.25))]
    write_reel(tmp_path / "reel.mp4", parts, rate)
    pictures, audio, facts = read(tmp_path / "reel.mp4")
    assert len(pictures) == 2 * TOTAL
    assert float(facts["rate"]) == pytest.approx(rate, rel=1e-4)
    assert audio is not None
    assert audio.shape[1] == pytest.approx(2 * seconds * 48_000, abs=2048)
    middle = round(seconds * 48_000)
    assert loudness(audio[:, middle - 4800 : middle - 2000]) == pytest.approx(0.5 / 2**0.5, rel=0.1)
    assert loudness(audio[:, middle + 2000 : middle + 4800]) == pytest.approx(0.25 / 2**0.5, rel=0.1)
    end = middle * 2
    assert loudness(audio[:, end - 2400 : end - 1100]) < 0.01


def loudness(audio: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.square(audio, dtype=np.float64).mean()))


def test_without_audio_there_is_no_audio_stream(tmp_path: Path) -> None:
    write_reel(tmp_path / "reel.mp4", [segment()], 24)
    assert read(tmp_path / "reel.mp4")[2]["streams"] == [("video", "h264")]


def test_the_sound_is_the_last_continuations(tmp_path: Path) -> None:
    part = segment(audio=tone(440))
    silent = Continuation(label="LoRA", frames=part.continuations[1].frames, audio=tone(440, level=0))
    heard = Segment(prompt="", prefix=part.prefix, continuations=(part.continuations[0], silent))
    write_reel(tmp_path / "reel.mp4", [heard], 24)
    _, audio, _ = read(tmp_path / "reel.mp4")
    assert audio is not None and loudness(audio) < 1e-3


def test_a_plain_preview_is_the_picture_alone(tmp_path: Path) -> None:
    part = segment(audio=tone(440))
    lora = part.continuations[1]
    write_preview(tmp_path / "plain.mp4", lora, part.prefix, 24)
    pictures, audio, facts = read(tmp_path / "plain.mp4")
    assert facts["size"] == (WIDTH, HEIGHT)
    assert len(pictures) == TOTAL
    for picture, expected in zip(pictures, paste_prefix(lora.frames, part.prefix), strict=True):
        assert psnr(picture, expected) > 28
    assert audio is not None
    assert audio.shape[1] == pytest.approx(TOTAL / 24 * 48_000, abs=2048)


def test_one_continuation_can_be_decorated_alone(tmp_path: Path) -> None:
    part = segment()
    alone = Segment(prompt=part.prompt, prefix=part.prefix, continuations=part.continuations[1:])
    write_reel(tmp_path / "one.mp4", [alone], 24)
    pictures, _, facts = read(tmp_path / "one.mp4")
    assert facts["size"] == panels_of(alone).canvas_size
    assert psnr(cut_out(pictures[PREFIX], alone, 0), alone.continuations[0].frames[PREFIX]) > 28


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="audio"):
        write_reel(tmp_path / "reel.mp4", [segment(audio=tone(440)), segment()], 24)
    with pytest.raises(ValueError, match="layout"):
        write_reel(tmp_path / "reel.mp4", [segment(), segment(size=(96, 96))], 24)
    with pytest.raises(ValueError, match="side by side"):
        Segment(
            prompt="",
            prefix=frames(0, PREFIX),
            continuations=(
                Continuation(label="a", frames=frames(0)),
                Continuation(label="b", frames=frames(0, TOTAL + 8)),
            ),
        )


@pytest.mark.parametrize("size", [(32, 32), (64, 96), (288, 512), (960, 544), (960, 960)], ids=str)
@pytest.mark.parametrize("prompt", ["", "word", HOSTILE], ids=["empty", "short", "hostile"])
def test_every_size_and_prompt_has_an_even_canvas_with_pictures_on_even_places(
    size: tuple[int, int], prompt: str
) -> None:
    part = segment(prompt=prompt, size=size, count=10)
    panels = panels_of(part)
    canvas = panels.frame(0, [part.prefix[0], part.prefix[0]])
    width, height = panels.canvas_size
    assert canvas.shape == (height, width, 3)
    assert width % 2 == height % 2 == 0
    for index in range(2):
        left, top = panels.picture_corner(index)
        assert left % 2 == top % 2 == 0
        assert np.array_equal(cut_out(canvas, part, index), part.prefix[0])


def test_text_is_wrapped_within_the_width() -> None:
    lettering = Lettering(16)
    lines = lettering.wrap(HOSTILE, 300, PROMPT_LINES)
    assert len(lines) == PROMPT_LINES
    assert all(0 < lettering.width(line) <= 300 for line in lines)
    assert lines[-1].endswith("…")
    assert lettering.wrap("", 300, 3) == []
    assert lettering.wrap("two words", 300, 1) == ["two words"]
    words = "one two three four five six seven"
    assert " ".join(lettering.wrap(words, 100, 9)) == words


def test_text_without_control_characters_and_broken_surrogates() -> None:
    assert printable("a\x00b\n\tc \ud800") == "a b c ?"


@pytest.mark.parametrize("text", ["A", "ж", "风", "あ", "한", "ع"])
def test_scripts_have_glyphs(text: str) -> None:
    """Drawn, and not as the box that stands for a missing glyph."""
    assert not np.array_equal(drawn(text), drawn("\U0001f9ff"))
    assert drawn(text).any()


def drawn(text: str) -> NDArray[np.uint8]:
    image = Image.new("RGB", (64, 64))
    Lettering(32).draw(ImageDraw.Draw(image), 8, 8, text, "#ffffff")
    return np.array(image)
