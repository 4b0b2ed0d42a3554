"""Decoded sound of any sample format and channel layout as two float channels."""

import math
from typing import Any

import numpy as np
from av.audio.frame import AudioFrame
from numpy.typing import NDArray

Sound = NDArray[np.float32]

# Into the left channel, in the order of the layout; the right one is its mirror. Sums to one at full scale.
FULL, SHARED = 1.0, math.sqrt(0.5)
SURROUND = {
    6: (FULL, 0, SHARED, 0, SHARED, 0),
    8: (FULL, 0, SHARED, 0, SHARED, 0, SHARED, 0),
}
# In the order of the layouts named below, left and right change places and the centre stays.
MIRROR = {6: (1, 0, 2, 3, 5, 4), 8: (1, 0, 2, 3, 5, 4, 7, 6)}
SURROUND_LAYOUTS = {"5.1", "5.1(side)", "7.1", "6 channels", "8 channels"}


def stereo(frame: AudioFrame) -> Sound:
    """[2, S] of a decoded block: mono twice, 5.1 and 7.1 by their normalised weights, other layouts as their mean.

    Channels without a layout are taken in the order of WAV files. What is not a number is silence.
    """
    channels = _channels(frame)
    count = len(channels)
    if count == 2:
        return channels
    if count in SURROUND and frame.layout.name in SURROUND_LAYOUTS:
        left = np.array(SURROUND[count], np.float32)
        weights = np.stack([left, left[list(MIRROR[count])]]) / left.sum()
        mixed: Sound = (weights @ channels).astype(np.float32, copy=False)
        return mixed
    return np.repeat(channels.mean(axis=0, keepdims=True, dtype=np.float32), 2, axis=0)


def _channels(frame: AudioFrame) -> Sound:
    """[C, S] with full scale at 1."""
    samples: NDArray[Any] = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype == np.uint8:
        return (samples.astype(np.float32) - np.float32(128)) / np.float32(128)
    if samples.dtype.kind == "f":
        return np.where(np.isfinite(samples), samples, 0).astype(np.float32)
    return samples.astype(np.float32) / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
