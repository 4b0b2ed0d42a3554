"""The sheet as a form, made from the contract: names and ranges from its messages, the rest from its source's comments.

Ranges, defaults and help are said there once. What is sent is checked by the service, whatever a form allows.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from typing import Any
from urllib.parse import quote, urlencode

from google.protobuf.descriptor import FieldDescriptor
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution, ValidationInput
from ltxtrain.v1.train_pb2 import ContinueMode, CreateJobRequest, Job, JobOptions, Schedule
from ltxtrain_client.enum_words import word, words
from ltxtrain_client.sheet import OPTIONS, Sheet, SheetInvalid, format_sheet, parse_sheet

from ltxtrain_services.runtime.rules import allowed, limits, max_items, rules_of

MAX_VALIDATION = max_items(ExtendPrefixSpec, "validation")
# In an address, whose length servers bound.
MAX_QUERY_CHARS = 4_000
# The title of each group by the field that it begins with; the contract sets groups apart by blank lines.
TITLES = {
    "training_data_url": "Data",
    "rank": "Training",
    "number_of_frames": "Clips",
    "with_audio": "Audio",
    "validation": "Previews",
    "debug_dataset": "Extras",
    "seed": "Run",
}
# Not inputs of their own: one is set by a link, the other is a list.
APART = frozenset({"dataset", "validation"})
UPLOADED = frozenset({"training_data_url", "video_url"})
# Of a continuation, those that a person may want to change.
CLIP_INPUTS = frozenset(
    {
        "number_of_frames",
        "resolution",
        "aspect_ratio",
        "negative_prompt",
        "guidance_scale",
        "sampling_steps",
        "base_model",
    }
)
# Beside the sheet, by their places in a CreateJobRequest.
NAME, SOURCE, MODE = "display_name", "continue_from.source", "continue_from.mode"
EXACT, WEIGHTS = ContinueMode.CONTINUE_MODE_EXACT, ContinueMode.CONTINUE_MODE_WEIGHTS
MODE_HELP = (
    "exact: more steps of the same training, for which its schedule has to be constant; the number of steps counts "
    "from its first. weights: a new training that starts from its LoRA; every setting but rank and audio may change."
)

# Words of names that are spelled otherwise by people.
SPELLED = {"url": "URL", "gpu": "GPU", "stg": "STG"}

_FIELD = re.compile(r"\s+(?:optional |repeated )?[\w.]+ (\w+) = \d+(?:;| \[.*)")
# Where the contract's words are about more than a continuation has, or about what an input cannot say.
CLIP_HELP = {
    "negative_prompt": "What the video is not to show or to look like.",
    f"{OPTIONS}.seed": "Of the noise: another seed makes another video.",
}
_DEFAULT = re.compile(r"Default: (.+?)\.(?:\s|$)")


@dataclass(frozen=True)
class Field:
    """One input."""

    path: str  # in the sheet, e.g. "options.seed" or "validation[0].prompt"
    name: str
    kind: str  # choice, flag, number, text, long or file
    help: str
    default: str  # as the contract's comment says it; empty: none is said
    minimum: str = ""
    maximum: str = ""
    whole: bool = False
    choices: tuple[str, ...] = ()
    required: bool = False
    value: str = ""  # given by a sheet that the form begins with

    @property
    def label(self) -> str:
        return " ".join(SPELLED.get(part, part) for part in self.name.split("_"))


@dataclass(frozen=True)
class Group:
    title: str
    fields: tuple[Field, ...]


def form(sheet: Mapping[str, Any]) -> list[Group]:
    """Groups of inputs, filled from a sheet's JSON."""
    options = sheet.get(OPTIONS) or {}
    groups = [*_groups("extend_prefix.proto", ExtendPrefixSpec), *_groups("train.proto", JobOptions, f"{OPTIONS}.")]
    filled = [
        Group(group.title, tuple(_filled(item, options if item.path != item.name else sheet) for item in group.fields))
        for group in groups
    ]
    entries = sheet.get("validation") or []
    return [_with_entries(group, entries) if group.title == TITLES["validation"] else group for group in filled]


def clip_form(origin: Job) -> list[Group]:
    """Groups of inputs for a clip that the job's LoRA continues; what is left out is as in its previews."""
    spec = origin.effective_spec.extend_prefix
    usual = {
        "number_of_frames": str(spec.validation_number_of_frames),
        "resolution": word(Resolution.DESCRIPTOR, spec.validation_resolution),
        "aspect_ratio": word(AspectRatio.DESCRIPTOR, spec.validation_aspect_ratio),
        "negative_prompt": spec.validation_negative_prompt,
        f"{OPTIONS}.seed": str(origin.options.seed),
    }
    prompt, clip = _fields("extend_prefix.proto", ValidationInput, "openings[0].")
    prompt = replace(
        prompt,
        value=f"{spec.trigger_phrase} " if spec.trigger_phrase else "",
        help="What happens next, behind the trigger phrase, as the captions of the training say it.",
    )
    # The contract's words are about the previews of a training, whose fields this form does not have.
    clip = replace(
        clip,
        name="opening video",
        help=f"Required. Its first {spec.conditioning_frames} frames, at {spec.validation_frame_rate} a second, are "
        "continued. A file that is dropped here, an https:// address, or dataset:datasets/ID/clips/CLIP.",
    )
    inputs = [item for item in _fields("continue_clips.proto", ContinueClipsSpec, "") if item.name in CLIP_INPUTS]
    inputs += [item for item in _fields("train.proto", JobOptions, f"{OPTIONS}.") if item.name == "seed"]
    # Each shows in its place what it is when it is left out.
    video = tuple(
        replace(
            item,
            default=usual.get(item.path, item.default),
            help=CLIP_HELP.get(item.path, _DEFAULT.sub("", item.help).strip()),
        )
        for item in inputs
    )
    return [Group("Clip", (clip, prompt)), Group("Video", video)]


