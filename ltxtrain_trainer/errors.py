"""Errors of models, clips and trainings.

TrainerError
├── ModelUnavailable       absent, incomplete or gated
├── ModelUnsupported       not LTX 2.3
├── PrecisionUnavailable   the format of the base model needs what is not here
├── DeviceMemoryExhausted  the device is full: loading, prompts, a clip, a step or a preview
├── DeviceUnusable         a GPU that torch cannot use, or a model that a CPU should not be given
├── ClipError
│   ├── Undecodable        no decoder can read it
│   │   └── ClipDamaged    too little lies before its damage
│   ├── PresentationUnsupported  colours or a layout that are not implemented
│   ├── StillImage         a picture under the name of a video
│   ├── NoVideoTrack       nothing but sound, subtitles or cover art
│   ├── AudioTrackMissing  sound was asked for and there is none
│   ├── AudioUndecodable   the audio track cannot be read
│   └── ClipTooShort       fewer frames than needed
├── SampleUnreadable       not an encoded clip or prompt of this version
├── PrefixCoversClip       nothing is left to generate
├── TrainingDiverged       the loss is not finite
├── OptimizerUnavailable   its library is not installed
├── SamplingFailed         a preview cannot be sampled
├── CheckpointMismatch     a checkpoint of another training
├── PeerLost               another worker of the same training does not answer
└── AuditFailed            the LoRA is not what was asked for
"""

from collections.abc import Mapping
from typing import Any


def _restore(kind: type["TrainerError"], arguments: tuple[Any, ...], state: Mapping[str, Any]) -> "TrainerError":
    error = kind.__new__(kind)
    error.args = arguments
    vars(error).update(state)
    return error


class TrainerError(Exception):
    """Base of every error of this package; its text is written for the user."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickled as it is: a subclass whose constructor takes more than a text crosses processes as itself.
        return _restore, (type(self), self.args, vars(self))


class ModelUnavailable(TrainerError):
    """The model, or a component of it, cannot be had: absent, incomplete or gated."""


class ModelUnsupported(TrainerError):
    """The model is not LTX 2.3."""


class PrecisionUnavailable(TrainerError):
    """The base model cannot be held in this number format here: a library or a device is missing."""


class DeviceMemoryExhausted(TrainerError):
    """The device has no memory for what was being done; the text says what, and which setting would need less.

    next_streamed_blocks: how many of the base's blocks to hold in host memory to go on with the same numbers, or None.
    """

    def __init__(self, text: str, *, next_streamed_blocks: int | None = None) -> None:
        super().__init__(text)
        self.next_streamed_blocks = next_streamed_blocks


class DeviceUnusable(TrainerError):
    """The machine's GPU cannot be used by the installed torch, or the model is too large for a CPU."""


class ClipError(TrainerError):
    """One clip cannot be used."""


class Undecodable(ClipError):
    """No decoder can read the file."""


class ClipDamaged(Undecodable):
    """Too few frames lie before the damage; the text says where it begins."""

    def __init__(self, text: str, *, frame_count: int, needed_frames: int) -> None:
        super().__init__(text)
        self.frame_count = frame_count
        self.needed_frames = needed_frames


class PresentationUnsupported(ClipError):
    """The pictures are shown in a way that is not implemented, such as Dolby Vision profile 5 or stereoscopy."""


class StillImage(ClipError):
    """The file is a picture under the name of a video."""


class NoVideoTrack(ClipError):
    """The file has no moving picture."""


class AudioTrackMissing(ClipError):
    """The clip has no audio track, and sound was asked for."""


class AudioUndecodable(ClipError):
    """The audio track cannot be read."""


class ClipTooShort(ClipError):
    """Fewer frames than needed."""

    def __init__(self, text: str, *, frame_count: int, needed_frames: int) -> None:
        super().__init__(text)
        self.frame_count = frame_count
        self.needed_frames = needed_frames


class SampleUnreadable(TrainerError):
    """The bytes are not an encoded clip or prompt, or of another version of the format."""


class PrefixCoversClip(TrainerError):
    """The conditioning frames cover the whole clip."""


class OptimizerUnavailable(TrainerError):
    """The optimizer asked for needs a library that is not installed."""


class TrainingDiverged(TrainerError):
    """The loss or the gradient is not finite; a lower learning rate helps, a retry does not."""

    def __init__(self, step: int) -> None:
        super().__init__(f"The loss is not finite at step {step}. Lower the learning rate; a retry does not help.")
        self.step = step


class SamplingFailed(TrainerError):
    """A preview cannot be sampled: guidance has no hold on the model, or the result is not finite."""


class CheckpointMismatch(TrainerError):
    """The checkpoint belongs to another training."""


class AuditFailed(TrainerError):
    """The LoRA did not pass its audit; `reason` is NON_FINITE, ZERO, FOREIGN_KEYS, NOT_LOADABLE or OUT_OF_BOUNDS."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class PeerLost(TrainerError):
    """Another worker of the same training does not answer any more; start all of them again from the checkpoint."""
