import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.type.money_pb2 import Money
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution, ValidationInput
from ltxtrain.v1.train_pb2 import BasePrecision, JobOptions, Optimizer

from ltxtrain_services.runtime.errors import InvalidSpec, reason_name
from ltxtrain_services.runtime.extend_prefix import (
    LIBRARIES,
    OPTIONS,
    SPEC,
    Offer,
    billable_units,
    check_offered,
    price,
    resolve,
    resolve_options,
)
from ltxtrain_services.runtime.parameters import Choice, Flag, Named, Number, Text
from ltxtrain_services.runtime.requests import MAX_TEXT_BYTES, check_names
from ltxtrain_services.runtime.settings import SettingsError, read_settings

PROTOS = Path(__file__).parents[3] / "protos/ltxtrain/v1"
URL = "https://example.com/clips.zip"


def spec(**fields: Any) -> ExtendPrefixSpec:
    return ExtendPrefixSpec(**{"training_data_url": URL, **fields})


def allow(_url: str) -> None:
    return None


def violations(given: ExtendPrefixSpec) -> dict[str, str]:
    return {item.field: reason_name(item.reason) for item in resolve(given, allow)[1]}


def test_defaults_are_the_sheets() -> None:
    resolved, wrong = resolve(spec(), allow)
    assert not wrong
    assert json_format.MessageToDict(resolved, preserving_proto_field_name=True) | {
        "validation_negative_prompt": ""
    } == {
        "training_data_url": URL,
        "rank": 32,
        "number_of_steps": 2000,
        "learning_rate": 0.0002,
        "conditioning_frames": 9,
        "number_of_frames": 89,
        "frame_rate": 24,
        "resolution": "RESOLUTION_MEDIUM",
        "aspect_ratio": "ASPECT_RATIO_1_1",
        "auto_scale_input": False,
        "split_input_into_scenes": True,
        "split_input_duration_threshold": 30.0,
        "with_audio": False,
        "audio_normalize": True,
        "audio_preserve_pitch": True,
        "validation_negative_prompt": "",
        "validation_number_of_frames": 89,
        "validation_frame_rate": 24,
        "validation_resolution": "RESOLUTION_HIGH",
        "validation_aspect_ratio": "ASPECT_RATIO_1_1",
        "stg_scale": 1.0,
        "debug_dataset": False,
    }
    assert resolved.validation_negative_prompt


@pytest.mark.parametrize(("given", "snapped"), [(9, 9), (16, 9), (17, 17), (89, 89), (96, 89), (121, 121)])
def test_frame_counts_snap_down(given: int, snapped: int) -> None:
    resolved, _ = resolve(spec(number_of_frames=given, validation_number_of_frames=given), allow)
    assert (resolved.number_of_frames, resolved.validation_number_of_frames) == (snapped, snapped)


@pytest.mark.parametrize("rule", [rule for rule in SPEC if isinstance(rule, Number)], ids=lambda rule: rule.name)
def test_ranges_hold_at_their_ends(rule: Number) -> None:
    step = 1 if isinstance(rule.minimum, int) and not rule.above else 1e-9
    outside = [rule.minimum if rule.above else rule.minimum - step, rule.maximum + (1 if step == 1 else 1e-6)]
    if step != 1:
        outside += [math.nan, math.inf]
    for value in outside:
        assert violations(spec(**{rule.name: value}))[f"spec.extend_prefix.{rule.name}"] == "FIELD_OUT_OF_RANGE"
    inside = [rule.maximum] if rule.above else [rule.minimum, rule.maximum]
    for value in inside:
        assert violations(spec(**{rule.name: value})).get(f"spec.extend_prefix.{rule.name}") in (
            None,
            "PREFIX_COVERS_CLIP",
            "NOT_ONE",
        )


@pytest.mark.parametrize("rank", [0, 1, 7, 33, 129, -8])
def test_ranks_are_a_set(rank: int) -> None:
    assert violations(spec(rank=rank)) == {"spec.extend_prefix.rank": "FIELD_NOT_ALLOWED"}


@pytest.mark.parametrize("frames", [10, 16, 24, 120])
def test_the_prefix_is_refused_not_rounded(frames: int) -> None:
    assert violations(spec(conditioning_frames=frames, number_of_frames=121)) == {
        "spec.extend_prefix.conditioning_frames": "NOT_ONE_MODULO_EIGHT"
    }


@pytest.mark.parametrize(
    ("fields", "covers"),
    [
        ({"conditioning_frames": 89}, True),
        ({"conditioning_frames": 89, "number_of_frames": 96}, True),
        ({"conditioning_frames": 81}, False),
        ({"number_of_frames": 16}, True),
        ({"conditioning_frames": 97, "number_of_frames": 121}, False),
        ({"conditioning_frames": 97, "number_of_frames": 121, "validation_number_of_frames": 89}, True),
        ({"conditioning_frames": 97, "number_of_frames": 121, "validation": [ValidationInput(video_url=URL)]}, True),
    ],
)
def test_the_prefix_leaves_something_to_generate(fields: dict[str, Any], covers: bool) -> None:
    expected = {"spec.extend_prefix.conditioning_frames": "PREFIX_COVERS_CLIP"} if covers else {}
    assert violations(spec(**fields)) == expected


