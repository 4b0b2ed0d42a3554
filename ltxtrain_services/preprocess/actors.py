"""Ray actors that fit and encode. Thin around `trainer`: fetch a clip, do one thing, store what was made.

What goes from a fitter to an encoder stays in Ray's object store and never passes through the service.
"""

import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

import ray

from ltxtrain_services.preprocess.outcome import SAFETENSORS, SERVICE, FitTask, SampleFile, SceneOutcome
from ltxtrain_services.runtime.cluster import gpu_assigned
from ltxtrain_services.runtime.disk import scratch_folder
from ltxtrain_services.runtime.objects import Objects, StoreAddress, StoredBlob
from ltxtrain_services.runtime.process_limits import limits
from ltxtrain_services.runtime.telemetry import resumed_trace

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ltxtrain_trainer.data.encode import ClipEncoder, PromptEncoder
    from ltxtrain_trainer.data.encoded import EncodedClip

# The service ends a fitter that takes too long; this alarm is for one whose service is gone.
ALARM_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class FitOrder:
    """A clip to fit, and what to make of each scene."""

    task: FitTask
    wanted_files: frozenset[SampleFile]
    # Frames that training keeps as prefix.
    conditioning_frames: int


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """The outcome of one scene, and the files that were made of it."""

    scene: SceneOutcome
    stored: dict[SampleFile, StoredBlob] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FittedScene:
    """A fitted scene that waits for an encoder: frames [T, H, W, 3], audio [2, S] at 16 kHz."""

    frames: "NDArray[np.uint8]"
    audio: "NDArray[np.float32] | None"
    frame_rate: float


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """A model as its actors load it."""

    reference: str
    revision: str
    with_audio: bool

    @property
    def components(self) -> tuple[str, ...]:
        shared = ("text_encoder", "tokenizer", "connectors", "vae")
        return (*shared, "audio_vae") if self.with_audio else shared


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """An embedded prompt."""

    stored: StoredBlob
    tokens: int
    truncated: bool
    numbers: str  # see prompt_key


class Phase(StrEnum):
    """The present task of an encoder: the text encoder and the VAEs are never in memory together."""

    PROMPTS = "prompts"
    CLIPS = "clips"


@ray.remote(num_cpus=1, max_restarts=0)
class ClipFitter:
    """Fits one clip after another, with one thread."""

    def __init__(self, store: StoreAddress, seconds: float, memory_bytes: int, trace: Mapping[str, str]) -> None:
        self._objects = Objects(store)
        self._seconds = seconds
        self._memory_bytes = memory_bytes
        self._trace = trace
        # Decoders are loaded here: not by the service, which imports this module, nor within the limits of a clip.
        import numpy as np

        from ltxtrain_services.preprocess.fitting import fit
        from ltxtrain_services.preprocess.sample_files import store_lossless, store_sheet

        self._fit, self._store_lossless, self._store_sheet = fit, store_lossless, store_sheet
        # OpenBLAS takes its buffers at the first product, and ends the process when a clip's limit forbids it.
        np.ones((64, 64)) @ np.ones((64, 64))

    def fit(self, order: FitOrder) -> Iterator[FittedScene | Fitted | None]:
        """Yield for each scene its frames, or None where they are not to be encoded, and then its outcome."""
        with resumed_trace(self._trace, "fit"), scratch_folder("fit") as folder:
            path = folder / "clip"
            self._objects.get_file(order.task.key, path, sha256=order.task.sha256)
            scenes = self._fit(path, order.task)
            while True:
                with limits(self._seconds + ALARM_SECONDS, self._memory_bytes):
                    scene, fitted = next(scenes, (None, None))
                if scene is None:
                    return
                if fitted is None:
                    yield None
                    yield Fitted(scene=scene)
                    continue
                stored = {}
                for file in sorted(order.wanted_files - {SampleFile.LATENTS}):
                    stored[file] = (
                        self._store_sheet(self._objects, fitted, order.conditioning_frames)
                        if file is SampleFile.SHEET
                        else self._store_lossless(self._objects, fitted, folder)
                    )
                encoded = SampleFile.LATENTS in order.wanted_files
                yield (
                    FittedScene(frames=fitted.frames, audio=fitted.audio, frame_rate=fitted.frame_rate)
                    if encoded
                    else None
                )
                del fitted
                yield Fitted(scene=scene, stored=stored)


@ray.remote(max_restarts=0)
class Encoder:
    """Holds a model for as long as a training set is made: first what embeds prompts, then what encodes clips."""

    def __init__(self, store: StoreAddress, source: ModelSource, threads: int, trace: Mapping[str, str]) -> None:
        self._objects = Objects(store)
        self._source = source
        self._threads = threads
        self._trace = trace
        self._prompts: PromptEncoder | None = None
        self._clips: ClipEncoder | None = None

    def turn_to(self, phase: Phase) -> None:
        """Load what a phase needs in place of what is held. Raises ModelUnavailable and ModelUnsupported."""
        import torch

        from ltxtrain_trainer.data.encode import ClipEncoder, PromptEncoder
        from ltxtrain_trainer.model.device import device_of
        from ltxtrain_trainer.model.folder import resolve_model

        torch.set_num_threads(self._threads)
        self._free()
        self._folder = resolve_model(self._source.reference, self._source.revision, self._source.components)
        self._device = device_of(gpu_expected=gpu_assigned())
        if phase is Phase.PROMPTS:
            self._prompts = PromptEncoder(self._folder, self._device)
        else:
            self._clips = ClipEncoder(self._folder, self._device, with_audio=self._source.with_audio)

    def embed(self, prompt: str) -> Embedded:
        """The embedding of a prompt, in the store."""
        from ltxtrain_trainer.data.encoded import dump_prompt

        assert self._prompts is not None
        with resumed_trace(self._trace, "embed"):
            (embedding,) = self._prompts.encode([prompt])
            stored = self._objects.put_content(SERVICE, dump_prompt(embedding), SAFETENSORS)
        return Embedded(
            stored=stored,
            tokens=embedding.token_count,
            truncated=embedding.truncated,
            numbers=self._prompts.hold.numbers,
        )

    def encode(self, picture: FittedScene) -> StoredBlob:
        """Latents of a fitted clip, in the store. Raises DeviceMemoryExhausted."""
        from ltxtrain_trainer.data.encoded import dump_clip

        with resumed_trace(self._trace, "encode"):
            return self._objects.put_content(SERVICE, dump_clip(self._encoded(picture)), SAFETENSORS)

    def _encoded(self, picture: FittedScene) -> "EncodedClip":
        """Latents, in tiles when the device has no memory for the whole."""
        from ltxtrain_trainer.errors import DeviceMemoryExhausted

        assert self._clips is not None
        while True:
            try:
                return self._clips.encode(picture.frames, picture.frame_rate, picture.audio)
            except DeviceMemoryExhausted as error:
                if self._clips.tiling:
                    raise error from None
                self._clips.use_tiling()
            # Not in the handler: until it is left, the error holds what had been computed.
            give_back_memory()

    def _free(self) -> None:
        """Give back the memory of what is held."""
        self._prompts = self._clips = None
        give_back_memory()


def give_back_memory() -> None:
    """Return unreferenced memory to the device."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
