"""Names of cached work: digests of everything that a result depends on, and of nothing else.

A result is a function of the clip's bytes, the settings that touch it, the code and libraries that made it, and, for
latents and embeddings, the model. Captions are not part of a clip's key: a better caption costs one prompt.
"""

import hashlib
import json

from ltxtrain.v1.preprocess_pb2 import PreprocessSettings

from ltxtrain_services.runtime.code_version import code_version

# Entry points of the code that decides, with the libraries whose versions do.
FITTER = ("ltxtrain_services.preprocess.fitting", ("av", "numpy"))
ENCODER = ("ltxtrain_trainer.data.encode", ("torch", "diffusers", "transformers"))
SHEET = ("ltxtrain_services.pages.contact_sheet", ("numpy", "pillow"))


def read_versions() -> None:
    """Read the code that keys depend on: before a service serves, for that takes some hundred milliseconds."""
    for made in (FITTER, ENCODER, SHEET):
        code_version(*made)


def fit_key(clip_sha256: str, settings: PreprocessSettings, *, split: bool) -> str:
    """A training clip fitted: its scenes and what became of each."""
    training = settings.training
    return _digest(
        "fit",
        clip_sha256,
        [training.width, training.height, training.frame_count],
        # The target rate changes nothing unless clips are resampled to it.
        training.frame_rate if settings.auto_scale_input else None,
        split,
        _audio(settings, stretched=settings.auto_scale_input),
        code_version(*FITTER),
    )


def prefix_key(clip_sha256: str, settings: PreprocessSettings) -> str:
    """The opening of a validation clip, fitted."""
    validation = settings.validation
    return _digest(
        "prefix",
        clip_sha256,
        [validation.width, validation.height, settings.conditioning_frames, validation.frame_rate],
        _audio(settings, stretched=False),
        code_version(*FITTER),
    )


def latents_key(fit: str, scene: int, model_revision: str) -> str:
    """The latents of a fitted scene."""
    return _digest("latents", fit, scene, model_revision, code_version(*ENCODER))


def lossless_key(fit: str, scene: int, file: str) -> str:
    """A fitted scene as a lossless clip; `file` distinguishes its uses."""
    return _digest(file, fit, scene)


def sheet_key(fit: str, scene: int, conditioning_frames: int) -> str:
    """A fitted scene on the contact sheet, which shows the frames on both sides of the end of the prefix."""
    return _digest("sheet", fit, scene, conditioning_frames, code_version(*SHEET))


def prompt_key(prompt: str, model_revision: str, numbers: str = "") -> str:
    """An embedding; numbers: the format of the text encoder where it is not the model's own (TextHold.numbers)."""
    return _digest("prompt", prompt, model_revision, code_version(*ENCODER), *([numbers] if numbers else []))


def _audio(settings: PreprocessSettings, *, stretched: bool) -> list[bool] | None:
    if not settings.HasField("audio"):
        return None
    return [settings.audio.normalize, settings.audio.preserve_pitch and stretched]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
