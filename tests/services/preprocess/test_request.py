from typing import Any

from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.preprocess_pb2 import CreateTrainingSetRequest, Geometry, OnSkippedClip, PreprocessSettings
from ltxtrain.v1.task_pb2 import TaskSpec

from ltxtrain_services.preprocess.request import requested
from ltxtrain_services.runtime.errors import InvalidSpec, reason_name
from ltxtrain_services.runtime.extend_prefix import preprocess_settings, resolve
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES


def request(**changes: Any) -> CreateTrainingSetRequest:
    geometry = Geometry(width=512, height=288, frame_count=17, frame_rate=24)
    settings = PreprocessSettings(training=geometry, validation=geometry, conditioning_frames=9)
    made = CreateTrainingSetRequest(dataset="datasets/a", validation_dataset="datasets/b", settings=settings)
    made.MergeFrom(CreateTrainingSetRequest(settings=PreprocessSettings(**changes)))
    return made


def faults(made: CreateTrainingSetRequest) -> dict[str, str]:
    try:
        requested(made)
    except InvalidSpec as error:
        return {violation.field: reason_name(violation.reason) for violation in error.violations}
    return {}


def test_a_whole_request_has_no_fault() -> None:
    assert faults(request(split_above_seconds=30.0)) == {}


def test_a_geometry_without_validation_is_enough() -> None:
    made = request()
    made.validation_dataset = ""
    made.settings.ClearField("validation")
    assert faults(made) == {}


def test_every_fault_comes_back_at_once() -> None:
    made = request(split_above_seconds=-1.0, on_skipped_clip=9)
    made.dataset, made.validation_dataset = "", "jobs/b"
    made.settings.training.CopyFrom(Geometry(width=500, height=0, frame_count=16, frame_rate=0))
    made.settings.validation.CopyFrom(Geometry(width=512, height=288, frame_count=0, frame_rate=24))
    made.settings.conditioning_frames = 10
    assert faults(made) == {
        "dataset": "FIELD_REQUIRED",
        "validation_dataset": "FIELD_REQUIRED",
        "settings.training.width": "FIELD_OUT_OF_RANGE",
        "settings.training.height": "FIELD_OUT_OF_RANGE",
        "settings.training.frame_count": "NOT_ONE_MODULO_EIGHT",
        "settings.training.frame_rate": "FIELD_OUT_OF_RANGE",
        "settings.validation.frame_count": "FIELD_OUT_OF_RANGE",
        "settings.conditioning_frames": "NOT_ONE_MODULO_EIGHT",
        "settings.split_above_seconds": "FIELD_OUT_OF_RANGE",
        "settings.on_skipped_clip": "FIELD_NOT_ALLOWED",
    }


def test_the_prefix_leaves_something_to_generate() -> None:
    made = request(conditioning_frames=17)
    assert faults(made) == {"settings.conditioning_frames": "PREFIX_COVERS_CLIP"}


def test_texts_have_a_limit() -> None:
    long = "x" * (MAX_TEXT_BYTES + 1)
    assert faults(request(trigger_phrase=long, negative_prompt=long, validation_prompts=["short", long])) == {
        "settings.trigger_phrase": "FIELD_OUT_OF_RANGE",
        "settings.negative_prompt": "FIELD_OUT_OF_RANGE",
        "settings.validation_prompts[1]": "FIELD_OUT_OF_RANGE",
    }
    assert faults(request(trigger_phrase=long[1:])) == {}


def by_spec(**changes: Any) -> CreateTrainingSetRequest:
    spec = ExtendPrefixSpec(training_data_url="https://example.com/clips.zip", **changes)
    return CreateTrainingSetRequest(dataset="datasets/a", spec=TaskSpec(extend_prefix=spec), fit_only=True)


def test_a_spec_gives_the_settings_of_a_job_of_it() -> None:
    made = by_spec(number_of_frames=50, trigger_phrase="x", validation=[ValidationInput(prompt="a coast")])
    found = requested(made)
    assert (found.dataset, found.settings.fit_only) == ("datasets/a", True)
    assert (found.settings.training.frame_count, found.settings.trigger_phrase) == (49, "x")
    assert not found.settings.validation_prompts, "there are no clips for them"
    made.validation_dataset = "datasets/b"
    resolved, wrong = resolve(made.spec.extend_prefix, lambda url: None)
    assert [item.field for item in wrong] == ["spec.extend_prefix.validation[0].video_url"], "the job's own business"
    expected = preprocess_settings(resolved, OnSkippedClip.ON_SKIPPED_CLIP_UNSPECIFIED)
    expected.fit_only = True
    assert requested(made).settings == expected and [*expected.validation_prompts] == ["a coast"]


def test_a_dataset_may_be_named_by_the_spec() -> None:
    made = by_spec(dataset="datasets/c")
    made.dataset = ""
    assert requested(made).dataset == "datasets/c"


def test_a_wrong_spec_is_told_with_everything_else() -> None:
    made = by_spec(rank=7, conditioning_frames=10, resolution=99, aspect_ratio=-1)
    made.dataset, made.display_name, made.request_id = "", "a\nb", "1"
    made.on_skipped_clip = 9  # type: ignore[assignment]
    made.labels["Upper"] = ""
    assert faults(made) == {
        "spec.extend_prefix.rank": "FIELD_NOT_ALLOWED",
        "spec.extend_prefix.resolution": "FIELD_NOT_ALLOWED",
        "spec.extend_prefix.aspect_ratio": "FIELD_NOT_ALLOWED",
        "spec.extend_prefix.conditioning_frames": "NOT_ONE_MODULO_EIGHT",
        "dataset": "FIELD_REQUIRED",
        "on_skipped_clip": "FIELD_NOT_ALLOWED",
        "request_id": "FIELD_NOT_ALLOWED",
        "display_name": "FIELD_NOT_ALLOWED",
        'labels["Upper"]': "FIELD_NOT_ALLOWED",
    }


def test_something_has_to_say_what_is_to_be_made() -> None:
    assert faults(CreateTrainingSetRequest(dataset="datasets/a")) == {"spec": "FIELD_REQUIRED"}


def test_openings_alone_need_no_dataset() -> None:
    """By settings, as a continuation of clips asks for them; a spec is of a training."""
    made = request()
    made.dataset = ""
    assert faults(made) == {} and requested(made).dataset == ""
    made.validation_dataset = ""
    assert faults(made) == {"dataset": "FIELD_REQUIRED"}
    made = CreateTrainingSetRequest(dataset="datasets/a")
    made.spec.continue_clips.sampling_steps = 30
    assert faults(made) == {"spec.continue_clips": "FIELD_NOT_ALLOWED"}
