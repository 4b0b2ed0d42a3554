"""Jobs that go on from another: their inheritance, and the changes that are refused."""

from typing import Any

import pytest
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Attention, ContinueFrom, ContinueMode, Job, JobOptions, JobOutput, Schedule
from ltxtrain.v1.work_pb2 import Lifecycle, State

from ltxtrain_services.runtime.errors import NotReady, Violation
from ltxtrain_services.runtime.extend_prefix import resolve, resolve_options
from ltxtrain_services.train.artifacts import INITIAL_LORA, latest_checkpoint, outdated
from ltxtrain_services.train.continuation import Origin

OLD = "jobs/old"
EXACT, WEIGHTS = ContinueMode.CONTINUE_MODE_EXACT, ContinueMode.CONTINUE_MODE_WEIGHTS


def file(name: str, kind: "Artifact.Kind", step: int | None = None, requested: bool = False) -> Artifact:
    return Artifact(name=f"{OLD}/artifacts/{name}", kind=kind, step=step, requested=requested)


def checkpoint(step: int) -> list[Artifact]:
    return [
        file(f"checkpoint-{step:06}.safetensors", Artifact.KIND_CHECKPOINT, step),
        file(f"lora-{step:06}.safetensors", Artifact.KIND_LORA, step),
        file(f"metrics-{step:06}.parquet", Artifact.KIND_METRICS, step),
    ]


def origin(
    state: "State" = State.STATE_SUCCEEDED, found: list[Artifact] | None = None, *, linear: bool = False, **sheet: Any
) -> Origin:
    """A job of 200 steps, whose files are those of its last one unless others are given."""
    given = ExtendPrefixSpec(
        training_data_url="https://example.com/clips.zip",
        number_of_steps=200,
        rank=16,
        trigger_phrase="shapes",
        validation=[ValidationInput(prompt="a disc", video_url="https://example.com/a.mp4")],
    )
    given.MergeFrom(ExtendPrefixSpec(**sheet))
    spec, wrong = resolve(given, lambda url: None)
    options, wrong_options = resolve_options(
        JobOptions(seed=7, schedule=Schedule.SCHEDULE_LINEAR if linear else Schedule.SCHEDULE_CONSTANT), 200
    )
    assert not wrong and not wrong_options
    files = [*checkpoint(200), file("lora.safetensors", Artifact.KIND_LORA, 200)] if found is None else found
    job = Job(
        name=OLD,
        lifecycle=Lifecycle(state=state),
        spec=TaskSpec(extend_prefix=given),
        effective_spec=TaskSpec(extend_prefix=spec),
        options=options,
        dataset="datasets/d",
        validation_dataset="datasets/v",
        training_set="trainingSets/t",
    )
    if files:
        job.output.CopyFrom(JobOutput(lora_file=f"{OLD}/artifacts/lora.safetensors"))
    return Origin(job, files)


def continued(
    old: Origin, mode: "ContinueMode" = EXACT, options: dict[str, Any] | None = None, **sheet: Any
) -> tuple[ContinueFrom, ExtendPrefixSpec, JobOptions, dict[str, str]]:
    """How a request goes on: the continuation, spec and options as used, and the complaints by field."""
    given = ExtendPrefixSpec(**sheet)
    asked, asked_options = old.inherited(given, JobOptions(**options or {}))
    spec, wrong = resolve(asked, lambda url: None)
    chosen, wrong_options = resolve_options(asked_options, spec.number_of_steps)
    assert not wrong and not wrong_options
    made, violations = old.continuation(ContinueFrom(source=OLD, mode=mode), given, spec, chosen)
    return made, spec, chosen, by_field(violations)


def by_field(violations: list[Violation]) -> dict[str, str]:
    return {violation.field: violation.description for violation in violations}


