"""A whole job of the trainer on the tiny model: files, previews, resume."""

import dataclasses
import itertools
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding, dump_clip, dump_prompt
from ltxtrain_trainer.job import run_job
from ltxtrain_trainer.lora_file.export import read_lora
from ltxtrain_trainer.media.video_file import write_lossless
from ltxtrain_trainer.plan import JobPlan, PreviewInput, PreviewSettings, SampleFiles
from ltxtrain_trainer.reports import (
    LABELLED,
    Checkpointed,
    FileKind,
    Finished,
    Loaded,
    Loading,
    MadeFile,
    Previewed,
    Previewing,
    RequestedPreviewsDone,
    Step,
    Stopped,
    Warned,
)
from ltxtrain_trainer.training.checkpoint import Checkpoint, write_checkpoint
from ltxtrain_trainer.training.requests import Request, Requests
from ltxtrain_trainer.training.settings import TrainSettings
from ltxtrain_trainer.training.step_log import StepLog

FRAMES, PREFIX, SIDE, RATE = 17, 9, 64, 24.0
STEPS = 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def sample_files(folder: Path, name: str, frames: int, seed: int, with_audio: bool) -> SampleFiles:
    generator = torch.Generator().manual_seed(seed)
    clip = EncodedClip(
        video=torch.randn(128, (frames - 1) // 8 + 1, 2, 2, generator=generator).bfloat16(),
        audio=torch.randn(round(frames / RATE * 25), 128, generator=generator).bfloat16() if with_audio else None,
        frame_rate=RATE,
        frame_count=frames,
    )
    latents, prompt = folder / f"{name}.latents", folder / f"{name}.prompt"
    latents.write_bytes(dump_clip(clip))
    prompt.write_bytes(dump_prompt(embedding(generator)))
    return SampleFiles(latents=latents, prompt=prompt)


def embedding(generator: torch.Generator) -> PromptEmbedding:
    return PromptEmbedding(
        video=torch.randn(16, 64, generator=generator).bfloat16(),
        audio=torch.randn(16, 32, generator=generator).bfloat16(),
        token_count=3,
        truncated=False,
    )


def make_plan(
    tiny_model: Path, folder: Path, *, with_audio: bool = False, previews: bool = True, **changes: Any
) -> JobPlan:
    inputs, made = folder / "inputs", folder / "made"
    inputs.mkdir(parents=True)
    made.mkdir()
    preview_settings = None
    if previews:
        frames = np.random.default_rng(1).integers(0, 255, (PREFIX, SIDE, SIDE, 3), dtype=np.uint8)
        write_lossless(inputs / "prefix.mkv", list(frames), RATE)
        negative = inputs / "negative"
        negative.write_bytes(dump_prompt(embedding(torch.Generator().manual_seed(99))))
        preview_settings = PreviewSettings(
            frame_count=FRAMES,
            stg_scale=1.0,
            schedule_tokens=4096,
            negative=negative,
            inputs=(
                PreviewInput(
                    index=0,
                    prompt="a <b>disc</b>",
                    prefix=sample_files(inputs, "prefix", PREFIX, 7, with_audio),
                    prefix_frames=inputs / "prefix.mkv",
                ),
            ),
        )
    settings = TrainSettings(
        rank=8,
        steps=STEPS,
        learning_rate=1e-3,
        conditioning_frames=PREFIX,
        with_audio=with_audio,
        checkpoint_interval=2,
        **changes,
    )
    return JobPlan(
        model=str(tiny_model),
        revision=None,
        precision="auto",
        settings=settings,
        trigger_phrase="in style",
        samples=tuple(sample_files(inputs, f"clip{number}", FRAMES, number, with_audio) for number in range(3)),
        previews=preview_settings,
        identity={"samples": "3"},
        work_dir=made,
    )


def run(plan: JobPlan) -> list[Any]:
    return list(run_job(plan, device=torch.device("cpu")))


def made(reports: list[Any], kind: type[Finished | Previewed] = Finished) -> dict[str, MadeFile]:
    return {file.path.name: file for report in reports if isinstance(report, kind) for file in report.files}


def test_a_job_leaves_lora_metrics_previews_and_reel(tiny_model: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny_model, tmp_path)
    reports = run(plan)
    *loading, last = itertools.takewhile(lambda report: isinstance(report, Loading), reports)
    assert all(report.completed_bytes < report.total_bytes for report in loading)
    assert last.completed_bytes == last.total_bytes > 0
    loaded = reports[len(loading) + 1]
    assert isinstance(loaded, Loaded)
    facts = loaded.facts
    assert (facts.precision, facts.clip_count, facts.layer_count) == ("fp32", 3, 4)
    assert {"torch", "diffusers", "peft"} <= facts.libraries.keys()
    assert [report.step for report in reports if isinstance(report, Step)] == list(range(1, STEPS + 1))
    assert [report.step for report in reports if isinstance(report, Checkpointed)] == [2, 4, 6]
    files = made(reports)
    assert set(files) == {"lora.safetensors", "metrics.parquet", "reel.mp4"}
    previews = [report for report in reports if isinstance(report, Previewed)]
    assert [(report.step, report.base_model) for report in previews] == [(STEPS, True), (STEPS, False)]
    assert all(report.metrics.prefix_latents_equal for report in previews)
    assert set(made(reports, Previewed)) == {
        "base-clip-1.mp4",
        "preview-000006-clip-1.mp4",
        f"preview-000006-clip-1{LABELLED}",
    }

    with av.open(str(files["reel.mp4"].path)) as reel:
        assert [stream.type for stream in reel.streams] == ["video"]
        assert sum(1 for _ in reel.decode(video=0)) == FRAMES
    assert [row["step"] for row in StepLog.read(files["metrics.parquet"].path, 3).rows] == [1, 2, 3]


def test_a_distilled_model_is_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "LTX-2.3-Distilled").symlink_to(tiny_model)
    plan = make_plan(tmp_path / "LTX-2.3-Distilled", tmp_path, previews=False)
    warned = next(report for report in run_job(plan, device=torch.device("cpu")) if isinstance(report, Warned | Step))
    assert isinstance(warned, Warned) and "distilled" in warned.text


