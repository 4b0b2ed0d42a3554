"""Slow sound down, at its own pitch or at the pitch of a slower tape."""

import numpy as np
from numpy.typing import NDArray

from ltxtrain_trainer.media.audio import fit_length, resample
from ltxtrain_trainer.media.downmix import Sound

Positions = NDArray[np.float64]

# Overlapping windows of 32 ms hold two periods of the lowest voice; one is laid down every 16 ms.
WINDOW = 512
HOP = WINDOW // 2
# A window may come from this much earlier or later than its time, to continue the wave before it (10 ms).
TOLERANCE = 160
# Sound this near to an onset keeps its speed and place, so that a click is heard once, and when it happens.
GUARD = WINDOW // 2 + TOLERANCE
ONSET_HOP = 32
ONSET_RISE = 8.0
# Onsets this far below the loudest one do not count (-50 dB).
ONSET_FLOOR = 1e-5


def stretch(sound: Sound, length: int, *, preserve_pitch: bool) -> Sound:
    """Stretch sound [2, S] to [2, length]; what happens at s is heard at s * length / S."""
    if sound.shape[1] == length:
        return sound
    if sound.shape[1] == 0:
        return fit_length(sound, length)
    if preserve_pitch:
        return _overlap_similar_waves(sound, length)
    # Rates are integers: any pair with the right ratio will do.
    return fit_length(resample(sound, sound.shape[1] * 16, length * 16), length)


def _overlap_similar_waves(sound: Sound, length: int) -> Sound:
    """WSOLA (Verhelst and Roelands, 1993) along a time map that is straight around onsets.

    Windows are taken from where the map says, moved by at most TOLERANCE to where the wave looks most like the natural
    continuation of what was laid down last. Around onsets the map runs at normal speed and nothing is moved: there the
    input is copied, and the time that this saves is made up between onsets.
    """
    size = sound.shape[1]
    onsets = find_onsets(sound)
    outer = np.array([-GUARD, GUARD], np.float64)
    inputs, outputs = [0.0], [0.0]
    for onset in onsets:
        moved = onset * length / size
        for place in outer:
            if onset + place > inputs[-1] and moved + place > outputs[-1] and onset + place < size:
                inputs.append(onset + place)
                outputs.append(moved + place)
    inputs.append(float(size))
    outputs.append(float(length))

    count = length // HOP + 2
    centres = np.arange(count) * HOP
    places = np.rint(np.interp(centres, outputs, inputs)).astype(int)
    copied = _near(centres, [onset * length / size for onset in onsets])
    pad = WINDOW + TOLERANCE
    padded = np.pad(sound, ((0, 0), (pad, pad + WINDOW)))
    window = np.hanning(WINDOW + 1)[:-1].astype(np.float32)
    result = np.zeros((2, count * HOP + WINDOW), np.float32)
    natural = None
    for index in range(count):
        start = min(int(places[index]), size) - HOP + pad
        if natural is not None and not copied[index]:
            start = _most_similar(padded, start, min(natural, padded.shape[1] - WINDOW))
        result[:, index * HOP : index * HOP + WINDOW] += padded[:, start : start + WINDOW] * window
        natural = start + HOP
    return np.ascontiguousarray(result[:, HOP : HOP + length])


def _most_similar(padded: Sound, start: int, natural: int) -> int:
    """Return where within TOLERANCE of start the sound resembles that at natural most."""
    low, high = max(start - TOLERANCE, 0), min(start + TOLERANCE, padded.shape[1] - WINDOW)
    if low <= natural <= high:
        return natural
    wanted = padded[:, natural : natural + WINDOW]
    around = padded[:, low : high + WINDOW]
    likeness = sum(np.correlate(around[channel], wanted[channel], "valid") for channel in (0, 1))
    energy = np.concatenate([[0.0], np.cumsum(np.square(around, dtype=np.float64).sum(axis=0))])
    return low + int(np.argmax(likeness / np.sqrt(energy[WINDOW:] - energy[:-WINDOW] + 1e-9)))


def _near(centres: NDArray[np.int64], onsets: list[float]) -> NDArray[np.bool_]:
    near = np.zeros(len(centres), bool)
    for onset in onsets:
        near |= np.abs(centres - onset) <= GUARD
    return near


def find_onsets(sound: Sound) -> list[int]:
    """Find samples at which something begins suddenly: clicks, drums, consonants; at least two guards apart."""
    # A difference emphasises high frequencies, which every sudden beginning has.
    power = np.square(np.diff(sound, prepend=sound[:, :1], axis=1), dtype=np.float64).sum(axis=0)
    count = len(power) // ONSET_HOP
    if count < 2 * GUARD // ONSET_HOP:
        return []
    steps = power[: count * ONSET_HOP].reshape(count, ONSET_HOP).sum(axis=1)
    history = 10
    before = np.convolve(np.pad(steps, (history, 0), mode="edge"), np.full(history, 1 / history), "valid")[:count]
    floor = max(float(steps.max()) * ONSET_FLOOR, 1e-12)
    rise = (steps + floor) / (before + floor)
    onsets: list[int] = []
    for step in np.argsort(-rise):
        if rise[step] < ONSET_RISE:
            break
        place = int(step) * ONSET_HOP + ONSET_HOP // 2
        if all(abs(place - other) > 2 * GUARD + HOP for other in onsets):
            onsets.append(place)
    return sorted(onsets)
