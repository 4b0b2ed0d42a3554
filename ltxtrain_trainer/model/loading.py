"""The components of an LTX 2.3, each straight onto its device in its number format, frozen and ready to call.

Weights go from the mapped file to the device one tensor at a time; no component is ever whole in host memory on its
way to a GPU.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ltxtrain_trainer.errors import ModelUnavailable
from ltxtrain_trainer.model.files import weight_files
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.model.precision import Precision, quantization_config
from ltxtrain_trainer.model.single_file import ORIGINAL_COMPONENTS, diffusers_name
from ltxtrain_trainer.model.streaming import BlockStream, spread

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLLTX2Audio,
        AutoencoderKLLTX2Video,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ltx2 import LTX2TextConnectors, LTX2VocoderWithBWE
    from transformers import PreTrainedTokenizerBase


@contextmanager
def no_progress_bars() -> Iterator[None]:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()


def hush_imports() -> None:
    """Silence warnings of kernels that are not needed here; call it before diffusers is imported."""
    torchao = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
    for name in (*torchao, "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).setLevel(logging.ERROR)


Model = TypeVar("Model", bound=nn.Module)
Device = torch.device | str


@dataclass(frozen=True)
class LoadReport:
    component: str
    seconds: float
    size_bytes: int  # of all weights and tables, as they are held


# Of the models that were loaded here and still live.
_REPORTS: WeakKeyDictionary[nn.Module, LoadReport] = WeakKeyDictionary()
_STREAMS: WeakKeyDictionary[nn.Module, BlockStream] = WeakKeyDictionary()


def load_report(model: nn.Module) -> LoadReport:
    """Duration and size of the loading of a model of this module."""
    return _REPORTS[model]


def compute_dtype(device: Device) -> torch.dtype:
    """Number format of encoders and decoders: bfloat16, and float32 on a CPU, where bfloat16 is slower."""
    return torch.float32 if torch.device(device).type == "cpu" else torch.bfloat16


def load_transformer(
    folder: ModelFolder, device: Device, precision: Precision, *, video_only: bool = False, streamed_blocks: int = 0
) -> Any:
    """An LTX2VideoTransformer3DModel or, for video alone, the VideoTransformer.

    streamed_blocks: how many of its blocks stay in host memory (see .streaming). Raises PrecisionUnavailable where the
    format needs what is not installed here.
    """
    loading = loading_transformer(folder, device, precision, video_only=video_only, streamed_blocks=streamed_blocks)
    while True:
        try:
            next(loading)
        except StopIteration as done:
            return done.value


def loading_transformer(
    folder: ModelFolder, device: Device, precision: Precision, *, video_only: bool = False, streamed_blocks: int = 0
) -> Generator[tuple[int, int], None, Any]:
    """load_transformer, a block at a time: bytes of the files that are done and all of them, and at last the model."""
    from diffusers import LTX2VideoTransformer3DModel

    from ltxtrain_trainer.model.video_half import VideoTransformer

    start = time.monotonic()
    model = _empty(VideoTransformer if video_only else LTX2VideoTransformer3DModel, folder, "transformer")
    with stored_weights(folder, "transformer") as stored:
        _expect(model, stored, video_only)
        quantizer = _quantizer(model, quantization_config(precision))
        stream = BlockStream(torch.device(device)) if streamed_blocks else None
        in_host = set(spread(streamed_blocks, len(model.transformer_blocks)))
        done, whole = 0, sum(stored[name].nbytes for name in model.state_dict())
        for block, names in _by_block(model.state_dict()):
            # A block at a time, so that a device never holds more than one of those that do not stay.
            tensors = {name: stored[name] for name in names}
            _fill(model, tensors, device, precision.dtype, quantizer)
            if stream is not None and block in in_host:
                stream.take(block, model.transformer_blocks[block])
            done += sum(tensor.nbytes for tensor in tensors.values())
            yield done, whole
    if quantizer:
        quantizer.postprocess_model(model)
    loaded: Any = frozen(model, "transformer", start, in_host_bytes=stream.host_bytes if stream else 0)
    if stream is not None:
        attach_stream(loaded, stream)
    return loaded


def attach_stream(model: Any, stream: BlockStream) -> None:
    """Have those of a transformer's blocks that a stream took come through it."""
    stream.attach(model.transformer_blocks)
    _STREAMS[model] = stream


def block_stream(model: nn.Module) -> BlockStream | None:
    """The streamer of a transformer's blocks; None for one that is held whole."""
    return _STREAMS.get(model)


def _by_block(names: Iterable[str]) -> list[tuple[int | None, list[str]]]:
    """Names of weights by the block that they are in; None for those around the blocks."""
    groups: dict[int | None, list[str]] = {}
    for name in names:
        first, _, rest = name.partition(".")
        groups.setdefault(int(rest.partition(".")[0]) if first == "transformer_blocks" else None, []).append(name)
    return list(groups.items())


