"""The files of an LTX 2.3 pipeline folder: which there must be, whether they are whole, and their digests.

Everything here reads headers and samples, never whole weights: a folder of 100 GB is checked in a second.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltxtrain_trainer.errors import ModelUnavailable

SAMPLE_BYTES = 4096
SAMPLES_A_FILE = 256
HEADER_LIMIT = 100 << 20  # what the safetensors library itself accepts


@dataclass(frozen=True)
class Component:
    """A folder of the pipeline: its settings and, where it has weights, their file names without extension."""

    config: str
    weights: str | None


COMPONENTS = {
    "transformer": Component("config.json", "diffusion_pytorch_model"),
    "connectors": Component("config.json", "diffusion_pytorch_model"),
    "vae": Component("config.json", "diffusion_pytorch_model"),
    "audio_vae": Component("config.json", "diffusion_pytorch_model"),
    "vocoder": Component("config.json", "diffusion_pytorch_model"),
    "text_encoder": Component("config.json", "model"),
    "tokenizer": Component("tokenizer_config.json", None),
    "scheduler": Component("scheduler_config.json", None),
}
DIGESTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")


@contextmanager
def readable() -> Iterator[None]:
    """A block, or a decorated function, that reads a model. Raises ModelUnavailable for a file that is closed to us."""
    try:
        yield
    except PermissionError as error:
        raise ModelUnavailable(
            f"{error.filename} cannot be read by uid {os.geteuid()}. "
            "Give the model's folder to that user, or let everybody read it (chmod -R a+rX)."
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelUnavailable(f"The model has no {path.parent.name}/{path.name} (in {path.parent.parent}).") from error
    except ValueError as error:
        raise ModelUnavailable(f"{path} is not JSON: {error}. Fetch the model again.") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(f"{path} is not a JSON object. Fetch the model again.")
    return content


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors files of a component, each known to be as long as its header says. Raises ModelUnavailable."""
    stem = COMPONENTS[name].weights
    if stem is None:
        return []
    single = folder / name / f"{stem}.safetensors"
    index = folder / name / f"{stem}.safetensors.index.json"
    if index.is_file():
        files = [folder / name / file for file in sorted(set(read_json(index).get("weight_map", {}).values()))]
    else:
        files = [single]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ModelUnavailable(
            f"The model's component {name} lacks its weights: {', '.join(missing) or index.name} (in {folder / name})."
        )
    for file in files:
        tensor_sizes(file)
    return files


def tensor_sizes(file: Path) -> dict[str, int]:
    """Elements of each tensor of a safetensors file. Raises ModelUnavailable when the file is cut or none."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if not 2 <= header_bytes <= min(size - 8, HEADER_LIMIT):
            raise ModelUnavailable(f"{file} is not a safetensors file. Fetch the model again.")
        try:
            header = json.loads(stream.read(header_bytes))
        except ValueError as error:
            raise ModelUnavailable(f"{file} is not a safetensors file: {error}. Fetch the model again.") from error
    header.pop("__metadata__", None)
    end = 8 + header_bytes + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise ModelUnavailable(f"{file} has {size} bytes where its header says {end}. Fetch the model again.")
    sizes = {}
    for name, entry in header.items():
        count = 1
        for extent in entry["shape"]:
            count *= extent
        sizes[name] = count
    return sizes


def component_digest(folder: Path, name: str) -> str:
    """sha256 over a component's files; see file_digest for what of a large one."""
    files = {file for pattern in DIGESTED for file in (folder / name).glob(pattern)}
    return digest_of((file.name, file_digest(file)) for file in files)


def file_digest(file: Path) -> str:
    """sha256 over size, start and 256 samples of 4 KiB evenly through the file; a file up to 1 MiB is read whole.

    A training changes practically every weight, so samples tell two models of one shape apart; reading 40 GB would not
    be worth what it adds.
    """
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as stream:
        if size <= SAMPLE_BYTES * SAMPLES_A_FILE:
            digest.update(stream.read())
        else:
            header_bytes = int.from_bytes(stream.read(8), "little")
            digest.update(stream.read(min(header_bytes, HEADER_LIMIT)))
            for index in range(SAMPLES_A_FILE):
                stream.seek((size - SAMPLE_BYTES) * index // (SAMPLES_A_FILE - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def digest_of(parts: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(parts))
    return hashlib.sha256(lines.encode()).hexdigest()