def test_what_a_request_leaves_out_is_the_sources() -> None:
    made, spec, options, wrong = continued(origin(), number_of_steps=400, options={"checkpoint_interval": 100})
    assert wrong == {}
    assert (spec.rank, spec.trigger_phrase, spec.number_of_steps, spec.dataset) == (16, "shapes", 400, "datasets/d")
    assert [entry.video_url for entry in spec.validation] == ["dataset:datasets/v/clips/0"]
    assert (options.seed, options.checkpoint_interval) == (7, 100)
    assert made == ContinueFrom(
        source=OLD,
        mode=EXACT,
        step=200,
        artifact=f"{OLD}/artifacts/checkpoint-000200.safetensors",
        training_set="trainingSets/t",
        billed_steps=200,
    )


def test_all_that_an_exact_continuation_may_not_change_is_named_at_once() -> None:
    *_, wrong = continued(
        origin(),
        rank=32,
        learning_rate=0.5,
        trigger_phrase="other",
        resolution=1,
        training_data_url="https://example.com/others.zip",
        options={"seed": 8, "schedule": Schedule.SCHEDULE_LINEAR, "gpu_count": 2, "batch_size": 2},
    )
    assert sorted(wrong) == [
        "options.batch_size",
        "options.gpu_count",
        "options.schedule",
        "options.seed",
        "spec.extend_prefix.learning_rate",
        "spec.extend_prefix.number_of_steps",
        "spec.extend_prefix.rank",
        "spec.extend_prefix.resolution",
        "spec.extend_prefix.training_data_url",
        "spec.extend_prefix.trigger_phrase",
    ]
    assert wrong["spec.extend_prefix.rank"].startswith("It is 16 in jobs/old, and an exact continuation keeps it.")
    assert "SCHEDULE_CONSTANT" in wrong["options.schedule"]
    assert "RESOLUTION_MEDIUM" in wrong["spec.extend_prefix.resolution"]
    assert wrong["spec.extend_prefix.number_of_steps"].startswith("200 is not above the 200 steps that are done.")
    assert all(len(text) < 300 for text in wrong.values())


def test_previews_and_intervals_may_change_and_the_same_data_may_be_named() -> None:
    *_, wrong = continued(
        origin(),
        number_of_steps=300,
        dataset="datasets/d",
        stg_scale=0.5,
        validation_frame_rate=30,
        validation=[ValidationInput(prompt="another", video_url="https://example.com/b.mp4")] * 2,
        debug_dataset=True,
        options={"checkpoint_interval": 1, "preview_interval": 0, "preview_schedule_tokens": 0},
    )
    assert wrong == {}
    *_, wrong = continued(origin(), number_of_steps=300, training_data_url="https://example.com/clips.zip")
    assert wrong == {}


def test_a_source_of_before_an_option_has_its_default() -> None:
    old = origin()
    old.job.options.ClearField("attention")
    *_, wrong = continued(old, number_of_steps=300)
    assert wrong == {}
    *_, wrong = continued(old, number_of_steps=300, options={"attention": Attention.ATTENTION_FASTEST})
    assert list(wrong) == ["options.attention"]


def test_under_a_linear_schedule_the_number_of_steps_stays() -> None:
    *_, wrong = continued(origin(linear=True), number_of_steps=400)
    [(field, text)] = wrong.items()
    assert field == "spec.extend_prefix.number_of_steps" and "under a linear schedule" in text
    made, *_, wrong = continued(origin(State.STATE_CANCELLED, checkpoint(22), linear=True))
    assert wrong == {} and (made.step, made.billed_steps) == (22, 0)


def test_a_source_without_a_state_or_with_another_kind_of_file_is_refused() -> None:
    *_, wrong = continued(origin(found=[]), number_of_steps=400)
    assert "has no checkpoint" in wrong["continue_from.source"]
    *_, wrong = continued(origin(found=[]), WEIGHTS)
    assert "has no LoRA" in wrong["continue_from.source"]
    whole = origin()
    lora = Origin(whole.job, whole.found, whole.found[1])
    *_, wrong = continued(lora, number_of_steps=400)
    assert "is a KIND_LORA; an exact continuation needs a KIND_CHECKPOINT" in wrong["continue_from.source"]
    metrics = Origin(whole.job, whole.found, whole.found[2])
    *_, wrong = continued(metrics, WEIGHTS)
    assert "is a KIND_METRICS and no LoRA" in wrong["continue_from.source"]
    *_, wrong = continued(whole, 9)  # type: ignore[arg-type]
    assert "9 is none of CONTINUE_MODE_EXACT" in wrong["continue_from.mode"]


