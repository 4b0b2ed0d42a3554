"""The sheet's JSON, word for word, and what is said about a wrong one."""

import json
from typing import Any

import pytest
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution, ValidationInput
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip
from ltxtrain.v1.train_pb2 import BasePrecision, JobOptions, Optimizer, Schedule
from ltxtrain_client import SheetInvalid, format_sheet, parse_sheet

from tests.clients.far_side import EXAMPLE

# Every parameter of the sheet with a value that is not its default.
WHOLE: dict[str, Any] = {
    "training_data_url": "https://example.com/clips.zip",
    "trigger_phrase": "in slow motion",
    "rank": 64,
    "number_of_steps": 500,
    "learning_rate": 0.0001,
    "conditioning_frames": 17,
    "number_of_frames": 57,
    "frame_rate": 25,
    "resolution": "high",
    "aspect_ratio": "16:9",
    "auto_scale_input": True,
    "split_input_into_scenes": False,
    "split_input_duration_threshold": 12.5,
    "with_audio": True,
    "audio_normalize": False,
    "audio_preserve_pitch": False,
    "validation": [
        {"prompt": "a car", "video_url": "https://example.com/a.mp4"},
        {"prompt": "a boat", "video_url": "https://example.com/b.mp4"},
    ],
    "validation_negative_prompt": "",
    "validation_number_of_frames": 41,
    "validation_frame_rate": 30,
    "validation_resolution": "low",
    "validation_aspect_ratio": "9:16",
    "stg_scale": 0.0,
    "debug_dataset": True,
    "options": {
        "seed": 2**62,
        "on_skipped_clip": "fail",
        "batch_size": 2,
        "gpu_count": 0,
        "base_precision": "nf4",
        "optimizer": "adamw_8bit",
        "schedule": "constant",
        "checkpoint_interval": 100,
        "preview_interval": 0,
        "holdout_fraction": 0.1,
        "preview_schedule_tokens": 0,
        "compile_blocks": True,
        "attention": "fastest",
    },
}


def problems(source: str | bytes | dict[str, Any], *settings: str) -> dict[str, str]:
    with pytest.raises(SheetInvalid) as raised:
        parse_sheet(source, settings)
    return {problem.path: problem.description for problem in raised.value.problems}


def test_the_sheets_example_is_taken_word_for_word() -> None:
    sheet = parse_sheet(EXAMPLE)
    assert sheet.spec == ExtendPrefixSpec(
        training_data_url="https://example.com/clips.zip",
        rank=32,
        number_of_steps=2000,
        learning_rate=0.0002,
        conditioning_frames=9,
        number_of_frames=89,
        frame_rate=24,
        resolution=Resolution.RESOLUTION_MEDIUM,
        aspect_ratio=AspectRatio.ASPECT_RATIO_1_1,
        with_audio=False,
        validation=[
            ValidationInput(prompt="a car accelerating down a road", video_url="https://example.com/opening.mp4")
        ],
    )
    assert sheet.options == JobOptions()
    assert not sheet.spec.HasField("auto_scale_input")


def test_every_parameter_goes_there_and_back() -> None:
    sheet = parse_sheet(WHOLE)
    both = {*ExtendPrefixSpec.DESCRIPTOR.fields_by_name, *JobOptions.DESCRIPTOR.fields_by_name}
    assert both - {"dataset"} == {*WHOLE, *WHOLE["options"]} - {"options"}
    assert format_sheet(sheet.spec, sheet.options) == WHOLE
    assert parse_sheet(json.dumps(WHOLE)) == sheet


def test_what_is_given_is_present_though_it_is_zero() -> None:
    sheet = parse_sheet(WHOLE)
    assert sheet.spec.HasField("validation_negative_prompt") and sheet.spec.HasField("stg_scale")
    assert sheet.options.HasField("gpu_count") and sheet.options.HasField("preview_interval")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("resolution", "low", Resolution.RESOLUTION_LOW),
        ("resolution", "RESOLUTION_LOW", Resolution.RESOLUTION_LOW),
        ("aspect_ratio", "16:9", AspectRatio.ASPECT_RATIO_16_9),
        ("aspect_ratio", "ASPECT_RATIO_9_16", AspectRatio.ASPECT_RATIO_9_16),
        ("validation_resolution", "high", Resolution.RESOLUTION_HIGH),
        ("options.on_skipped_clip", "continue", OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE),
        ("options.base_precision", "int8", BasePrecision.BASE_PRECISION_INT8),
        ("options.optimizer", "adamw", Optimizer.OPTIMIZER_ADAMW),
        ("options.schedule", "SCHEDULE_LINEAR", Schedule.SCHEDULE_LINEAR),
    ],
)
def test_words_and_names_of_enum_values(key: str, text: str, value: int) -> None:
    sheet = parse_sheet({}, [f"{key}={text}"])
    where, _, field = key.rpartition(".")
    assert getattr(sheet.options if where else sheet.spec, field) == value


