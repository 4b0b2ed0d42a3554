"""A job with audio, a debug archive, held-out clips and previews on the way: what the other suite jobs leave out."""

import json
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import ValidationInput
from ltxtrain.v1.train_pb2 import ContinueFrom, Job
from ltxtrain.v1.work_pb2 import Stage
from ltxtrain_client.errors import from_status
from safetensors import safe_open

from tests.clips import Sound, Video, numbered, tones, write_clip, write_zip
from tests.suite.conftest import Clients, files_of, follow, submit

FRAMES = 24


def make_clip(path: Path, number: int, sound: bool = True) -> Path:
    waves = tones(FRAMES / 24, hertz=(220 * number, 330 * number))
    write_clip(path, numbered(FRAMES, clip=number), Video(), Sound(waves=waves) if sound else None)
    return path


@pytest.fixture(scope="module")
async def job(clients: Clients, tmp_path_factory: pytest.TempPathFactory) -> Job:
    folder = tmp_path_factory.mktemp("audio")
    entries: dict[str, bytes | Path | str] = {}
    for number in (1, 2, 3):
        entries[f"{number}.mp4"] = make_clip(folder / f"{number}.mp4", number)
        entries[f"{number}.txt"] = f"test card {number} with two tones"
    archive = write_zip(folder / "clips.zip", entries)
    opening = make_clip(folder / "opening.mp4", 4)
    made = await submit(
        clients,
        archive,
        validation=opening,
        options={"preview_interval": 50, "checkpoint_interval": 50, "holdout_fraction": 0.3},
        with_audio=True,
        debug_dataset=True,
    )
    await follow(clients, made.name)
    return await clients.train.get_job(made.name)


async def test_sound_is_learned_beside_the_picture(clients: Clients, job: Job, tmp_path: Path) -> None:
    assert not job.lifecycle.HasField("error"), str(from_status(job.lifecycle.error))
    events = [event for _, event in await follow(clients, job.name)]
    losses = [event.train_metrics for event in events if event.HasField("train_metrics")]
    assert all(metrics.HasField("audio_loss") for metrics in losses)
    assert any(metrics.HasField("held_out_loss") for metrics in losses)
    for name, audio in (("lora_file", True), ("lora_video_only_file", False)):
        path = await clients.train.download(getattr(job.output, name), tmp_path / name)
        with safe_open(path, framework="pt") as file:
            assert any("audio" in key for key in file.keys()) is audio  # noqa: SIM118 (not a mapping)


async def test_previews_come_on_the_way_and_with_sound(clients: Clients, job: Job, tmp_path: Path) -> None:
    events = [event for _, event in await follow(clients, job.name)]
    measured = [event.preview_metrics for event in events if event.HasField("preview_metrics")]
    assert [(item.step, item.base_model) for item in measured] == [(0, True), (50, False), (100, False)]
    assert all(item.prefix_latents_equal and item.HasField("loudness_step_db") for item in measured)
    reel = await clients.train.download(job.output.video, tmp_path / "reel.mp4")
    with av.open(str(reel)) as container:
        assert sorted(stream.type for stream in container.streams) == ["audio", "video"]
        assert container.streams.audio[0].rate == 48_000


async def test_the_debug_archive_shows_every_sample(clients: Clients, job: Job, tmp_path: Path) -> None:
    path = await clients.train.download(job.output.debug_dataset, tmp_path / "debug.zip")
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert sum(name.endswith((".mkv", ".mp4")) for name in names) >= 3
    assert any(name.endswith(".json") for name in names)


async def test_everything_is_listed(clients: Clients, job: Job, tmp_path: Path) -> None:
    files = await files_of(clients, job.name)
    assert {
        "job.html",
        "metrics.parquet",
        "contact-sheet.html",
        "debug-dataset.zip",
        "lora-video-only.safetensors",
    } <= set(files)
    config = await clients.train.download(job.output.config_file, tmp_path / "config.json")
    assert json.loads(config.read_text())["spec"]["with_audio"] is True


async def test_a_clip_without_sound_fails_the_job(clients: Clients, tmp_path: Path) -> None:
    entries: dict[str, bytes | Path | str] = {
        f"{number}.mp4": make_clip(tmp_path / f"{number}.mp4", number, sound=number == 1) for number in (1, 2, 3)
    }
    opening = make_clip(tmp_path / "opening.mp4", 4, sound=False)
    made = await submit(clients, write_zip(tmp_path / "a.zip", entries), validation=opening, with_audio=True)
    await follow(clients, made.name)
    failed = await clients.train.get_job(made.name)
    error = from_status(failed.lifecycle.error)
    assert error.reason == "AUDIO_TRACK_MISSING" and failed.billable_units == 0
    assert len(error.subjects) == 3


async def test_its_own_opening_is_continued_to_its_last_preview(clients: Clients, job: Job, tmp_path: Path) -> None:
    """With nothing but the job's name: the LoRA on the suite's own workers, as its previews were made."""
    opening = ValidationInput(
        prompt=job.effective_spec.extend_prefix.validation[0].prompt,
        video_url=f"dataset:{job.validation_dataset}/clips/0",
    )
    spec = ContinueClipsSpec(openings=[opening])
    made = await clients.train.submit(spec, continue_from=ContinueFrom(source=job.name))
    events = [event for _, event in await follow(clients, made.name)]
    used = await clients.train.get_job(made.name)
    assert not used.lifecycle.HasField("error"), str(from_status(used.lifecycle.error))
    files, earlier = await files_of(clients, used.name), await files_of(clients, job.name)
    assert set(files) == {"continued-clip-1.mp4"}, "the LoRA stays its job's"
    shown = {}
    for side, item in (
        ("continued", files["continued-clip-1.mp4"]),
        ("preview", earlier["preview-000100-clip-1.mp4"]),
        ("base", earlier["base-clip-1.mp4"]),
    ):
        path = await clients.train.download(item.name, tmp_path / f"{side}.mp4")
        with av.open(str(path)) as container:
            assert sorted(stream.type for stream in container.streams) == ["audio", "video"]
            pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        shown[side] = np.stack(pictures).astype(float)
    # Not to the byte: a LoRA file has the weights in bfloat16. Nearer to the preview than the LoRA is to the base.
    learned = np.abs(shown["preview"] - shown["base"]).mean()
    assert np.abs(shown["continued"] - shown["preview"]).mean() < 0.3 * learned
    assert [*used.output.continued_videos] == [f"{used.name}/artifacts/continued-clip-1.mp4"]
    assert (used.billable_units, used.training_summary.clip_count, used.training_summary.steps) == (0, 1, 0)
    sampled = [event.progress for event in events if event.HasField("progress") and event.stage == Stage.STAGE_PREVIEW]
    assert (sampled[-1].completed, sampled[-1].total) == (30, 30)
    training_set = await clients.preprocess.get_training_set(used.training_set)
    assert training_set.dataset == "" and training_set.report.cache_misses == 0, "encoded for the job's previews"