def test_weights_alone_take_new_settings_and_new_data_but_no_other_shape() -> None:
    made, spec, options, wrong = continued(
        origin(), WEIGHTS, learning_rate=0.5, number_of_steps=100, dataset="datasets/new", options={"seed": 1}
    )
    assert wrong == {}
    assert (made.artifact, made.training_set, made.billed_steps) == (f"{OLD}/artifacts/lora.safetensors", "", 0)
    assert (spec.dataset, spec.rank, spec.learning_rate, options.seed) == ("datasets/new", 16, 0.5, 1)
    *_, wrong = continued(origin(), WEIGHTS, rank=32, with_audio=True)
    assert wrong["spec.extend_prefix.rank"].startswith("32 is not the LoRA's rank of 16.")
    assert "without audio" in wrong["spec.extend_prefix.with_audio"]
    sounding = origin(with_audio=True)
    *_, wrong = continued(sounding, WEIGHTS, with_audio=False)
    assert "lora-video-only.safetensors" in wrong["spec.extend_prefix.with_audio"]
    part = file("lora-video-only.safetensors", Artifact.KIND_LORA_VIDEO_ONLY, 200)
    *_, wrong = continued(Origin(sounding.job, sounding.found, part), WEIGHTS, with_audio=False)
    assert wrong == {}


def test_a_retry_asks_for_the_same_from_the_last_checkpoint() -> None:
    old = origin(State.STATE_FAILED, [*checkpoint(20), *checkpoint(40)], linear=True)
    retried = old.retried()
    assert (retried.effective_spec, retried.options) == (old.job.effective_spec, old.job.options)
    assert retried.continue_from == ContinueFrom(
        source=OLD,
        mode=EXACT,
        step=40,
        artifact=f"{OLD}/artifacts/checkpoint-000040.safetensors",
        training_set="trainingSets/t",
    )
    assert origin(State.STATE_CANCELLED, []).retried().continue_from.step == 0
    with pytest.raises(NotReady, match="succeeded"):
        origin().retried()


def test_a_retry_of_a_continuation_without_a_checkpoint_goes_on_from_where_that_did() -> None:
    old = origin(State.STATE_FAILED, [])
    before = ContinueFrom(source="jobs/first", mode=EXACT, step=50, artifact="jobs/first/artifacts/c", billed_steps=50)
    old.job.continue_from.CopyFrom(before)
    made = old.retried().continue_from
    assert (made.source, made.step, made.artifact, made.billed_steps) == (OLD, 50, before.artifact, 50)
    own = origin(State.STATE_FAILED, [file(INITIAL_LORA, Artifact.KIND_LORA, 0)])
    own.job.continue_from.CopyFrom(ContinueFrom(source="jobs/first", mode=WEIGHTS, step=50, artifact="jobs/first/x"))
    made = own.retried().continue_from
    assert (made.mode, made.artifact) == (WEIGHTS, f"{OLD}/artifacts/{INITIAL_LORA}")


def test_loras_of_previews_and_requests_stay_and_states_of_two_steps() -> None:
    shown = file("preview-000020-clip-1.mp4", Artifact.KIND_VALIDATION_VIDEO, 20)
    asked = checkpoint(25)
    for item in asked:
        item.requested = True
    found = [*checkpoint(10), *checkpoint(20), shown, *asked, *checkpoint(30), *checkpoint(40)]
    dropped = {item.name.rpartition("/")[2] for item in outdated(found)}
    assert dropped == {
        "checkpoint-000010.safetensors",
        "lora-000010.safetensors",
        "metrics-000010.parquet",
        "checkpoint-000020.safetensors",
        "checkpoint-000025.safetensors",
    }


def test_the_lora_of_a_checkpoint_is_not_the_result_of_the_same_step() -> None:
    assert latest_checkpoint(origin().found)["LORA"].name == f"{OLD}/artifacts/lora-000200.safetensors"
