"""Previews of several workers: each samples its share, and what comes out is what one worker makes."""

from pathlib import Path

import torch

from ltxtrain_trainer.job import run_job
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
