"""Previews of several workers: each samples its share, and what comes out is what one worker makes."""

from pathlib import Path
from typing import Any

import torch

from ltxtrain_trainer.job import run_job
from ltxtrain_trainer.model.transformer import VelocityModel
from ltxtrain_trainer.reports import Finished, Previewed, Previewing, Warned
from ltxtrain_trainer.training.distributed import join
from tests.trainer.test_job import make_plan
from tests.trainer.workers import free_address, run_workers


def work(rank: int, address: str, model: Path, folder: Path) -> None:
    plan = make_plan(model, folder / f"{rank}", batch_size=2)
    with join(rank, 2, address, torch.device("cpu")) as worker:
        reports = list(run_job(plan, device=torch.device("cpu"), worker=worker))
    made = {
        file.path.name: file.path.read_bytes()
        for report in reports
        if isinstance(report, Previewed | Finished)
        for file in report.files
    }
    kinds = [type(report).__name__ for report in reports if isinstance(report, Previewed | Previewing | Warned)]
    torch.save({"made": made, "kinds": kinds}, folder / f"result-{rank}")


def test_two_workers_make_the_previews_of_one(tiny_model: Path, tmp_path: Path) -> None:
    run_workers(work, 2, free_address(), tiny_model, tmp_path)
    first, second = (torch.load(tmp_path / f"result-{rank}") for rank in range(2))
    assert second["kinds"] == [], "the first worker speaks for all"
    assert first["kinds"].count("Previewed") == 2 and "Warned" not in first["kinds"]
    assert {"base-clip-1.mp4", "preview-000006-clip-1.mp4", "reel.mp4", "lora.safetensors"} <= set(first["made"])


def without_memory(rank: int, address: str, model: Path, folder: Path) -> None:
    """As `work`; the second worker's device is full whenever it samples."""
    real = VelocityModel.__call__

    def call(self: VelocityModel, *arguments: Any, **options: Any) -> Any:
        if rank == 1 and not torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return real(self, *arguments, **options)

    VelocityModel.__call__ = call  # type: ignore[method-assign] # in a process of its own
    plan = make_plan(model, folder / f"{rank}", batch_size=2)
    with join(rank, 2, address, torch.device("cpu")) as worker:
        reports = list(run_job(plan, device=torch.device("cpu"), worker=worker))
    (folder / f"warned-{rank}").write_text("\n".join(report.text for report in reports if isinstance(report, Warned)))


def test_any_workers_lack_of_memory_names_the_smaller_setting(tiny_model: Path, tmp_path: Path) -> None:
    run_workers(without_memory, 2, free_address(), tiny_model, tmp_path)
    warned = (tmp_path / "warned-0").read_text()
    assert "too little memory for sampling it; lower validation_resolution" in warned
    assert "OutOfMemoryError" not in warned and (tmp_path / "warned-1").read_text() == ""
