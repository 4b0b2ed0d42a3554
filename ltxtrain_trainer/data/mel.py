"""Waveform to log-mel spectrogram, the input of the audio VAE.

The parameters are those the model was trained with (Lightricks ltx-core, AudioProcessor): magnitudes of a centred
1024-point transform every 160 samples at 16 kHz, 64 mel bands from 0 to 8 kHz, Slaney's scale and area normalisation.
"""

import math

import torch
from torch import Tensor

SAMPLE_RATE = 16_000
FFT_SIZE = 1024
HOP = 160
MEL_BINS = 64
FLOOR = 1e-5


def log_mel(audio: Tensor) -> Tensor:
    """float32 [..., S] at 16 kHz -> [..., S // 160 + 1, 64], natural logarithm of at least 1e-5.

    S must exceed 512, half a transform: the edges are mirrored.
    """
    samples = audio.reshape(-1, audio.shape[-1]).float()
    spectrum = torch.stft(
        samples,
        FFT_SIZE,
        hop_length=HOP,
        window=torch.hann_window(FFT_SIZE, device=audio.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    mel = spectrum.abs().transpose(1, 2) @ mel_filterbank(FFT_SIZE).to(audio.device)
    return mel.clamp(min=FLOOR).log().reshape(*audio.shape[:-1], -1, MEL_BINS)


def mel_filterbank(fft_size: int) -> Tensor:
    """float32 [fft_size // 2 + 1, 64]: triangles on Slaney's mel scale, each of unit area in Hz.

    Slaney, Auditory Toolbox, 1998: linear below 1 kHz, logarithmic above.
    """
    frequencies = torch.linspace(0, SAMPLE_RATE / 2, fft_size // 2 + 1, dtype=torch.float64)
    top = _mel_of_hertz(SAMPLE_RATE / 2)
    corners = torch.tensor(
        [_hertz_of_mel(top * index / (MEL_BINS + 1)) for index in range(MEL_BINS + 2)], dtype=torch.float64
    )
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (frequencies[:, None] - low) / (centre - low)
    falling = (high - frequencies[:, None]) / (high - centre)
    triangles = torch.minimum(rising, falling).clamp(min=0)
    return (triangles * 2 / (high - low)).float()


_HERTZ_A_MEL = 200 / 3
_BREAK_HERTZ = 1000.0
_BREAK_MEL = _BREAK_HERTZ / _HERTZ_A_MEL
_LOG_STEP = math.log(6.4) / 27


def _mel_of_hertz(hertz: float) -> float:
    if hertz < _BREAK_HERTZ:
        return hertz / _HERTZ_A_MEL
    return _BREAK_MEL + math.log(hertz / _BREAK_HERTZ) / _LOG_STEP


def _hertz_of_mel(mel: float) -> float:
    if mel < _BREAK_MEL:
        return mel * _HERTZ_A_MEL
    return _BREAK_HERTZ * math.exp((mel - _BREAK_MEL) * _LOG_STEP)