def test_with_audio_there_is_a_video_only_file_too(tiny_model: Path, tmp_path: Path) -> None:
    files = made(run(make_plan(tiny_model, tmp_path, with_audio=True, previews=False)))
    assert {"lora.safetensors", "lora-video-only.safetensors"} <= set(files)
    assert "reel.mp4" not in files


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, MadeFile]:
    """Files of a job without previews that nothing happened to."""
    return made(run(make_plan(tiny_model, tmp_path_factory.mktemp("undisturbed"), previews=False)))


def goes_on(plan: JobPlan, cut: Checkpointed, undisturbed: dict[str, MadeFile]) -> None:
    """Assert that the job ends from a checkpoint as the undisturbed one did."""
    paths = {file.kind: file.path for file in cut.files}
    resumed = run(dataclasses.replace(plan, checkpoint=paths[FileKind.CHECKPOINT], metrics=paths[FileKind.METRICS]))
    assert [report.step for report in resumed if isinstance(report, Step)] == list(range(cut.step + 1, STEPS + 1))
    files = made(resumed)
    assert files["lora.safetensors"].path.read_bytes() == undisturbed["lora.safetensors"].path.read_bytes()
    rows = StepLog.read(files["metrics.parquet"].path, STEPS).rows
    expected = StepLog.read(undisturbed["metrics.parquet"].path, STEPS).rows
    assert [(row["step"], row["loss"]) for row in rows] == [(row["step"], row["loss"]) for row in expected]


def test_a_killed_job_ends_with_the_same_bytes(
    tiny_model: Path, undisturbed: dict[str, MadeFile], tmp_path: Path
) -> None:
    plan = make_plan(tiny_model, tmp_path, previews=False)
    reports = run_job(plan, device=torch.device("cpu"))
    cut = next(report for report in reports if isinstance(report, Checkpointed) and report.step == 4)
    next(reports)  # step 5 is computed and lost
    assert isinstance(reports, Generator)
    reports.close()
    goes_on(plan, cut, undisturbed)


