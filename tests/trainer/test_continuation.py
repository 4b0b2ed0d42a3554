"""Clips continued with the LoRA of a job, beside what the job itself made of them."""

import dataclasses
import json
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from ltxtrain_trainer.continuation import continue_clips
from ltxtrain_trainer.errors import AuditFailed
from ltxtrain_trainer.lora_file.export import PREFIX as PREFIX_OF_KEYS
from ltxtrain_trainer.lora_file.export import write_lora
from ltxtrain_trainer.plan import ContinuationPlan, JobPlan
from ltxtrain_trainer.reports import FileKind, Finished, Loaded, Previewed, Previewing, Report, Warned
from ltxtrain_trainer.training.checkpoint import read_checkpoint
from tests.trainer.test_job import FRAMES, RATE, STEPS, run
from tests.trainer.test_job import make_plan as make_job_plan

SAMPLING_STEPS = 3
LAST = f"{STEPS:06}"


@pytest.fixture(scope="module")
def trained(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> JobPlan:
    """A job with sound that has run; its previews at the end are among its files."""
    plan = make_job_plan(tiny_model, tmp_path_factory.mktemp("job"), with_audio=True)
    assert plan.previews is not None
    quick = dataclasses.replace(plan, previews=dataclasses.replace(plan.previews, step_count=SAMPLING_STEPS))
    run(quick)
    return quick


def plan_for(job: JobPlan, folder: Path, *, base_model: bool = True) -> ContinuationPlan:
    """The job's own previews, asked for anew with its LoRA."""
    assert job.previews is not None
    return ContinuationPlan(
        model=job.model,
        revision=None,
        precision="auto",
        lora=job.work_dir / "lora.safetensors",
        lora_step=job.settings.steps,
        with_audio=True,
        seed=job.settings.seed,
        clips=dataclasses.replace(job.previews, base_model=base_model),
        work_dir=folder,
    )


def continued(plan: ContinuationPlan) -> list[Report]:
    return list(continue_clips(plan, device=torch.device("cpu")))


def frames(path: Path) -> NDArray[np.int64]:
    with av.open(str(path)) as video:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]).astype(np.int64)


def difference(ours: Path, theirs: Path) -> float:
    """Mean over all values, in 8-bit levels."""
    return float(np.abs(frames(ours) - frames(theirs)).mean())


def test_a_jobs_own_opening_is_continued_to_its_last_preview(trained: JobPlan, tmp_path: Path) -> None:
    """To the byte, with the weights as they were; a LoRA file has them in bfloat16."""
    unrounded = read_checkpoint(trained.work_dir / f"checkpoint-{LAST}.safetensors").adapter
    write_lora(
        {f"{PREFIX_OF_KEYS}{name}": tensor for name, tensor in unrounded.items()}, {}, tmp_path / "exact.safetensors"
    )
    reports = continued(dataclasses.replace(plan_for(trained, tmp_path), lora=tmp_path / "exact.safetensors"))
    made, preview = tmp_path / "continued-clip-1.mp4", trained.work_dir / f"preview-{LAST}-clip-1.mp4"
    assert made.read_bytes() == preview.read_bytes()
    assert (tmp_path / "base-clip-1.mp4").read_bytes() == (trained.work_dir / "base-clip-1.mp4").read_bytes()
    assert made.read_bytes() != (tmp_path / "base-clip-1.mp4").read_bytes()
    with av.open(str(made)) as video:
        assert sum(frame.samples for frame in video.decode(audio=0)) >= round(FRAMES / RATE * 48_000)
    last = reports[-1]
    assert any(isinstance(report, Loaded) for report in reports)
    assert isinstance(last, Finished) and last.audit["modules"] > 0
    steps = [(report.completed, report.total) for report in reports if isinstance(report, Previewing)]
    assert steps == [(step, 2 * SAMPLING_STEPS) for step in range(1, 2 * SAMPLING_STEPS + 1)]
    assert [file.kind for file in last.files] == [FileKind.VALIDATION_REEL]


def test_without_the_base_model_there_is_one_video_of_each_opening(trained: JobPlan, tmp_path: Path) -> None:
    assert trained.previews is not None
    (first,) = trained.previews.inputs
    clips = dataclasses.replace(trained.previews, inputs=(first, dataclasses.replace(first, index=1)), base_model=False)
    reports = continued(dataclasses.replace(plan_for(trained, tmp_path), clips=clips))
    files = [file for report in reports if isinstance(report, Previewed | Finished) for file in report.files]
    assert [(file.kind, file.path.name, file.step, file.validation_index) for file in files] == [
        (FileKind.CONTINUED_VIDEO, f"continued-clip-{index + 1}.mp4", STEPS, index) for index in range(2)
    ]
    assert {path.name for path in tmp_path.iterdir()} == {file.path.name for file in files}
    preview, base = trained.work_dir / f"preview-{LAST}-clip-1.mp4", trained.work_dir / "base-clip-1.mp4"
    rounding = difference(tmp_path / "continued-clip-1.mp4", preview)
    assert 0 < rounding < 0.2 * difference(preview, base)
    assert difference(tmp_path / "continued-clip-2.mp4", preview) > 1, "the noise of one opening is not another's"


def test_a_lora_that_is_not_sound_continues_nothing(trained: JobPlan, tmp_path: Path) -> None:
    plan = plan_for(trained, tmp_path)
    broken = safetensors.torch.load_file(plan.lora)
    name = min(broken)
    broken[name] = broken[name] * float("nan")
    write_lora(broken, {}, tmp_path / "broken.safetensors")
    with pytest.raises(AuditFailed, match="not finite"):
        continued(dataclasses.replace(plan, lora=tmp_path / "broken.safetensors"))
    with pytest.raises(AuditFailed, match="does not belong into a video-only LoRA"):
        continued(dataclasses.replace(plan, with_audio=False))
    assert [*tmp_path.glob("*.mp4")] == []


def test_another_base_model_than_the_loras_is_told(trained: JobPlan, tmp_path: Path) -> None:
    plan = plan_for(trained, tmp_path)
    with safe_open(plan.lora, framework="pt") as stored:
        metadata = stored.metadata() | {"base_model_revision": "sha256:other"}
    assert json.loads(metadata["settings"])["rank"] == trained.settings.rank
    write_lora(safetensors.torch.load_file(plan.lora), metadata, tmp_path / "lora.safetensors")
    generator = continue_clips(
        dataclasses.replace(plan, lora=tmp_path / "lora.safetensors"), device=torch.device("cpu")
    )
    loaded = next(report for report in generator if isinstance(report, Loaded))
    warned = next(generator)
    generator.close()  # type: ignore[attr-defined]
    assert isinstance(warned, Warned)
    assert "revision sha256:other of the base model" in warned.text and loaded.facts.model_revision in warned.text
