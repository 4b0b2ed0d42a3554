import math

import pytest
import torch

from ltxtrain_trainer.data.mel import log_mel, mel_filterbank

SAMPLES = 59_333


@pytest.fixture(scope="module")
def mel() -> torch.Tensor:
    # In float32, as the reference made it: the rounding of the phase is the noise that sets the mean.
    seconds = torch.arange(SAMPLES) / 16_000
    left = 0.5 * torch.sin(2 * math.pi * 440 * seconds)
    right = 0.3 * torch.sin(2 * math.pi * 1000 * seconds)
    return log_mel(torch.stack([left, right])[None])


def test_spectrogram_equals_the_reference(mel: torch.Tensor) -> None:
    assert mel.shape == (1, 2, 371, 64)
    assert mel.mean().item() == pytest.approx(-9.379067, abs=1e-3)
    assert mel.std().item() == pytest.approx(2.375670, abs=1e-3)


def test_each_tone_is_loudest_in_its_band(mel: torch.Tensor) -> None:
    left, right = mel[0, :, 100]
    assert (left.argmax().item(), left.max().item()) == (8, pytest.approx(1.085760, abs=1e-5))
    assert (right.argmax().item(), right.max().item()) == (21, pytest.approx(0.530267, abs=1e-5))
    assert right[1].item() == pytest.approx(math.log(1e-5), abs=1e-6)


def test_filterbank_equals_the_reference() -> None:
    bank = mel_filterbank(1024)
    assert bank.shape == (513, 64)
    assert bank.sum().item() == pytest.approx(4.095880, abs=1e-5)
    assert bank.max().item() == pytest.approx(0.0213312, abs=1e-7)


def test_silence_is_the_floor() -> None:
    assert torch.equal(log_mel(torch.zeros(2, 1600)), torch.full((2, 11, 64), math.log(1e-5)))
