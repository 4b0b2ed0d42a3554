"""Clips continued with a job's LoRA: the spec from request and job, its faults, and what a start is given."""

from pathlib import Path
from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact, Blob
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import Resolution, ValidationInput
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip, Sample, TrainingSet
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import (
    BasePrecision,
    CheckpointJobRequest,
    ContinueFrom,
    ContinueMode,
    CreateJobRequest,
    EstimateJobRequest,
    Job,
    JobOptions,
)
from ltxtrain.v1.work_pb2 import Lifecycle, State

from ltxtrain_services.runtime.auth import caller
from ltxtrain_services.runtime.errors import InvalidSpec, NotFound, NotReady, reason_name
from ltxtrain_services.runtime.extend_prefix import preprocess_settings
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.artifacts import COLLECTION
from ltxtrain_services.train.continuation import Origin, Resolved, used_lora
from ltxtrain_services.train.continue_clips import (
    RULES,
    clips_output,
    continuation_task,
    opening_settings,
    resolve_clips,
)
from ltxtrain_services.train.job_plan import Prepared
from ltxtrain_services.train.service import TrainService
from ltxtrain_services.train.training import worker_count
from ltxtrain_trainer.model.folder import ModelFolder
from ltxtrain_trainer.plan import ContinuationPlan
from tests.services.runtime.test_extend_prefix import comments
from tests.services.train.running import Trainer
from tests.services.train.test_continuation import OLD, file, origin

A_DISC = ValidationInput(prompt="shapes, a disc", video_url="https://example.com/a.mp4")


def use(
    old: Origin, spec: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **given: Any
) -> Resolved:
    """A request to continue A_DISC, unless other openings are given."""
    asked = ContinueClipsSpec(**{"openings": [A_DISC]} | (spec or {}))
    source = ContinueFrom(**{"source": OLD} | given)
    return resolve_clips(old, source, asked, JobOptions(**options or {}), lambda url: None)


def faults(found: Resolved) -> dict[str, str]:
    return {violation.field: reason_name(violation.reason) for violation in found.violations}


def joint(*, named: str = "") -> Origin:
    """A job with sound, its two LoRAs, and perhaps one of its files by name."""
    files = [
        file("lora.safetensors", Artifact.KIND_LORA, 200),
        file("lora-video-only.safetensors", Artifact.KIND_LORA_VIDEO_ONLY, 200),
        file("lora-000100.safetensors", Artifact.KIND_LORA, 100),
        file("metrics.parquet", Artifact.KIND_METRICS),
    ]
    old = origin(found=files, with_audio=True)
    return Origin(old.job, files, next((item for item in files if item.name.endswith(f"/{named}")), None))