def beside(name: str, origin: Job | None = None) -> list[Field]:
    """Inputs that are none of the sheet: the job's name and, where it goes on from another, how."""
    named = next(item for item in _fields("train.proto", CreateJobRequest, "") if item.name == NAME)
    inputs = [replace(named, name="name", value=name)]
    if origin is not None:
        exact = origin.options.schedule == Schedule.SCHEDULE_CONSTANT
        modes = words(ContinueMode.DESCRIPTOR)
        value = word(ContinueMode.DESCRIPTOR, EXACT if exact else WEIGHTS)
        inputs.append(Field(MODE, "continue", "choice", MODE_HELP, word(ContinueMode.DESCRIPTOR, EXACT), value=value,
                            choices=tuple(modes)))  # fmt: skip
    return inputs


def sheet_query(sheet: Mapping[str, Any], name: str = "") -> str:
    """The rest of a form, and its job's name, for the address of the page of its data: there it comes back from.

    Texts that are too long for an address stay behind.
    """
    kept = {name: value for name, value in sheet.items() if name not in ("training_data_url", "dataset")}
    text = json.dumps(kept)
    if len(quote(text)) > MAX_QUERY_CHARS:
        text = json.dumps({name: value for name, value in kept.items() if not isinstance(value, str | list)})
    return urlencode({"sheet": text} | ({NAME: name} if name else {}))


def plain_sheet(text: str) -> dict[str, Any]:
    """The JSON of a sheet as far as it is one."""
    try:
        sheet: Sheet | None = parse_sheet(text)
    except SheetInvalid as error:
        sheet = error.sheet
    return {} if sheet is None else format_sheet(sheet.spec, sheet.options)


def _with_entries(group: Group, entries: Sequence[Mapping[str, Any]]) -> Group:
    inputs = [
        _filled(item, entries[index] if index < len(entries) else {})
        for index in range(MAX_VALIDATION)
        for item in _fields("extend_prefix.proto", ValidationInput, f"validation[{index}].")
    ]
    return Group(group.title, (*inputs, *group.fields))


def _filled(item: Field, values: Mapping[str, Any]) -> Field:
    value = values.get(item.name)
    if value is None:
        return item
    text = ("true" if value else "false") if isinstance(value, bool) else str(value)
    return Field(**{**vars(item), "value": text})


@lru_cache
def _groups(file: str, message: Any, prefix: str = "") -> tuple[Group, ...]:
    found: list[tuple[str, list[Field]]] = []
    for item in _fields(file, message, prefix):
        if item.name in TITLES or not found:
            found.append((TITLES.get(item.name, ""), []))
        if item.name not in APART:
            found[-1][1].append(item)
    return tuple(Group(title, tuple(items)) for title, items in found)


@lru_cache
def _fields(file: str, message: Any, prefix: str) -> tuple[Field, ...]:
    comments = dict(_comments(file, message.DESCRIPTOR.name))
    return tuple(_field(message, item, comments.get(item.name, ""), prefix) for item in message.DESCRIPTOR.fields)


def _field(message: Any, item: FieldDescriptor, comment: str, prefix: str) -> Field:
    default = _DEFAULT.search(comment)
    numbers = [str(value) for value in allowed(message, item.name)]
    minimum, maximum = _range(message, item, numbers)
    return Field(
        path=f"{prefix}{item.name}",
        name=item.name,
        kind=_kind(item, bool(numbers)),
        help=comment.replace("`", "").removesuffix(' Default: "".'),
        default=default[1].strip('"') if default else "",
        minimum=minimum,
        maximum=maximum,
        whole=item.cpp_type in (FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
        choices=tuple(words(item.enum_type)) if item.enum_type is not None else tuple(numbers),
        required=item.name == "training_data_url",
    )


def _range(message: Any, item: FieldDescriptor, listed: Sequence[str]) -> tuple[str, str]:
    """Both ends of the values of a number; empty where an input cannot say them."""
    if listed or item.is_repeated or _kind(item, False) != "number" or not rules_of(item).WhichOneof("type"):
        return "", ""
    minimum, maximum, above = limits(message, item.name)
    return ("", "") if above else (str(minimum), str(maximum))


def _kind(item: FieldDescriptor, listed: bool) -> str:
    if item.enum_type is not None or listed:
        return "choice"
    if item.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "flag"
    if item.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "file" if item.name in UPLOADED else "long" if "prompt" in item.name else "text"
    return "number"


def _comments(file: str, message: str) -> Iterator[tuple[str, str]]:
    """Comment of each field of a message, as one line."""
    source = (files("ltxtrain.v1") / file).read_text("utf-8")
    body = source.partition(f"\nmessage {message} {{")[2].partition("\n}")[0]
    comment: list[str] = []
    for line in body.splitlines():
        text = line.strip()
        if text.startswith("//"):
            comment.append(text.removeprefix("//").strip())
        elif found := _FIELD.fullmatch(line):
            yield found[1], " ".join(comment)
            comment = []
        elif not text.startswith("}"):
            comment = []
