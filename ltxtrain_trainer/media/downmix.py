"""Decoded sound of any sample format and channel layout as two float channels."""

import ctypes
import math
from functools import cache
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from ltxtrain_trainer.errors import AudioUndecodable

Sound = NDArray[np.float32]

FULL, SHARED = 1.0, math.sqrt(0.5)
# Into left and right, by FFmpeg's names of channels. Front, stereo downmix and headphones are heard in full; all else
# on a side, and the middle on both, at half its power. Bass (LFE) is an effect beside the sound and is left out.
FRONT = {"FL": "FR", "DL": "DR", "BIL": "BIR"}
SIDES = {"BL": "BR", "FLC": "FRC", "SL": "SR", "TFL": "TFR", "TBL": "TBR", "WL": "WR", "SDL": "SDR", "TSL": "TSR"}
SIDES |= {"BFL": "BFR", "SSL": "SSR", "TTL": "TTR"}
MIDDLE = ("FC", "BC", "TC", "TFC", "TBC", "BFC")
# Ambisonics, first order: all around, and the axis from right to left.
OMNI, LEFTWARDS = "AMBI0", "AMBI1"
WEIGHTS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(FRONT, (FULL, 0.0)),
    **dict.fromkeys(FRONT.values(), (0.0, FULL)),
    **dict.fromkeys(SIDES, (SHARED, 0.0)),
    **dict.fromkeys(SIDES.values(), (0.0, SHARED)),
    **dict.fromkeys(MIDDLE, (SHARED, SHARED)),
    OMNI: (FULL / 2, FULL / 2),
    LEFTWARDS: (FULL / 2, -FULL / 2),
}
# PyAV counts the planes of a frame up to the first null pointer, of which there is none behind eight: it reads on, and
# the process dies.
MAX_PLANES = 8
# Formats that it makes no arrays of.
UNREAD = {"s64": "dbl", "s64p": "dbl"}
# Channels without a layout come in the order of WAV files, by their count.
UNNAMED: dict[int, tuple[str, ...]] = {
    1: ("FC",),
    2: ("FL", "FR"),
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", "LFE", "BL", "BR"),
    7: ("FL", "FR", "FC", "LFE", "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", "LFE", "BL", "BR", "SL", "SR"),
}


def stereo(frame: AudioFrame) -> Sound:
    """Mix a decoded block into [2, S]: left stays left and right stays right, by the names of its channels.

    Weights sum to one, so that nothing clips. Channels whose names say nothing of a place are heard on both sides. What
    is not a number is silence. Raises AudioUndecodable.
    """
    own_order = _keep_map(frame.layout)
    names = tuple(channel.name for channel in frame.layout.channels)
    if own_order and (frame.format.name in UNREAD or (frame.format.is_planar and len(names) >= MAX_PLANES)):
        raise AudioUndecodable(f"The audio track has {len(names)} channels in an order of its own.")
    channels = _channels(frame)
    weights = weights_of(names)
    if np.array_equal(weights, np.eye(2)):
        return channels
    mixed: Sound = (weights @ channels).astype(np.float32, copy=False)
    return mixed


def _keep_map(layout: AudioLayout) -> bool:
    """Keep an order of channels that has no name from being freed twice, and say whether this is one.

    libav holds such an order in memory of its own. PyAV's layout shares it with the frame, and both free it, which ends
    the process: so the layout must never go.
    """
    if not _has_own_order(layout):
        return False
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return True


def _has_own_order(layout: AudioLayout) -> bool:
    return "+" in layout.name


def can_be_joined(frame: AudioFrame) -> bool:
    """Whether libav may copy the frame's layout, which is not kept in memory of its own."""
    return not _has_own_order(frame.layout)


@cache
def weights_of(names: tuple[str, ...]) -> Sound:
    """Return the weights [2, C] of channels with these names, which FFmpeg calls NONE or USR where it knows none."""
    if not any(name in WEIGHTS or name.startswith("LFE") for name in names):
        names = UNNAMED.get(len(names), names)
    weights = np.array([WEIGHTS.get(name, (0.0, 0.0)) for name in names], np.float64).T
    if not weights.any(axis=1).all():
        # A camera's second microphone has a track of its own, named for one side: nobody wants the other side silent.
        weights = np.broadcast_to(weights.sum(axis=0) if weights.any() else np.ones(len(names)), weights.shape)
    totals: Sound = (weights / np.abs(weights).sum(axis=1).max()).astype(np.float32)
    return totals


def _channels(frame: AudioFrame) -> Sound:
    """Return [C, S] with full scale at 1."""
    if frame.format.name in UNREAD:
        frame = _converted(frame, UNREAD[frame.format.name])
    elif frame.format.is_planar and frame.layout.nb_channels >= MAX_PLANES:
        frame = _converted(frame, frame.format.packed.name)
    samples: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "f":
        return np.where(np.isfinite(samples), samples, 0).astype(np.float32)
    return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))


def _converted(frame: AudioFrame, sample_format: str) -> AudioFrame:
    """Convert the samples of a frame, or interleave its channels."""
    resampler = AudioResampler(format=sample_format, layout=frame.layout, rate=frame.sample_rate)
    (converted,) = [*resampler.resample(frame), *resampler.resample(None)]
    return converted
