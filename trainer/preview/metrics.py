"""How well a preview continues its clip, in numbers that a person can check against the pictures.

All picture metrics but the PSNR look at the decoded video alone, prefix included, so that the loss of the VAE (which
the PSNR tells) is not mistaken for a jump that the model made. Frames count from 0; N is the number of prefix frames,
hence frame N is the first generated one and the step from N - 1 to N is the join. Levels are 8-bit, 0..255.

Each function is named as its field of `PreviewMetrics` and documents its formula; `formulas` collects them for readers.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]  # [T, H, W, 3], RGB
Audio = npt.NDArray[np.float32]  # [2, S], -1..1
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
class PreviewMetrics:
    """One preview, measured; loudness_step_db is None without audio."""

    prefix_latents_equal: bool
    prefix_psnr_db: float
    join_colour_jump: float
    join_contrast_jump: float
    join_luminance_jump: float
    join_motion_break: float
    colour_drift: float
    contrast_drift: float
    first_second_motion: float
    loudness_step_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class FrameStatistics:
    """What the picture metrics need of T frames, taken in one pass over them."""

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


def measure(
    frames: Frames,
    source_prefix: Frames,
    *,
    frame_rate: float,
    prefix_latents_equal: bool,
    audio: Audio | None = None,
    sample_rate: int = 48_000,
) -> PreviewMetrics:
    """Every metric of one decoded preview [T, H, W, 3] that continues source_prefix [N, H, W, 3], 2 <= N < T - 1."""
    prefix_frames = len(source_prefix)
    statistics = frame_statistics(frames)
    return PreviewMetrics(
        prefix_latents_equal=prefix_latents_equal,
        prefix_psnr_db=prefix_psnr_db(frames, source_prefix),
        join_colour_jump=join_colour_jump(statistics, prefix_frames),
        join_contrast_jump=join_contrast_jump(statistics, prefix_frames),
        join_luminance_jump=join_luminance_jump(statistics, prefix_frames),
        join_motion_break=join_motion_break(statistics, prefix_frames),
        colour_drift=colour_drift(statistics, prefix_frames, frame_rate),
        contrast_drift=contrast_drift(statistics, prefix_frames, frame_rate),
        first_second_motion=first_second_motion(statistics, prefix_frames, frame_rate),
        loudness_step_db=None if audio is None else loudness_step_db(audio, prefix_frames / frame_rate, sample_rate),
    )


def prefix_latents_equal(given: npt.NDArray[np.float32], result: npt.NDArray[np.float32]) -> bool:
    """Whether every bit of the prefix latents in the result equals what was given."""
    return given.dtype == result.dtype and given.shape == result.shape and given.tobytes() == result.tobytes()


def prefix_psnr_db(frames: Frames, source_prefix: Frames) -> float:
    """10 log10(255^2 / MSE) in dB, at most 100; MSE over all values of the decoded prefix against the source frames."""
    decoded = frames[: len(source_prefix)]
    squares = [
        np.square(ours.astype(np.float64) - theirs).mean() for ours, theirs in zip(decoded, source_prefix, strict=True)
    ]
    floor = 255.0**2 / 10 ** (MAX_PSNR_DB / 10)
    return float(10 * np.log10(255.0**2 / max(float(np.mean(squares)), floor)))


def join_colour_jump(statistics: FrameStatistics, prefix_frames: int) -> float:
    """c(N) / usual, c(t) = |m(t) - m(t-1)|, m the mean RGB of a frame; usual: median of other c, at least 0.1."""
    return _jump(np.linalg.norm(np.diff(statistics.colour_mean, axis=0), axis=1), prefix_frames)


def join_contrast_jump(statistics: FrameStatistics, prefix_frames: int) -> float:
    """As the colour jump, m being the standard deviations of R, G and B over a frame."""
    return _jump(np.linalg.norm(np.diff(statistics.colour_deviation, axis=0), axis=1), prefix_frames)


def join_luminance_jump(statistics: FrameStatistics, prefix_frames: int) -> float:
    """As the colour jump, m being the mean BT.709 luma of a frame (0.2126 R + 0.7152 G + 0.0722 B)."""
    return _jump(np.abs(np.diff(statistics.luminance)), prefix_frames)


def join_motion_break(statistics: FrameStatistics, prefix_frames: int) -> float:
    """a(N) / usual, a(t) = mean |Y(t) - 2 Y(t-1) + Y(t-2)|, Y the luma of a frame averaged over 32 x 32 cells.

    Motion that goes on as it was has a small second difference; a stop, a reversal and a cut have a large one at the
    join. usual: median of a but for frames N and N + 1, at least 0.1.
    """
    others = np.delete(statistics.turn, [prefix_frames - 2, prefix_frames - 1])
    return float(statistics.turn[prefix_frames - 2] / _usual(others))


def colour_drift(statistics: FrameStatistics, prefix_frames: int, frame_rate: float) -> float:
    """Length of the vector of least-squares slopes of the mean R, G and B over frames N..T-1, in levels a second."""
    return float(np.linalg.norm(_slope_a_second(statistics.colour_mean[prefix_frames:], frame_rate)))


def contrast_drift(statistics: FrameStatistics, prefix_frames: int, frame_rate: float) -> float:
    """Least-squares slope of the deviation of luma over frames N..T-1, in levels a second; below 0: fading."""
    return float(_slope_a_second(statistics.contrast[prefix_frames:, None], frame_rate)[0])


def first_second_motion(statistics: FrameStatistics, prefix_frames: int, frame_rate: float) -> float:
    """Mean of e in the first generated second over its mean in the prefix, e(t) = mean |Y(t) - Y(t-1)|, Y the luma.

    The step over the join belongs to neither. The mean in the prefix counts as at least 0.1. 0: frozen, 1: as before.
    """
    second = max(round(frame_rate) - 1, 1)
    before = statistics.motion[: prefix_frames - 1]
    after = statistics.motion[prefix_frames : prefix_frames + second]
    return float(after.mean() / max(before.mean(), SMALLEST_USUAL_CHANGE))


def loudness_step_db(audio: Audio, join_seconds: float, sample_rate: int = 48_000) -> float:
    """L(after) - L(before), L = 10 log10(mean square over both channels), at least -70 dB; 0.4 s each side of the join.

    The window is shorter where the prefix or the continuation is.
    """
    join = round(join_seconds * sample_rate)
    window = max(min(round(LOUDNESS_WINDOW_SECONDS * sample_rate), join, audio.shape[-1] - join), 1)
    return _loudness_db(audio[:, join : join + window]) - _loudness_db(audio[:, join - window : join])


def formulas() -> dict[str, str]:
    """Field of PreviewMetrics -> its formula in one paragraph, as config.json and the job page print it."""
    measured: list[Callable[..., float]] = [
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
    ]
    return {function.__name__: " ".join((inspect.getdoc(function) or "").split()) for function in measured}


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
