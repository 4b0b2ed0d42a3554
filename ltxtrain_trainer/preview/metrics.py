"""Metrics of a preview: how well it continues its clip, in numbers that a person can check against the pictures.

All picture metrics but the PSNR look at the decoded video alone, prefix included, so that the loss of the VAE (which
the PSNR tells) is not mistaken for a jump that the model made. Frames count from 0; N is the number of prefix frames,
hence frame N is the first generated one and the step from N - 1 to N is the join. Levels are 8-bit, 0..255.

`MEASURES` is the table of them: each function is named as its field of `PreviewMetrics`, computes it, and documents its
formula for config.json and the job's page.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ltxtrain_trainer.reports import PreviewMetrics

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB
Audio = npt.NDArray[np.float32]  # [2, S], -1..1
Latents = npt.NDArray[np.float32]
Series = npt.NDArray[np.float64]

BT709_LUMA = np.array([0.2126, 0.7152, 0.0722])
# A still clip has no usual change; below this many levels a change of a frame's mean cannot be seen.
SMALLEST_USUAL_CHANGE = 0.1
MAX_PSNR_DB = 100.0
LOUDNESS_WINDOW_SECONDS = 0.4
SILENCE_DB = -70.0
# Motion is compared on cells, larger than what moves in one frame, so that motion shows as a smooth change.
MOTION_CELLS = 32


@dataclass(frozen=True, kw_only=True)
class FrameStatistics:
    """Statistics of T frames, taken in one pass over them."""

    colour_mean: Series  # [T, 3], mean of each channel, levels
    colour_deviation: Series  # [T, 3], standard deviation of each channel, levels
    luminance: Series  # [T], BT.709 luma of colour_mean, levels
    contrast: Series  # [T], standard deviation of luma, levels
    motion: Series  # [T - 1], mean absolute change of luma from frame t to t + 1, levels
    turn: Series  # [T - 2], mean absolute second difference of luma over cells at frames t, t + 1, t + 2, levels


def frame_statistics(frames: Frames) -> FrameStatistics:
    """Statistics of [T, H, W, 3] frames, T at least 3; one frame is in floating point at a time."""
    means, deviations, contrasts, motions, turns = [], [], [], [], []
    luma_before: npt.NDArray[np.float32] | None = None
    cells: list[Series] = []
    for frame in frames:
        pixels = frame.reshape(-1, 3).astype(np.float32)
        means.append(pixels.mean(axis=0, dtype=np.float64))
        deviations.append(pixels.std(axis=0, dtype=np.float64))
        luma = (pixels @ BT709_LUMA.astype(np.float32)).reshape(frame.shape[:2])
        contrasts.append(float(luma.std(dtype=np.float64)))
        if luma_before is not None:
            motions.append(float(np.abs(luma - luma_before).mean(dtype=np.float64)))
        luma_before = luma
        cells = [*cells[-2:], _cells(luma)]
        if len(cells) == 3:
            turns.append(float(np.abs(cells[2] - 2 * cells[1] + cells[0]).mean()))
    colour_mean = np.array(means)
    return FrameStatistics(
        colour_mean=colour_mean,
        colour_deviation=np.array(deviations),
        luminance=colour_mean @ BT709_LUMA,
        contrast=np.array(contrasts),
        motion=np.array(motions),
        turn=np.array(turns),
    )


@dataclass(frozen=True, kw_only=True)
class Preview:
    """One decoded preview beside the prefix that it continues; 2 <= N < T - 1."""

    frames: Frames  # [T, H, W, 3], decoded prefix included
    source_prefix: Frames  # [N, H, W, 3]
    frame_rate: float
    # Prefix latents of each modality as they were given, and the same place of the result.
    given_latents: Sequence[Latents] = field(default=())
    made_latents: Sequence[Latents] = field(default=())
    audio: Audio | None = None
    sample_rate: int = 48_000

    @property
    def prefix_frames(self) -> int:
        return len(self.source_prefix)

    @cached_property
    def statistics(self) -> FrameStatistics:
        return frame_statistics(self.frames)


def prefix_latents_equal(preview: Preview) -> bool:
    """Whether every bit of the prefix latents in the result equals what was given, in each modality."""
    given, made = preview.given_latents, preview.made_latents
    return len(given) == len(made) and all(_same_bits(ours, theirs) for ours, theirs in zip(given, made, strict=True))


def prefix_psnr_db(preview: Preview) -> float:
    """10 log10(255^2 / MSE) in dB, at most 100; MSE over all values of the decoded prefix against the source frames."""
    pairs = zip(preview.frames[: preview.prefix_frames], preview.source_prefix, strict=True)
    squares = [np.square(ours.astype(np.float64) - theirs).mean() for ours, theirs in pairs]
    floor = 255.0**2 / 10 ** (MAX_PSNR_DB / 10)
    return float(10 * np.log10(255.0**2 / max(float(np.mean(squares)), floor)))


def join_colour_jump(preview: Preview) -> float:
    """c(N) / usual, c(t) = |m(t) - m(t-1)|, m the mean RGB of a frame; usual: median of other c, at least 0.1."""
    return _jump(np.linalg.norm(np.diff(preview.statistics.colour_mean, axis=0), axis=1), preview.prefix_frames)


def join_contrast_jump(preview: Preview) -> float:
    """As the colour jump, m being the standard deviations of R, G and B over a frame."""
    return _jump(np.linalg.norm(np.diff(preview.statistics.colour_deviation, axis=0), axis=1), preview.prefix_frames)


def join_luminance_jump(preview: Preview) -> float:
    """As the colour jump, m being the mean BT.709 luma of a frame (0.2126 R + 0.7152 G + 0.0722 B)."""
    return _jump(np.abs(np.diff(preview.statistics.luminance)), preview.prefix_frames)


def join_motion_break(preview: Preview) -> float:
    """a(N) / usual, a(t) = mean |Y(t) - 2 Y(t-1) + Y(t-2)|, Y the luma of a frame averaged over 32 x 32 cells.

    Motion that goes on as it was has a small second difference; a stop, a reversal and a cut have a large one at the
    join. usual: median of a but for frames N and N + 1, at least 0.1.
    """
    turn, join = preview.statistics.turn, preview.prefix_frames - 2
    return float(turn[join] / _usual(np.delete(turn, [join, join + 1])))


def colour_drift(preview: Preview) -> float:
    """Length of the vector of least-squares slopes of the mean R, G and B over frames N..T-1, in levels a second."""
    return float(
        np.linalg.norm(_slope_a_second(preview.statistics.colour_mean[preview.prefix_frames :], preview.frame_rate))
    )


def contrast_drift(preview: Preview) -> float:
    """Least-squares slope of the deviation of luma over frames N..T-1, in levels a second; below 0: fading."""
    return float(_slope_a_second(preview.statistics.contrast[preview.prefix_frames :, None], preview.frame_rate)[0])


def first_second_motion(preview: Preview) -> float:
    """Mean of e in the first generated second over its mean in the prefix, e(t) = mean |Y(t) - Y(t-1)|, Y the luma.

    The step over the join belongs to neither. The mean in the prefix counts as at least 0.1. 0: frozen, 1: as before.
    """
    second = max(round(preview.frame_rate) - 1, 1)
    before = preview.statistics.motion[: preview.prefix_frames - 1]
    after = preview.statistics.motion[preview.prefix_frames : preview.prefix_frames + second]
    return float(after.mean() / max(before.mean(), SMALLEST_USUAL_CHANGE))


def loudness_step_db(preview: Preview) -> float | None:
    """L(after) - L(before), L = 10 log10(mean square over both channels), at least -70 dB; 0.4 s each side of the join.

    The window is shorter where the prefix or the continuation is. None without audio.
    """
    if (audio := preview.audio) is None:
        return None
    join = round(preview.prefix_frames / preview.frame_rate * preview.sample_rate)
    window = max(min(round(LOUDNESS_WINDOW_SECONDS * preview.sample_rate), join, audio.shape[-1] - join), 1)
    return _loudness_db(audio[:, join : join + window]) - _loudness_db(audio[:, join - window : join])


MEASURES: dict[str, Callable[[Preview], float | bool | None]] = {
    function.__name__: function
    for function in (
        prefix_latents_equal,
        prefix_psnr_db,
        join_colour_jump,
        join_contrast_jump,
        join_luminance_jump,
        join_motion_break,
        colour_drift,
        contrast_drift,
        first_second_motion,
        loudness_step_db,
    )
}


def measure(preview: Preview) -> PreviewMetrics:
    """Every metric of a preview."""
    return PreviewMetrics(**{name: function(preview) for name, function in MEASURES.items()})  # type: ignore[arg-type] # each its own field's type


def formulas() -> dict[str, str]:
    """Field of PreviewMetrics -> its formula in one paragraph."""
    return {name: " ".join((inspect.getdoc(function) or "").split()) for name, function in MEASURES.items()}


def _same_bits(ours: Latents, theirs: Latents) -> bool:
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes()


def _jump(change: Series, prefix_frames: int) -> float:
    """change[t - 1] is the change from frame t - 1 to t."""
    return float(change[prefix_frames - 1] / _usual(np.delete(change, prefix_frames - 1)))


def _usual(change: Series) -> float:
    return max(float(np.median(change)) if change.size else 0.0, SMALLEST_USUAL_CHANGE)


def _slope_a_second(values: Series, frame_rate: float) -> Series:
    """[n, k] values at consecutive frames -> [k] least-squares slopes; 0 for a single frame."""
    if len(values) < 2:
        return np.zeros(values.shape[1])
    seconds = np.arange(len(values)) / frame_rate
    slopes: Series = np.polyfit(seconds, values, 1)[0]
    return slopes


def _cells(luma: npt.NDArray[np.float32]) -> Series:
    """Means of a grid of at most 32 x 32 cells; what does not fill a cell at the right and bottom is left out."""
    rows, columns = (max(size // MOTION_CELLS, 1) for size in luma.shape)
    height, width = luma.shape[0] // rows, luma.shape[1] // columns
    cells = luma[: height * rows, : width * columns].reshape(height, rows, width, columns)
    means: Series = cells.mean(axis=(1, 3), dtype=np.float64)
    return means


def _loudness_db(audio: Audio) -> float:
    power = float(np.square(audio, dtype=np.float64).mean()) if audio.size else 0.0
    return max(float(10 * np.log10(power)) if power > 0 else SILENCE_DB, SILENCE_DB)