def load_connectors(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "LTX2TextConnectors":
    from diffusers.pipelines.ltx2 import LTX2TextConnectors

    if folder.original is None:
        return _load(LTX2TextConnectors, folder, "connectors", device, dtype)
    # from_single_file does not know 2.3.
    start = time.monotonic()
    model: LTX2TextConnectors = _empty(LTX2TextConnectors, folder, "connectors")
    with stored_weights(folder, "connectors") as stored:
        _expect(model, stored)
        _fill(model, stored, device, dtype)
    return frozen(model.to(device), "connectors", start)


def load_video_vae(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "AutoencoderKLLTX2Video":
    from diffusers import AutoencoderKLLTX2Video

    return _load(AutoencoderKLLTX2Video, folder, "vae", device, dtype)


def load_audio_vae(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "AutoencoderKLLTX2Audio":
    from diffusers import AutoencoderKLLTX2Audio

    return _load(AutoencoderKLLTX2Audio, folder, "audio_vae", device, dtype)


def load_vocoder(folder: ModelFolder, device: Device, dtype: torch.dtype) -> "LTX2VocoderWithBWE":
    from diffusers.pipelines.ltx2 import LTX2VocoderWithBWE

    return _load(LTX2VocoderWithBWE, folder, "vocoder", device, dtype)


def load_tokenizer(folder: ModelFolder) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder.path / "tokenizer", local_files_only=True)


def load_scheduler(folder: ModelFolder) -> "FlowMatchEulerDiscreteScheduler":
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder.path / "scheduler", local_files_only=True)


def _load(
    model_class: type[Model],
    folder: ModelFolder,
    component: str,
    device: Device,
    dtype: torch.dtype,
) -> Model:
    start = time.monotonic()
    target = torch.device(device)
    loader: Any = model_class
    with no_progress_bars():
        loaded: tuple[Model, dict[str, Any]] = loader.from_pretrained(
            folder.path / component,
            torch_dtype=dtype,
            # On a CPU the default already maps the file; a device map would only add dispatching.
            device_map=None if target.type == "cpu" else {"": target},
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    model, notes = loaded
    if missing := sorted(notes["missing_keys"]):
        raise ModelUnavailable(missing_text(missing, folder.path / component))
    return frozen(model, component, start)


@dataclass(frozen=True)
class Weights(Mapping[str, Tensor]):
    """Tensors of a component by their names in diffusers, each backed by its file until it is copied."""

    where: Path
    strict: bool  # whether every tensor has to have its place
    read: Mapping[str, Callable[[], Tensor]]

    def __getitem__(self, name: str) -> Tensor:
        return self.read[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self.read)

    def __len__(self) -> int:
        return len(self.read)


@contextmanager
def stored_weights(folder: ModelFolder, component: str) -> Iterator[Weights]:
    """The weights of a component where they are: its safetensors files, or its part of the single file."""
    from safetensors import safe_open

    with ExitStack() as files:
        read: dict[str, Callable[[], Tensor]] = {}
        single = folder.original is not None and component in ORIGINAL_COMPONENTS
        for path in [folder.original] if single else weight_files(folder.path, component):
            file = files.enter_context(safe_open(path, framework="pt"))
            for stored in file.keys():  # noqa: SIM118 - a safe_open is no mapping
                if not single:
                    read[stored] = partial(file.get_tensor, stored)
                elif (mapped := diffusers_name(stored)) and mapped[0] == component:
                    read[mapped[1]] = partial(file.get_tensor, stored)
        yield Weights(folder.original if single and folder.original else folder.path / component, single, read)


def _empty(model_class: Any, folder: ModelFolder, component: str) -> Any:
    """The model without memory for its weights."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return model_class.from_config(folder.config(component))


def _quantizer(model: nn.Module, config: Any) -> Any:
    from diffusers.quantizers import DiffusersAutoQuantizer

    if config is None:
        return None
    quantizer = DiffusersAutoQuantizer.from_config(config, pre_quantized=False)
    quantizer.preprocess_model(model=model, device_map=None, keep_in_fp32_modules=[])
    return quantizer


def _fill(
    model: nn.Module, tensors: Mapping[str, Tensor], device: Device, dtype: torch.dtype, quantizer: Any = None
) -> None:
    from diffusers.models.model_loading_utils import load_model_dict_into_meta

    load_model_dict_into_meta(
        model, tensors, dtype=dtype, device_map={"": torch.device(device)}, hf_quantizer=quantizer, unexpected_keys=[]
    )


def _expect(model: nn.Module, stored: Weights, video_only: bool = False) -> None:
    """Raises ModelUnavailable unless the weights are those of the model."""
    from ltxtrain_trainer.model.video_half import is_audio

    expected = model.state_dict()
    if missing := sorted(expected.keys() - stored.keys()):
        raise ModelUnavailable(missing_text(missing, stored.where))
    foreign = sorted(stored.keys() - expected.keys())
    if video_only:
        foreign = [name for name in foreign if not is_audio(name)]
    if foreign and stored.strict:
        raise ModelUnavailable(f"{stored.where} has {len(foreign)} weights that LTX 2.3 has not, first {foreign[0]}.")
    for name, empty in expected.items():
        if (shape := stored[name].shape) != empty.shape:
            raise ModelUnavailable(
                f"{stored.where} has {name} of shape {list(shape)} "
                f"where the settings beside it say {list(empty.shape)}."
            )


def missing_text(missing: list[str], where: Path) -> str:
    """The error's text for weights that the files lack."""
    return f"{where} lacks {len(missing)} weights of LTX 2.3, first {missing[0]}. Fetch the model again."


def frozen(model: Model, component: str, start: float, in_host_bytes: int = 0) -> Model:
    """The model ready to call and nothing to train, with the report of its loading."""
    model.eval().requires_grad_(False)
    size_bytes = in_host_bytes + sum(_held_bytes(tensor) for tensor in (*model.parameters(), *model.buffers()))
    _REPORTS[model] = LoadReport(component, time.monotonic() - start, size_bytes)
    return model


def _held_bytes(tensor: Any) -> int:
    """A quantized tensor gives itself out as the bfloat16 it stands for; its parts do not."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return int(tensor.nbytes)
    return sum(_held_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