def test_texts_have_a_limit() -> None:
    at_most, above = "ä" * (MAX_TEXT_BYTES // 2), "ä" * (MAX_TEXT_BYTES // 2) + "x"
    for text, found in ((at_most, {}), (above, "FIELD_OUT_OF_RANGE")):
        for name in ("trigger_phrase", "validation_negative_prompt"):
            assert violations(spec(**{name: text})) == (found and {f"spec.extend_prefix.{name}": found})
        entries = [ValidationInput(prompt="", video_url=URL), ValidationInput(prompt=text, video_url=URL)]
        assert violations(spec(validation=entries)) == (found and {"spec.extend_prefix.validation[1].prompt": found})


def test_sources_are_checked() -> None:
    given = ExtendPrefixSpec(validation=[ValidationInput(video_url=URL), ValidationInput(), ValidationInput()])
    assert violations(given) == {
        "spec.extend_prefix.training_data_url": "FIELD_REQUIRED",
        "spec.extend_prefix.validation": "TOO_MANY_VALIDATION_INPUTS",
        "spec.extend_prefix.validation[1].video_url": "FIELD_REQUIRED",
        "spec.extend_prefix.validation[2].video_url": "FIELD_REQUIRED",
    }
    assert violations(ExtendPrefixSpec(dataset="datasets/1")) == {}
    _, wrong = resolve(spec(), lambda url: "no")
    assert [(item.field, reason_name(item.reason)) for item in wrong] == [
        ("spec.extend_prefix.training_data_url", "URL_NOT_ALLOWED")
    ]


def test_every_field_wrong_at_once_fits_into_a_status() -> None:
    fields: dict[str, Any] = {}
    for rule in SPEC:
        if isinstance(rule, Number):
            fields[rule.name] = rule.maximum + 1
        elif isinstance(rule, Choice | Named):
            fields[rule.name] = 77
    given = ExtendPrefixSpec(**fields, validation=[ValidationInput()] * 3)
    _, wrong = resolve(given, allow)
    assert len({item.field for item in wrong}) == len(wrong) == len(fields) + 5
    assert InvalidSpec(wrong).status().ByteSize() < 8 * 1024


def test_an_explicit_zero_is_not_a_default() -> None:
    assert resolve(spec(stg_scale=0.0), allow)[0].stg_scale == 0.0
    assert resolve(spec(validation_negative_prompt=""), allow)[0].validation_negative_prompt == ""
    assert violations(spec(number_of_steps=0)) == {"spec.extend_prefix.number_of_steps": "FIELD_OUT_OF_RANGE"}


def test_options_have_defaults_and_ranges() -> None:
    resolved, wrong = resolve_options(JobOptions(), 2000)
    assert not wrong and (resolved.seed, resolved.batch_size, resolved.preview_interval) == (42, 1, 500)
    assert resolve_options(JobOptions(preview_interval=0), 2000)[0].preview_interval == 0


@pytest.mark.parametrize(
    ("clips", "gpus", "compiled", "wrong"),
    [
        (4, 2, True, []),
        (4, 3, False, ["options.gpu_count"]),
        # More GPUs than clips share each clip.
        (1, 4, False, []),
        (2, 16, False, []),
        (1, 3, False, ["options.gpu_count"]),
        (4, 6, False, ["options.gpu_count"]),
        (1, 16, False, ["options.gpu_count"]),
        (1, 2, True, ["options.compile_blocks"]),
    ],
)
def test_gpus_divide_the_clips_or_share_them(clips: int, gpus: int, compiled: bool, wrong: list[str]) -> None:
    options = JobOptions(batch_size=clips, gpu_count=gpus, compile_blocks=compiled)
    assert [item.field for item in resolve_options(options, 2000)[1]] == wrong


@pytest.mark.parametrize(("steps", "units"), [(100, 100), (2000, 2000), (50, 100)])
def test_units(steps: int, units: int) -> None:
    assert billable_units(steps) == units


def comments(file: str, message: str) -> dict[str, str]:
    body = (PROTOS / file).read_text().split(f"message {message} {{", 1)[1].split("\n}", 1)[0]
    found: dict[str, str] = {}
    comment: list[str] = []
    for line in map(str.strip, body.splitlines()):
        if line.startswith("//"):
            comment.append(line[2:].strip())
        elif match := re.match(r"(?:optional |repeated )?[\w.]+ (\w+) = \d+[ ;]", line):
            found[match[1]] = " ".join(comment)
            comment = []
        else:
            comment = []
    return found


NAMES = {Resolution: ("low", "medium", "high"), AspectRatio: ("16:9", "1:1", "9:16")}


@pytest.mark.parametrize(
    ("file", "message", "rules"),
    [
        ("extend_prefix.proto", "ExtendPrefixSpec", SPEC),
        ("train.proto", "JobOptions", OPTIONS),
    ],
)
def test_the_contracts_comments_say_what_the_table_says(file: str, message: str, rules: Sequence[Any]) -> None:
    documented = comments(file, message)
    for rule in rules:
        text = documented[rule.name]
        if rule.rule and rule.name != "seed":
            assert rule.rule in text, rule.name
        if rule.name in {"validation_negative_prompt", "preview_interval"}:
            continue
        if isinstance(rule, Named):
            default = NAMES[rule.kind][rule.default - 1] if rule.kind in NAMES else None
        elif isinstance(rule, Text):
            default = f'"{rule.default}"'
        elif isinstance(rule, Flag):
            default = str(rule.default).lower()
        else:
            default = str(rule.default)
        if default is not None:
            assert f"Default: {default}." in text, rule.name
    assert {rule.name for rule in rules} | {"training_data_url", "dataset", "validation"} >= set(documented)


def readme_rows() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|$", (PROTOS.parents[2] / "README.md").read_text(), re.M)
    return {name: (default.strip("`"), allowed) for name, default, allowed in rows}


@pytest.mark.parametrize("rule", [*SPEC, *OPTIONS], ids=lambda rule: rule.name)
def test_the_readmes_tables_say_what_the_table_says(rule: Number | Choice | Named | Flag | Text) -> None:
    default, allowed = readme_rows()[rule.name]
    if isinstance(rule, Number) and rule.name not in {"seed", "learning_rate"}:
        assert f"{rule.minimum}..{rule.maximum}" in allowed
    if isinstance(rule, Choice):
        assert rule.rule in allowed
    if isinstance(rule, Number | Choice) and rule.name != "preview_interval":
        assert default == str(rule.default)
    if isinstance(rule, Flag):
        assert default == str(rule.default).lower()
    if isinstance(rule, Text):
        assert str(MAX_TEXT_BYTES) in allowed


@pytest.mark.parametrize(
    ("setting", "units", "expected"),
    [
        ("0.0062 USD", 2000, Money(currency_code="USD", units=12, nanos=400_000_000)),
        ("1 JPY", 100, Money(currency_code="JPY", units=100)),
        ("0.000000001 EUR", 100, Money(currency_code="EUR", nanos=100)),
        ("", 100, None),
    ],
)
def test_the_price_is_exact_and_only_where_the_operator_set_one(
    setting: str, units: int, expected: Money | None
) -> None:
    settings = read_settings({"LTXTRAIN_UNIT_PRICE": setting})
    assert price(units, settings.unit_price) == expected


@pytest.mark.parametrize("wrong", ["0.0062", "USD", "-1 USD", "1e3 USD", "0.0062 usd", "nan USD", "0.0000000001 USD"])
def test_a_price_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"LTXTRAIN_UNIT_PRICE.*amount and a currency, as in 0.0062 USD"):
        read_settings({"LTXTRAIN_UNIT_PRICE": wrong})