def test_a_job_that_is_stopped_in_its_previews_leaves_their_step_and_goes_on_from_it(
    tiny_model: Path, undisturbed: dict[str, MadeFile], tmp_path: Path
) -> None:
    plan, requests = make_plan(tiny_model, tmp_path, preview_interval=3), Requests()
    reports = []
    for report in run_job(plan, device=torch.device("cpu"), requests=requests):
        reports.append(report)
        if isinstance(report, Previewing):
            requests.put(Request.STOP)
    assert sum(isinstance(report, Previewing) for report in reports) == 1
    *_, cut, last = reports
    assert isinstance(cut, Checkpointed) and cut.step == 3 and last == Stopped(3)
    goes_on(dataclasses.replace(plan, previews=None), cut, undisturbed)


def test_previews_and_checkpoints_that_are_asked_for_change_no_byte_of_the_lora(
    tiny_model: Path, undisturbed: dict[str, MadeFile], tmp_path: Path
) -> None:
    plan, requests = make_plan(tiny_model, tmp_path), Requests()
    reports = []
    for report in run_job(plan, device=torch.device("cpu"), requests=requests):
        reports.append(report)
        if isinstance(report, Step) and report.step == 2:
            requests.put(Request.PREVIEW)
            requests.put(Request.CHECKPOINT)
    assert [(report.step, report.requested) for report in reports if isinstance(report, Checkpointed)] == [
        (2, False),
        (3, True),
        (4, False),
        (6, False),
    ]
    done = reports.index(RequestedPreviewsDone(3))
    assert [report.step for report in reports[:done] if isinstance(report, Previewed)] == [3, 3]
    lora = made(reports)["lora.safetensors"].path
    assert lora.read_bytes() == undisturbed["lora.safetensors"].path.read_bytes()


def test_a_job_begins_with_the_weights_of_a_lora(
    tiny_model: Path, undisturbed: dict[str, MadeFile], tmp_path: Path
) -> None:
    lora = undisturbed["lora.safetensors"].path
    plan = dataclasses.replace(make_plan(tiny_model, tmp_path, previews=False), initial_lora=lora)
    plan = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, learning_rate=1e-12))
    # Steps too small for bfloat16 leave what it began with.
    begun, ended = (read_lora(path) for path in (lora, made(run(plan))["lora.safetensors"].path))
    assert begun.keys() == ended.keys() and all(torch.equal(begun[name], ended[name]) for name in begun)


def test_previews_that_fail_or_that_the_end_follows_are_warned_of(tiny_model: Path, tmp_path: Path) -> None:
    plan = make_plan(tiny_model, tmp_path, preview_interval=5)
    assert plan.previews is not None
    plan.previews.inputs[0].prefix_frames.write_bytes(b"not a video")
    reports = run(plan)
    left_out, failed = [report.text for report in reports if isinstance(report, Warned)]
    assert left_out == "Step 5 has no previews of its own: those of the last step, 6, come right after."
    assert failed.startswith("The preview of step 6 failed")
    assert "reel.mp4" not in made(reports) and "lora.safetensors" in made(reports)


def test_steps_go_on_while_a_checkpoint_is_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = threading.Event()

    def slow(checkpoint: Checkpoint, path: Path) -> None:
        # A disk or a store that takes as long as a step: it would never end if the step waited for it.
        assert ahead.wait(60)
        write_checkpoint(checkpoint, path)

    def stored(report: Checkpointed) -> dict[str, bytes]:
        return {file.path.name: file.path.read_bytes() for file in report.files if file.kind != FileKind.METRICS}

    expected: dict[str, bytes] = {}
    for report in run(make_plan(tiny_model, tmp_path / "fast", previews=False)):
        expected |= stored(report) if isinstance(report, Checkpointed) else {}
    monkeypatch.setattr("ltxtrain_trainer.job.write_checkpoint", slow)
    order = []
    found: dict[str, bytes] = {}
    for report in run_job(make_plan(tiny_model, tmp_path / "slow", previews=False), device=torch.device("cpu")):
        order.append((type(report).__name__, getattr(report, "step", None)))
        if isinstance(report, Step) and report.step == 3:
            ahead.set()
        if isinstance(report, Checkpointed):
            found |= stored(report)
    assert order.index(("Step", 3)) < order.index(("Checkpointed", 2))
    # What a checkpoint holds is the weights of its own step, not those of the steps that went on.
    assert found == expected and len(found) == 6