def test_every_fault_comes_at_once_with_its_place() -> None:
    text = """{
      "rnk": 3, "seed": 3, "rank": "thirty-two", "resolution": "huge", "with_audio": 1, "learning_rate": NaN,
      "frame_rate": 24.5, "number_of_steps": 99999999999, "number_of_steps": 99999999999,
      "validation": [{"prompt": 3, "url": "x"}, 4], "options": {"seed": true, "optimizer": "sgd"},
      "trigger_phrase": ["a"], "validation_negative_prompt": 0, "stg_scale": "1.0"
    }"""
    assert problems(text, "rank", "validation[7].prompt=x", "options.seeed=4") == {
        "number_of_steps": "must be a whole number, not 99999999999",
        "rank": 'must be a whole number, not "thirty-two"',
        "validation[7].prompt": "there is no such place in the sheet",
        "rnk": "is not known; did you mean rank?",
        "seed": 'belongs into "options"',
        "resolution": 'must be one of "low", "medium", "high", not "huge"',
        "with_audio": "must be true or false, not 1",
        "learning_rate": "must be a finite number, not NaN",
        "frame_rate": "must be a whole number, not 24.5",
        "validation[0].prompt": "must be text, not 3",
        "validation[0].url": "is not known",
        "validation[1]": "must be an object, not 4",
        "options.seed": "must be a whole number, not true",
        "options.optimizer": 'must be one of "adamw", "adamw_8bit", not "sgd"',
        "options.seeed": "is not known; did you mean seed?",
        "trigger_phrase": "must be text, not a list",
        "validation_negative_prompt": "must be text, not 0",
        "stg_scale": 'must be a finite number, not "1.0"',
    }


def test_a_key_given_twice_and_a_setting_without_a_value_are_faults() -> None:
    with pytest.raises(SheetInvalid, match="rank: is given twice"):
        parse_sheet('{"rank": 8, "rank": 16}')
    with pytest.raises(SheetInvalid, match="expected key=value"):
        parse_sheet("{}", ["rank"])


def test_one_source_of_training_data() -> None:
    given = {"training_data_url": "https://example.com/a.zip", "dataset": "datasets/1"}
    assert problems(given) == {"dataset": "cannot be given together with training_data_url"}


@pytest.mark.parametrize(
    "source",
    ["", " \n", "{", "[]", "3", "null", '"x"', "[" * 10**5, "1" * 5000, b"", b"PK\x03\x04\xff", b"{\xe4}", b"\0\1"],
)
def test_what_is_no_json_object_is_said_so(source: str | bytes) -> None:
    assert list(problems(source)) == [""]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_a_sheet_in_any_encoding_of_json(encoding: str) -> None:
    assert parse_sheet('{"trigger_phrase": "ä"}'.encode(encoding)).spec.trigger_phrase == "ä"


def test_half_a_character_is_no_text() -> None:
    assert problems('{"trigger_phrase": "\\ud800"}') == {"trigger_phrase": 'must be text in Unicode, not "\ud800"'}


@pytest.mark.parametrize(
    ("key", "near"),
    [("option.seed", "options"), ("optons.seed", "options"), ("sed", "options.seed"), ("valid", "validation")],
)
def test_what_may_be_meant_is_among_all_names(key: str, near: str) -> None:
    (description,) = problems({}, f"{key}=3").values()
    assert description == f"is not known; did you mean {near}?"


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" + "0" * 400])
def test_numbers_beyond_measure_are_no_crash(number: str) -> None:
    assert problems(f'{{"rank": {number}, "learning_rate": {number}}}').keys() == {"rank", "learning_rate"}


def test_null_is_not_given() -> None:
    assert parse_sheet({"rank": None, "validation": None, "options": None}).spec == ExtendPrefixSpec()
    assert parse_sheet({"rank": 8}, ["rank=null"]).spec == ExtendPrefixSpec()


def test_settings_change_the_sheet() -> None:
    sheet = parse_sheet(
        EXAMPLE,
        [
            "rank=64",
            "learning_rate=1e-4",
            "with_audio=true",
            "trigger_phrase=42",
            "validation[0].prompt=a = b",
            "validation[1].video_url=https://example.com/c.mp4?a=1",
            "options.seed=7",
        ],
    )
    assert (sheet.spec.rank, sheet.spec.learning_rate, sheet.spec.with_audio) == (64, 1e-4, True)
    assert sheet.spec.trigger_phrase == "42"
    assert sheet.spec.validation[0].prompt == "a = b"
    assert sheet.spec.validation[0].video_url == "https://example.com/opening.mp4"
    assert sheet.spec.validation[1].video_url == "https://example.com/c.mp4?a=1"
    assert sheet.options.seed == 7


def test_a_setting_replaces_a_list() -> None:
    assert list(parse_sheet(EXAMPLE, ["validation=[]"]).spec.validation) == []


def test_the_source_is_left_as_it_was() -> None:
    source: dict[str, Any] = {"validation": [{"prompt": "a", "video_url": "b"}], "options": {"seed": 1}}
    parse_sheet(source, ["validation[0].prompt=c", "options.seed=2"])
    assert source == {"validation": [{"prompt": "a", "video_url": "b"}], "options": {"seed": 1}}
