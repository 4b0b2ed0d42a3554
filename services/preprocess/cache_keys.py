"""Names of cached work: digests of everything that a result depends on, and of nothing else.

A result is a function of the clip's bytes, the settings that touch it, the code and libraries that made it, and, for
latents and embeddings, the model. Captions are not part of a clip's key: a better caption costs one prompt.
"""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable

from ltxtrain.v1.preprocess_pb2 import PreprocessSettings

# What decides how a clip is fitted, and what decides how it is encoded; libraries are named as installed.
FITTER = (("trainer.media", "trainer.geometry"), ("av", "numpy"))
ENCODER = (
    (
        "trainer.data.encode",
        "trainer.data.mel",
        "trainer.data.encoded",
        "trainer.model.loading",
        "trainer.model.single_file",
        "trainer.model.text_encoder",
    ),
    ("torch", "diffusers", "transformers"),
)


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
        _version(*FITTER),
    )


def prefix_key(clip_sha256: str, settings: PreprocessSettings) -> str:
    """The opening of a validation clip, fitted."""
    validation = settings.validation
    return _digest(
        "prefix",
        clip_sha256,
        [validation.width, validation.height, settings.conditioning_frames, validation.frame_rate],
        _audio(settings, stretched=False),
        _version(*FITTER),
    )


def file_key(fit: str, scene: int, file: str, model_revision: str = "") -> str:
    """One file made of a fitted scene: its latents, which depend on the model, or its pictures, which do not."""
    return _digest(file, fit, scene, model_revision, _version(*ENCODER) if model_revision else None)


def prompt_key(prompt: str, model_revision: str, numbers: str = "") -> str:
    """An embedding; numbers: the format of the text encoder where it is not the model's own (TextHold.numbers)."""
    return _digest("prompt", prompt, model_revision, _version(*ENCODER), *([numbers] if numbers else []))


def _audio(settings: PreprocessSettings, *, stretched: bool) -> list[bool] | None:
    if not settings.HasField("audio"):
        return None
    return [settings.audio.normalize, settings.audio.preserve_pitch and stretched]


@cache
def _version(modules: Sequence[str], libraries: Sequence[str]) -> str:
    """A digest of the code and the libraries, so that no cache outlives a change of either."""
    digest = hashlib.sha256()
    for module in modules:
        package, _, name = module.rpartition(".")
        folder = resources.files(package)
        file = folder / f"{name}.py"
        for source in [file] if file.is_file() else _sources(folder / name):
            digest.update(source.name.encode() + b"\0" + source.read_bytes())
    for library in libraries:
        digest.update(f"{library} {metadata.version(library)}\n".encode())
    return digest.hexdigest()


def _sources(folder: Traversable) -> list[Traversable]:
    return sorted((item for item in folder.iterdir() if item.name.endswith(".py")), key=lambda item: item.name)


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()
