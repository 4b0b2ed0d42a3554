from typing import Any

from ltxtrain.v1.preprocess_pb2 import CreateTrainingSetRequest, Geometry, PreprocessSettings

from ltxtrain_services.preprocess.request import requested
from ltxtrain_services.runtime.errors import InvalidSpec, reason_name
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
