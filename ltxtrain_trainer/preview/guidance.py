"""Guidance: the predictions of one sampling step combined, by text, skipped attention and the other modality.

All of it happens on predictions of the clean sample ("x0"), not on velocities.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Strengths for one modality: 1 is none for text and modality, 0 is none for skip and rescale."""

    text: float
    skip: float
    modality: float = 3.0
    rescale: float = 0.7


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Clean samples [B, T, C] predicted from one noisy sample; None where that pass was not run."""

    prompt: Tensor
    negative: Tensor  # with the negative prompt instead
    skipped: Tensor | None  # self-attention of one block skipped
    isolated: Tensor | None  # no attention between video and audio


def guide(predictions: Predictions, guidance: Guidance) -> Tensor:
    """g = c + (text - 1)(c - n) + skip (c - s) + (modality - 1)(c - i), rescaled towards c's spread; [B, T, C].

    Classifier-free guidance (Ho and Salimans, arXiv 2207.12598), spatio-temporal skip guidance (Hyung et al.,
    arXiv 2411.18664) and LTX-2's modality guidance (arXiv 2601.03233), each as a difference from c.
    """
    prompted = predictions.prompt
    guided = prompted + (guidance.text - 1) * (prompted - predictions.negative)
    if predictions.skipped is not None:
        guided = guided + guidance.skip * (prompted - predictions.skipped)
    if predictions.isolated is not None:
        guided = guided + (guidance.modality - 1) * (prompted - predictions.isolated)
    return rescale(guided, prompted, guidance.rescale)


def rescale(guided: Tensor, reference: Tensor, share: float) -> Tensor:
    """A share of `guided` replaced by `guided` with the reference's deviation over tokens and channels.

    Guidance spreads values, which shows as over-exposed pictures (Lin et al., arXiv 2305.08891).
    """
    spread = guided.std(dim=(1, 2), keepdim=True)
    return guided * (share * reference.std(dim=(1, 2), keepdim=True) / spread + 1 - share)
