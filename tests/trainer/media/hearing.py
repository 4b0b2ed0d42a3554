"""Clips as they are heard after fitting, for tests of sound."""

from pathlib import Path

import numpy as np

from ltxtrain_trainer.geometry import Geometry
from ltxtrain_trainer.media.fit import FittedClip, fit_clip
from ltxtrain_trainer.media.frame_schedule import FitSettings
from tests.clips import (
    Waves,
)
from tests.sounds import RATE

SIZE = (64, 48)
# Seconds by which a click may be off.
PLAIN = 0.002


def fit(
    path: Path, frames: int, *, rate: float = 24, auto_scale: bool = False, pitch: bool = True, normalize: bool = False
) -> FittedClip:
    geometry = Geometry(width=32, height=32, frame_count=frames, frame_rate=rate)
    settings = FitSettings(
        geometry=geometry, auto_scale=auto_scale, with_audio=True, normalize_audio=normalize, preserve_pitch=pitch
    )
    return fit_clip(path, settings)


def sound_of(clip: FittedClip) -> Waves:
    assert clip.audio is not None
    assert clip.audio.shape == (2, round(len(clip.frames) / clip.frame_rate * RATE))
    assert clip.audio.dtype == np.float32
    return clip.audio