@pytest.mark.parametrize(
    ("options", "gpus", "expected"),
    [
        (JobOptions(gpu_count=4, batch_size=4), 4, {}),
        (JobOptions(gpu_count=8, batch_size=8), 4, {"options.gpu_count": "the cluster has 4."}),
        (JobOptions(gpu_count=2, batch_size=2), 0, {"options.gpu_count": "the cluster has none, and 1 on CPUs"}),
        (JobOptions(base_precision=BasePrecision.BASE_PRECISION_NF4), 0, {"options.base_precision": "a CUDA device"}),
        (JobOptions(base_precision=BasePrecision.BASE_PRECISION_BF16), 0, {}),
    ],
)
def test_what_the_cluster_does_not_offer_is_told_at_submit(
    options: JobOptions, gpus: int, expected: dict[str, str]
) -> None:
    resolved, wrong = resolve_options(options, 100)
    assert not wrong
    found = {item.field: item.description for item in check_offered(resolved, Offer(gpus or 1, gpus > 0))}
    assert found.keys() == expected.keys() and all(part in found[field] for field, part in expected.items())


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIBRARIES, "fp8", "no_such_library")
    monkeypatch.setitem(LIBRARIES, "adamw_8bit", "no_such_library")
    asked = JobOptions(base_precision=BasePrecision.BASE_PRECISION_FP8, optimizer=Optimizer.OPTIMIZER_ADAMW_8BIT)
    found = check_offered(resolve_options(asked, 100)[0], Offer(1))
    assert [item.field for item in found] == ["options.base_precision", "options.optimizer"]
    assert all("needs no_such_library, which is not installed" in item.description for item in found)


def test_names_and_labels_have_their_form() -> None:
    good = {"a": "", "project": "Ä 車", "team/k-1_x.y": "x" * 63}
    assert check_names("Drone style 🎬", good) == [] == check_names("x" * 128, {})
    wrong = {"": "x", "Ab": "x", "1a": "x", "a" * 64: "x", "b": "x" * 64, "c": "a\u2028b", "d\n": "x"}
    fields = {violation.field for violation in check_names("x" * 129, wrong)}
    assert fields == {"display_name"} | {f"labels[{json.dumps(key)}]" for key in wrong}
    many = {f"k{number}": "" for number in range(65)}
    assert [item.field for item in check_names("\x00", many)] == ["display_name", "labels"]