def test_what_a_request_leaves_out_is_as_in_the_jobs_previews() -> None:
    old = origin()
    old.job.training_summary.precision = "int8"
    found = use(old)
    previews, clips = old.job.effective_spec.extend_prefix, found.spec.continue_clips
    assert not found.violations
    assert found.continue_from == ContinueFrom(
        source=OLD, mode=ContinueMode.CONTINUE_MODE_WEIGHTS, step=200, artifact=f"{OLD}/artifacts/lora.safetensors"
    )
    assert list(clips.openings) == [A_DISC]
    assert {field.name for field in clips.DESCRIPTOR.fields} == {field.name for field, _ in clips.ListFields()}
    assert (clips.sampling_steps, clips.guidance_scale, clips.audio_guidance_scale) == (30, 3.0, 7.0)
    # The openings are encoded by the same settings, so that what was encoded for the previews is found again.
    ours, theirs = (
        opening_settings(clips, "r"),
        preprocess_settings(previews, OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE, "r"),
    )
    for name in ("validation", "conditioning_frames", "negative_prompt", "trigger_phrase", "model_revision"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert (found.options.seed, found.options.preview_schedule_tokens) == (7, 4096)
    assert found.options.base_precision == BasePrecision.BASE_PRECISION_INT8, "as the training held it in the end"


def test_what_a_request_gives_counts() -> None:
    given = {"number_of_frames": 130, "conditioning_frames": 17, "sampling_steps": 8, "negative_prompt": ""}
    found = use(origin(), given | {"resolution": Resolution.RESOLUTION_LOW}, {"seed": 1, "base_precision": 2})
    clips = found.spec.continue_clips
    assert not found.violations
    assert (clips.number_of_frames, clips.conditioning_frames, clips.sampling_steps) == (129, 17, 8), "snapped"
    assert (clips.negative_prompt, clips.resolution) == ("", Resolution.RESOLUTION_LOW)
    assert (found.options.seed, found.options.base_precision) == (1, 2)


def test_every_fault_comes_back_at_once() -> None:
    openings = [A_DISC, ValidationInput(prompt="x" * 70000), *[A_DISC] * 7]
    wrong = {"openings": openings, "number_of_frames": 300, "conditioning_frames": 10, "sampling_steps": 1}
    options = {"batch_size": 2, "gpu_count": 2, "base_precision": 99}
    mode = ContinueMode.CONTINUE_MODE_EXACT
    assert faults(use(origin(), wrong | {"guidance_scale": float("nan"), "with_audio": True}, options, mode=mode)) == {
        "continue_from.mode": "FIELD_NOT_ALLOWED",
        "options.base_precision": "FIELD_NOT_ALLOWED",
        "options.batch_size": "FIELD_NOT_ALLOWED",
        "options.gpu_count": "FIELD_NOT_ALLOWED",
        "spec.continue_clips.conditioning_frames": "NOT_ONE_MODULO_EIGHT",
        "spec.continue_clips.guidance_scale": "FIELD_OUT_OF_RANGE",
        "spec.continue_clips.number_of_frames": "FIELD_OUT_OF_RANGE",
        "spec.continue_clips.openings": "TOO_MANY_VALIDATION_INPUTS",
        "spec.continue_clips.openings[1].prompt": "FIELD_OUT_OF_RANGE",
        "spec.continue_clips.openings[1].video_url": "FIELD_REQUIRED",
        "spec.continue_clips.sampling_steps": "FIELD_OUT_OF_RANGE",
        "spec.continue_clips.with_audio": "FIELD_NOT_ALLOWED",
    }
    assert faults(use(origin(), {"openings": []})) == {"spec.continue_clips.openings": "FIELD_REQUIRED"}
    covered = use(origin(), {"number_of_frames": 17, "conditioning_frames": 17})
    assert faults(covered) == {"spec.continue_clips.conditioning_frames": "PREFIX_COVERS_CLIP"}


def test_sound_goes_with_the_lora() -> None:
    for named, with_audio, step in (
        ("", True, 200),
        ("lora-video-only.safetensors", False, 200),
        ("lora-000100.safetensors", True, 100),
    ):
        found = use(joint(named=named))
        assert not found.violations and found.continue_from is not None
        assert (found.spec.continue_clips.with_audio, found.continue_from.step) == (with_audio, step)
    (wrong,) = use(joint(), {"with_audio": False}).violations
    assert wrong.field == "spec.continue_clips.with_audio" and "lora-video-only.safetensors" in wrong.description


def test_without_a_lora_nothing_is_continued() -> None:
    for old, says in (
        (origin(State.STATE_FAILED, []), "ended before its first checkpoint"),
        (joint(named="metrics.parquet"), "is a KIND_METRICS and no LoRA"),
        (Origin(continued_job(), []), "it continued clips with jobs/old/artifacts/lora.safetensors"),
    ):
        (violation,) = use(old).violations
        assert violation.field == "continue_from.source" and says in violation.description


def continued_job(*, base_model: bool = False) -> Job:
    """A job that continued two clips."""
    found = use(origin(), {"openings": [A_DISC, A_DISC], "base_model": base_model})
    return Job(
        name="jobs/used",
        lifecycle=Lifecycle(state=State.STATE_CANCELLED),
        effective_spec=found.spec,
        options=found.options,
        continue_from=found.continue_from,
        validation_dataset="datasets/v",
    )


def test_a_retry_uses_the_same_lora_again() -> None:
    old = Origin(continued_job(), [])
    again = old.retried()
    assert again.continue_from == old.job.continue_from and again.effective_spec == old.job.effective_spec
    # No training goes on from it.
    _, wrong = old.continuation(ContinueFrom(source=OLD), old.spec, old.spec, old.job.options)
    assert [violation.field for violation in wrong] == ["continue_from.source"]


def blob(text: str) -> Blob:
    return Blob(key=text, sha256=text)


def test_a_start_makes_what_an_earlier_one_has_not() -> None:
    samples = [
        Sample(
            name=f"trainingSets/1/samples/{index}",
            validation_index=index,
            latents=blob(f"latents-{index}"),
            prompt=blob(f"prompt-{index}"),
            prefix_frames=blob(f"prefix-{index}"),
        )
        for index in (1, 0)
    ]
    model = ModelFolder(path=Path("model"), reference="model", revision="r", digests={}, original=None)
    prepared = Prepared(model=model, training_set=TrainingSet(negative_prompt=blob("negative")), samples=samples)
    lora, made = Artifact(blob=blob("lora")), [file("continued-clip-1.mp4", Artifact.KIND_CONTINUED_VIDEO)]
    made[0].validation_index = 0
    for job, found, left in (
        (continued_job(), [], [0, 1]),
        (continued_job(), made, [1]),
        (continued_job(base_model=True), made, [0, 1]),
    ):
        task = continuation_task(job, prepared, lora, found)
        assert isinstance(task.plan, ContinuationPlan)
        assert [entry.index for entry in task.plan.clips.inputs] == left
        assert {task.files[str(task.plan.lora)].key, task.files[str(task.plan.clips.negative)].key} == {
            "lora",
            "negative",
        }
        assert worker_count(job, 8) == 1


def test_the_output_has_the_videos_in_the_order_of_their_openings() -> None:
    found = []
    for name, kind, index in (
        ("base-clip-1.mp4", Artifact.KIND_BASE_VIDEO, 0),
        ("continued-clip-2.mp4", Artifact.KIND_CONTINUED_VIDEO, 1),
        ("continued-clip-1.mp4", Artifact.KIND_CONTINUED_VIDEO, 0),
        ("reel.mp4", Artifact.KIND_VALIDATION_REEL, 0),
    ):
        found.append(file(name, kind))
        found[-1].validation_index = index
    output = clips_output(found)
    assert [name.rpartition("/")[2] for name in output.continued_videos] == [
        "continued-clip-1.mp4",
        "continued-clip-2.mp4",
    ]
    assert (
        list(output.base_videos) == [f"{OLD}/artifacts/base-clip-1.mp4"] and output.video == f"{OLD}/artifacts/reel.mp4"
    )
    assert not output.lora_file


def test_the_contracts_comments_say_what_the_table_says() -> None:
    documented = comments("continue_clips.proto", "ContinueClipsSpec")
    assert {rule.name for rule in RULES} | {"openings"} == set(documented)
    for rule in RULES:
        text = documented[rule.name]
        assert rule.rule in text or rule.name in ("resolution", "aspect_ratio"), rule.name
        if "Default: the" not in text:
            assert f"Default: {str(rule.default).lower()}." in text, rule.name


async def test_calls_that_are_for_trainings_are_refused(trainer: Trainer) -> None:
    caller.set("me")
    service, job = TrainService(trainer.runtime), continued_job()
    await trainer.jobs.create(job, owner="me", request_id="", digest=b"")
    with pytest.raises(NotReady, match="trains nothing"):
        await service.CheckpointJob(CheckpointJobRequest(name=job.name), None)
    spec = TaskSpec(continue_clips=ContinueClipsSpec(openings=[A_DISC]))
    with pytest.raises(InvalidSpec, match="continue_clips"):
        await service.EstimateJob(EstimateJobRequest(spec=spec), None)
    with pytest.raises(InvalidSpec) as refused:
        await service.CreateJob(CreateJobRequest(spec=spec), None)
    assert [violation.field for violation in refused.value.violations] == ["continue_from.source"]
    with pytest.raises(NotFound, match=r"jobs/old/artifacts/lora\.safetensors"):
        await used_lora(trainer.jobs, job)


async def test_a_continuation_that_ends_early_keeps_the_clips_that_are_made(trainer: Trainer) -> None:
    job = continued_job()
    job.name, job.queue_position = "jobs/early", 2
    await trainer.jobs.create(job, owner="me", request_id="", digest=b"")
    async with trainer.jobs.edit(job.name) as edit:
        made = Artifact(
            name=f"{job.name}/artifacts/continued-clip-2.mp4",
            kind=Artifact.KIND_CONTINUED_VIDEO,
            validation_index=1,
            blob=Blob(key=f"{job.name}/continued-clip-2.mp4", size_bytes=7),
        )
        edit.put_child(COLLECTION, "continued-clip-2.mp4", made)
    ending = await trainer.workflow._publish_clips(Attempt(trainer.jobs, job.name, 0, "me"))
    async with trainer.jobs.edit(job.name) as edit:
        ending(edit)
        edit.enter(State.STATE_CANCELLED)
    ended = await trainer.jobs.get(job.name)
    assert list(ended.output.continued_videos) == [made.name] and ended.stored_bytes == 7
    assert not ended.HasField("queue_position") and not ended.HasField("training_summary") and not ended.billable_units
