"""One memory plan for all workers and all starts of a job."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.common.meta_card import REAL
from ltxtrain_trainer.errors import CheckpointMismatch, DeviceMemoryExhausted, DeviceUnusable, ModelUnsupported
from ltxtrain_trainer.memory_plan import GIB, PUBLISHED
from ltxtrain_trainer.model.folder import resolve_model
from ltxtrain_trainer.model.team import Team
from ltxtrain_trainer.training.checkpoint import Checkpoint
from ltxtrain_trainer.training.distributed import Worker
from ltxtrain_trainer.training.fit import Fit, fit_to_device
from tests.trainer.test_job import make_plan

CARD = torch.device("cuda")
HOST_BYTES = 64 * GIB


class Folder:
    """A model folder of the published model's size."""

    reference = "the published model"

    def config(self, component: str) -> dict[str, Any]:
        assert component == "transformer"
        return {**REAL, "num_layers": 48}


class Least(Worker):
    """One of two workers, the other of which has a card of 15 GiB and as much host memory."""

    def least(self, value: int, device: torch.device) -> int:
        return value if value == HOST_BYTES else min(value, 15 * GIB)


class Teammate(Worker):
    """A worker whose others have as much memory as it has."""

    def least(self, value: int, device: torch.device) -> int:
        return value


def began_in(precision: str) -> Checkpoint:
    return Checkpoint(step=3, adapter={}, optimizer={}, fingerprint={"precision": precision})


@pytest.fixture
def fitted(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Fits the tests' small clips, with the published model, to a card of as many GiB."""
    plan = make_plan(tiny_model, tmp_path, previews=False)
    monkeypatch.setattr("ltxtrain_trainer.training.fit.host_free_bytes", lambda: HOST_BYTES)
    monkeypatch.setattr("ltxtrain_trainer.training.fit.is_available", lambda precision: True)

    def fit(card_gib: int, *, worker: Worker | None = None, resume: Checkpoint | None = None, **changes: Any) -> Fit:
        monkeypatch.setattr("ltxtrain_trainer.training.fit.free_bytes", lambda device: card_gib * GIB)
        folder: Any = Folder()
        return fit_to_device(dataclasses.replace(plan, **changes), folder, CARD, worker or Worker(), resume)

    return fit


def test_the_worker_with_the_least_memory_decides_for_all(fitted: Any) -> None:
    assert fitted(79).plan.streamed_blocks == 0
    assert fitted(79, worker=Least()).plan == fitted(15).plan and fitted(15).plan.streamed_blocks > 0


def test_workers_that_share_a_clip_have_its_activations_in_parts(fitted: Any) -> None:
    alone, shared = fitted(79).plan, fitted(79, worker=Teammate(0, 4, Team(0, 4))).plan
    assert shared.workers_per_clip == 4 and shared.weight_bytes == alone.weight_bytes
    assert shared.activation_bytes < alone.activation_bytes and "each clip shared by 4" in str(shared)
    with pytest.raises(ModelUnsupported, match="32 attention heads of the published model cannot be shared by 5"):
        fitted(79, worker=Teammate(0, 5, Team(0, 5)))


def test_compiled_blocks_are_not_streamed(fitted: Any, tiny_model: Path, tmp_path: Path) -> None:
    compiled = make_plan(tiny_model, tmp_path / "compiled", previews=False, compile_blocks=True).settings
    plan = fitted(23, settings=compiled).plan
    assert (plan.precision, plan.streamed_blocks) == ("int8", 0)


def test_a_job_goes_on_in_the_format_that_it_began_in(fitted: Any) -> None:
    assert fitted(79, resume=began_in("int8")).plan.precision == "int8"
    # On a smaller card it keeps its numbers, with more of them in host memory.
    small = fitted(10, resume=began_in("bf16")).plan
    assert small.precision == "bf16" and small.streamed_blocks > 0
    with pytest.raises(CheckpointMismatch, match="began with a base model in int8 and cannot go on in bf16"):
        fitted(79, resume=began_in("int8"), precision="bf16")


def test_after_a_full_card_as_many_blocks_are_streamed_as_was_said(fitted: Any) -> None:
    found = fitted(79)
    expected = pytest.raises(DeviceMemoryExhausted, match="for loading the base model; ")
    with expected as caught, found.memory_for("loading the base model"):
        raise torch.OutOfMemoryError("CUDA out of memory")
    following = caught.value.next_streamed_blocks
    assert following is not None and 0 < following <= PUBLISHED.layers
    again = fitted(79, streamed_blocks=following)
    assert (again.plan.precision, again.plan.streamed_blocks) == ("bf16", following)
    assert again.plan.total_bytes < found.plan.total_bytes


def test_a_model_of_billions_is_not_taken_to_a_cpu_unasked(tiny_model: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny_model, tmp_path, previews=False)
    folder: Any = Folder()
    with pytest.raises(DeviceUnusable, match="no GPU for a base model of 13 billion weights"):
        fit_to_device(plan, folder, torch.device("cpu"), Worker(), None)
    asked = dataclasses.replace(plan, precision="bf16")
    assert fit_to_device(asked, folder, torch.device("cpu"), Worker(), None).plan.precision == "bf16"


@pytest.mark.parametrize(("free_gib", "compiled", "kept"), [(8, False, 4), (1, False, 0), (8, True, 0)])
def test_a_cpu_computes_blocks_once_where_there_is_memory(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_gib: int, compiled: bool, kept: int
) -> None:
    plan = make_plan(tiny_model, tmp_path, previews=False, compile_blocks=compiled)
    monkeypatch.setattr("ltxtrain_trainer.training.fit.host_free_bytes", lambda: free_gib * GIB)
    fit = fit_to_device(plan, resolve_model(str(tiny_model)), torch.device("cpu"), Worker(), None)
    assert fit.plan.kept_blocks == kept and fit.reason == "there is no GPU"
