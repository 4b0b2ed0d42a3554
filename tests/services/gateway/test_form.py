"""The form says what the service does: its defaults and ranges come from the contract's comments alone."""

from typing import Any

import pytest
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import Job, JobOptions
from ltxtrain_client.enum_words import word

from ltxtrain_services.gateway.form import Field, clip_form, form
from ltxtrain_services.runtime.extend_prefix import OPTIONS, SPEC
from ltxtrain_services.runtime.parameters import Named, Number, Text

FIELDS = {field.path: field for group in form({}) for field in group.fields}
RULES = [(rule.name, rule) for rule in SPEC] + [(f"options.{rule.name}", rule) for rule in OPTIONS]
# Said in words: one is built in, the other follows the steps.
IN_WORDS = {"validation_negative_prompt", "options.preview_interval"}


def test_every_field_of_the_contract_is_an_input() -> None:
    expected = {field.name for field in ExtendPrefixSpec.DESCRIPTOR.fields} - {"dataset", "validation"}
    expected |= {f"options.{field.name}" for field in JobOptions.DESCRIPTOR.fields}
    expected |= {f"validation[{index}].{name}" for index in range(2) for name in ("prompt", "video_url")}
    assert FIELDS.keys() == expected
    assert all(field.help for field in FIELDS.values())
    assert all(group.title for group in form({}))
    # Help is more than a default.
    assert all(field.help.partition("Default:")[0] for field in FIELDS.values())
    labels = {FIELDS[path].label for path in ("training_data_url", "options.gpu_count", "stg_scale", "rank")}
    assert labels == {"training data URL", "GPU count", "STG scale", "rank"}


@pytest.mark.parametrize(("path", "rule"), RULES, ids=[path for path, _ in RULES])
def test_defaults_and_ranges_are_the_services(path: str, rule: object) -> None:
    field = FIELDS[path]
    if isinstance(rule, Named):
        message = JobOptions if path.startswith("options.") else ExtendPrefixSpec
        enum: Any = message.DESCRIPTOR.fields_by_name[rule.name].enum_type
        assert field.kind == "choice" and field.default.lower() == word(enum, rule.default)
    elif isinstance(rule, Number):
        assert path in IN_WORDS or float(field.default) == rule.default
        if field.minimum:
            assert (float(field.minimum), float(field.maximum)) == (rule.minimum, rule.maximum)
    elif isinstance(rule, Text):
        assert path in IN_WORDS or field.default == rule.default
    elif field.kind == "flag":
        assert field.default == str(getattr(rule, "default")).lower()  # noqa: B009


def test_the_form_of_a_clip_speaks_of_its_own_inputs() -> None:
    """A default stands in its place; a name of the contract, or what an empty input cannot say, helps nobody."""
    job = Job(options=JobOptions(seed=7))
    spec = job.effective_spec.extend_prefix
    spec.validation_number_of_frames, spec.conditioning_frames, spec.trigger_phrase = 49, 17, "night falls,"
    shown = {field.path: field for group in clip_form(job) for field in group.fields}
    assert not any("Default" in field.help or "empty string" in field.help for field in shown.values())
    assert (shown["number_of_frames"].default, shown["options.seed"].default) == ("49", "7")
    opening = shown["openings[0].video_url"]
    assert opening.name == "opening video" and "first 17 frames" in opening.help
    assert "another video" in shown["options.seed"].help and shown["openings[0].prompt"].value == "night falls, "


def test_a_sheet_fills_the_form() -> None:
    sheet = {"rank": 64, "with_audio": True, "options": {"seed": 7}, "validation": [{"prompt": "p"}]}
    filled: dict[str, Field] = {field.path: field for group in form(sheet) for field in group.fields}
    shown = ("rank", "with_audio", "options.seed", "validation[0].prompt")
    assert [filled[path].value for path in shown] == ["64", "true", "7", "p"]
    assert not filled["validation[1].prompt"].value and not filled["number_of_steps"].value
