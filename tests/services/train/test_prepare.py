"""The sheet as it reaches the preprocess service."""

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution, ValidationInput
from ltxtrain.v1.preprocess_pb2 import AudioSettings, Geometry, OnSkippedClip, PreprocessSettings
from ltxtrain.v1.train_pb2 import Job, JobOptions
from ltxtrain.v1.work_pb2 import Event, Lifecycle, Progress, ReportLine, Stage, State

from ltxtrain_services.runtime.extend_prefix import preprocess_settings, resolve, resolve_options
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.prepare import Preparation, enter_stage
from tests.services.train.test_model_stage import attempt

__all__ = ["attempt"]

URL = "https://example.com/clips.zip"


def asked(options: JobOptions | None = None, **fields: Any) -> PreprocessSettings:
    spec, wrong = resolve(ExtendPrefixSpec(training_data_url=URL, **fields), lambda url: None)
    chosen, wrong_options = resolve_options(options or JobOptions(), spec.number_of_steps)
    assert not wrong and not wrong_options
    return preprocess_settings(spec, chosen.on_skipped_clip, "a revision")


def test_the_defaults() -> None:
    settings = asked()
    assert settings.training == Geometry(width=768, height=768, frame_count=89, frame_rate=24)
    assert settings.validation == Geometry(width=960, height=960, frame_count=89, frame_rate=24)
    assert (settings.conditioning_frames, settings.trigger_phrase) == (9, "")
    assert settings.split_above_seconds == 30.0
    assert not settings.auto_scale_input and not settings.export_archive and not settings.HasField("audio")
    assert settings.on_skipped_clip == OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE
    assert settings.model_revision == "a revision" and settings.negative_prompt


@pytest.mark.parametrize(
    ("resolution", "aspect_ratio", "width", "height"),
    [
        (Resolution.RESOLUTION_LOW, AspectRatio.ASPECT_RATIO_16_9, 512, 288),
        (Resolution.RESOLUTION_LOW, AspectRatio.ASPECT_RATIO_1_1, 512, 512),
        (Resolution.RESOLUTION_LOW, AspectRatio.ASPECT_RATIO_9_16, 288, 512),
        (Resolution.RESOLUTION_MEDIUM, AspectRatio.ASPECT_RATIO_16_9, 768, 448),
        (Resolution.RESOLUTION_MEDIUM, AspectRatio.ASPECT_RATIO_1_1, 768, 768),
        (Resolution.RESOLUTION_MEDIUM, AspectRatio.ASPECT_RATIO_9_16, 448, 768),
        (Resolution.RESOLUTION_HIGH, AspectRatio.ASPECT_RATIO_16_9, 960, 544),
        (Resolution.RESOLUTION_HIGH, AspectRatio.ASPECT_RATIO_1_1, 960, 960),
        (Resolution.RESOLUTION_HIGH, AspectRatio.ASPECT_RATIO_9_16, 544, 960),
    ],
)
def test_each_size_is_asked_for(resolution: int, aspect_ratio: int, width: int, height: int) -> None:
    training = asked(resolution=resolution, aspect_ratio=aspect_ratio)
    validation = asked(validation_resolution=resolution, validation_aspect_ratio=aspect_ratio)
    assert (training.training.width, training.training.height) == (width, height)
    assert (validation.validation.width, validation.validation.height) == (width, height)


def test_counts_and_rates_of_clips_and_previews_are_their_own() -> None:
    settings = asked(
        number_of_frames=96,
        frame_rate=30,
        conditioning_frames=17,
        validation_number_of_frames=120,
        validation_frame_rate=12,
    )
    assert (settings.training.frame_count, settings.training.frame_rate) == (89, 30)
    assert (settings.validation.frame_count, settings.validation.frame_rate) == (113, 12)
    assert settings.conditioning_frames == 17


def test_splitting_is_a_threshold_or_nothing() -> None:
    assert asked(split_input_duration_threshold=12.5).split_above_seconds == 12.5
    off = asked(split_input_into_scenes=False, split_input_duration_threshold=12.5)
    assert not off.HasField("split_above_seconds")


@pytest.mark.parametrize(("normalize", "preserve_pitch"), [(True, True), (True, False), (False, True)])
def test_audio_settings_count_with_audio_alone(normalize: bool, preserve_pitch: bool) -> None:
    chosen: dict[str, Any] = {"audio_normalize": normalize, "audio_preserve_pitch": preserve_pitch}
    assert asked(with_audio=True, **chosen).audio == AudioSettings(normalize=normalize, preserve_pitch=preserve_pitch)
    assert not asked(**chosen).HasField("audio")


def test_texts_and_choices_go_along() -> None:
    settings = asked(
        JobOptions(on_skipped_clip=OnSkippedClip.ON_SKIPPED_CLIP_FAIL),
        trigger_phrase="sks",
        auto_scale_input=True,
        debug_dataset=True,
        validation=[ValidationInput(prompt="one", video_url=URL), ValidationInput(prompt="", video_url=URL)],
        validation_negative_prompt="",
    )
    assert settings.trigger_phrase == "sks" and settings.auto_scale_input and settings.export_archive
    assert list(settings.validation_prompts) == ["one", ""] and settings.negative_prompt == ""
    assert settings.on_skipped_clip == OnSkippedClip.ON_SKIPPED_CLIP_FAIL


def test_progress_is_of_the_stage_that_is_told() -> None:
    job = Job()
    enter_stage(job, Stage.STAGE_ENCODE, Progress(completed=11, total=11))
    assert (job.stage, job.progress.total) == (Stage.STAGE_ENCODE, 11)
    enter_stage(job, Stage.STAGE_QUEUE)
    assert job.stage == Stage.STAGE_QUEUE and not job.HasField("progress"), "no 11/11 of a queue"


async def test_of_two_datasets_at_once_one_is_counted(attempt: Attempt[Job]) -> None:
    """The stage is that of the clips to train on; of the openings it tells what became of them."""
    services = SimpleNamespace(ingest=lambda owner: None, preprocess=lambda owner: None)
    preparation = Preparation(attempt, cast(Any, services))

    async def dataset(total: int) -> AsyncIterator[tuple[int, Event]]:
        yield 1, Event(stage=Stage.STAGE_INGEST, progress=Progress(completed=total, total=total))
        yield 2, Event(stage=Stage.STAGE_INGEST, report_line=ReportLine(path=f"{total}.mp4"))
        yield 3, Event(lifecycle=Lifecycle(state=State.STATE_SUCCEEDED))

    await preparation._relay("datasets/1", dataset(6))
    await preparation._relay("datasets/2", dataset(1), counted=False)
    job, seen = await attempt.get(), list[Event]()
    async for sequence, event in attempt.store.log.follow(attempt.name, 0):
        seen += [event] if event is not None else []
        if sequence == job.lifecycle.last_sequence:
            break
    assert [event.progress.total for event in seen if event.HasField("progress")] == [6]
    assert [event.report_line.path for event in seen if event.HasField("report_line")] == ["6.mp4", "1.mp4"]
    assert job.progress.total == 6
