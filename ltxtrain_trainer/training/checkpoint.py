"""A training at the end of a step, as one safetensors file: adapter, optimizer, step, and which training it was."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ltxtrain_trainer.errors import CheckpointMismatch
from ltxtrain_trainer.training.settings import TrainSettings

FORMAT = "1"
METADATA_KEY = "ltxtrain"


@dataclass(frozen=True)
class Checkpoint:
    """adapter: float32 by name; optimizer: its state as plain tensors; fingerprint: what the training was, by name.

    One made by a running training holds its live tensors: write it before the training goes on, or take a snapshot.
    """

    step: int
    adapter: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    fingerprint: dict[str, str]

    def snapshot(self) -> "Checkpoint":
        """The same in host memory, which the training does not touch."""
        return replace(
            self,
            adapter={name: _in_host(tensor) for name, tensor in self.adapter.items()},
            optimizer={name: _in_host(tensor) for name, tensor in self.optimizer.items()},
        )


def _in_host(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def fingerprint(settings: TrainSettings, identity: Mapping[str, str]) -> dict[str, str]:
    """All that must be equal for a checkpoint to be continued: settings, and the caller's names of model and data."""
    fields = {name: str(value) for name, value in settings.computed_with().items()}
    return {"format": FORMAT, **fields, **identity}


def require_same(found: Mapping[str, str], expected: Mapping[str, str]) -> None:
    """Raises CheckpointMismatch with every difference.

    Under a constant schedule no step's numbers depend on how many there are to be: such a training may be given more.
    """
    found, expected = dict(found), dict(expected)
    if found.get("schedule") == expected.get("schedule") == "constant":
        for names in (found, expected):
            names.pop("steps", None)
    differences = [
        f"{name} is {found.get(name, 'absent')} in the checkpoint and {expected.get(name, 'absent')} here"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if len(differences) > 1:
        # The adapter's names and shapes follow from the settings, and are told where those do not explain them.
        differences = [difference for difference in differences if not difference.startswith("adapter ")]
    if differences:
        raise CheckpointMismatch(f"The checkpoint belongs to another training: {'; '.join(differences)}.")


def write_checkpoint(checkpoint: Checkpoint, path: Path) -> None:
    """Writes the file; equal checkpoints have equal bytes."""
    head = {"step": checkpoint.step, "fingerprint": checkpoint.fingerprint}
    tensors = {f"adapter/{name}": tensor for name, tensor in checkpoint.adapter.items()}
    tensors |= {f"optimizer/{name}": tensor for name, tensor in checkpoint.optimizer.items()}
    # One entry: the order of several is not defined.
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(head, sort_keys=True)})


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint, on the CPU. Raises CheckpointMismatch when the file is none."""
    try:
        with safe_open(path, framework="pt") as file:
            head = json.loads((file.metadata() or {})[METADATA_KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointMismatch(f"{path.name} is not a checkpoint of a training: {error}") from error
    return Checkpoint(
        step=head["step"],
        adapter=_under("adapter/", tensors),
        optimizer=_under("optimizer/", tensors),
        fingerprint=head["fingerprint"],
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
