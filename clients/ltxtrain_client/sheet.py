"""Conversion between the parameter sheet, as people write it in JSON, and the messages that the services read.

Keys are the sheet's names; job options that the sheet does not have are in an object "options". Enum values are the
sheet's words ("medium", "16:9") or the contract's names. Only the form is checked here: ranges and required fields are
checked by the server.
"""

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import Job, JobOptions

from ltxtrain_client.as_json import as_json
from ltxtrain_client.enum_words import words
from ltxtrain_client.errors import LtxtrainError

OPTIONS = "options"
# Beyond these a document is no sheet with faults any more: the first are told, and what is known is not compared.
MAX_PROBLEMS, MAX_SUGGESTIONS = 200, 20
MAX_ENTRIES = 1_000
MAX_KEY_CHARS = 100
UPLOAD = "upload:"

_INTEGER_BITS = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}
_STEP = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)((?:\[\d+\])?)")
_WRONG = object()


@dataclass(frozen=True)
class Sheet:
    """A filled-in parameter sheet."""

    spec: ExtendPrefixSpec
    """Parameters of the training type extend-prefix."""

    options: JobOptions
    """Settings of the run that the sheet does not have."""


@dataclass(frozen=True)
class Problem:
    """One fault of a sheet's JSON."""

    path: str
    """Key path, as in "validation[0].prompt"; empty for the document as a whole."""

    description: str
    """Explanation that completes "PATH ..."."""

    reason: str = ""
    """ErrorReason name without its prefix, of a fault that a service found; empty: the JSON itself is wrong."""

    def __str__(self) -> str:
        text = f"{self.path}: {self.description}" if self.path else self.description
        return f"{text} ({self.reason})" if self.reason else text


class SheetInvalid(LtxtrainError):
    """A sheet's JSON does not have the form of a sheet."""

    def __init__(self, problems: Sequence[Problem], sheet: Sheet | None = None) -> None:
        self.problems = tuple(problems)
        """Every fault at once."""
        self.sheet = sheet
        """The valid part of the sheet; None when there was no JSON object at all."""
        super().__init__("; ".join(str(problem) for problem in problems))


def parse_sheet(source: str | bytes | Mapping[str, Any], settings: Sequence[str] = ()) -> Sheet:
    """Parse a sheet from JSON (text, or the bytes of a file) or a mapping, then apply `settings` of the form key=value.

    A key may be a path, as in "options.seed" or "validation[0].prompt". null means "not given".
    Raises SheetInvalid with every unknown key, wrong type and wrong word at once.
    """
    problems: list[Problem] = []
    document = _load(source, problems) if isinstance(source, str | bytes) else deepcopy(dict(source))
    for setting in settings:
        _set(document, setting, problems)
    options = document.pop(OPTIONS, None)
    sheet = Sheet(ExtendPrefixSpec(), JobOptions())
    _fill(sheet.spec, document, "", problems)
    if options is not None:
        _fill(sheet.options, options, OPTIONS, problems)
    if problems:
        raise SheetInvalid(problems, sheet)
    return sheet


def parse_clips(document: Mapping[str, Any]) -> tuple[ContinueClipsSpec, JobOptions]:
    """The spec and options of a continuation from JSON, as parse_sheet those of a training. Raises SheetInvalid."""
    problems: list[Problem] = []
    spec, options = ContinueClipsSpec(), JobOptions()
    _fill(spec, {key: value for key, value in document.items() if key != OPTIONS}, "", problems)
    _fill(options, document.get(OPTIONS) or {}, OPTIONS, problems)
    if problems:
        raise SheetInvalid(problems)
    return spec, options


def format_sheet(spec: ExtendPrefixSpec | ContinueClipsSpec, options: JobOptions | None = None) -> dict[str, Any]:
    """JSON of the fields that are set; `parse_sheet` reads that of a training back."""
    document = as_json(spec, whole=False)
    if options is not None and (chosen := as_json(options, whole=False)):
        document[OPTIONS] = chosen
    return document


def spec_of(task: TaskSpec) -> ExtendPrefixSpec | ContinueClipsSpec:
    """The spec of whatever kind a task is."""
    return task.continue_clips if task.HasField("continue_clips") else task.extend_prefix


def continues_clips(job: Job) -> bool:
    """Whether a job uses a LoRA, and trains none."""
    uses: bool = job.effective_spec.HasField("continue_clips")
    return uses


def sheet_of_job(job: Job) -> dict[str, Any]:
    """JSON of a job's sheet with the datasets that it made of its sources, which may not be there any more."""
    spec = ExtendPrefixSpec()
    # One that goes on from another may have left out all that it has from there.
    task = job.effective_spec if job.HasField("continue_from") else job.spec
    spec.CopyFrom(task.extend_prefix)
    name_datasets(spec, job.dataset, job.validation_dataset)
    return format_sheet(spec, job.options)


def name_datasets(spec: ExtendPrefixSpec, dataset: str, validation_dataset: str, *, uploads_only: bool = False) -> None:
    """Put datasets, which are kept until somebody deletes them, in place of the sources they were made of.

    `uploads_only` keeps URLs and replaces uploads, which are kept for a day. Empty names replace nothing.
    """
    if dataset and (not uploads_only or spec.training_data_url.startswith(UPLOAD)):
        spec.dataset = dataset
    name_openings(spec.validation, validation_dataset, uploads_only=uploads_only)


def name_openings(openings: Iterable[ValidationInput], validation_dataset: str, *, uploads_only: bool = False) -> None:
    """name_datasets for clips that are continued."""
    for index, entry in enumerate(openings):
        if validation_dataset and (not uploads_only or entry.video_url.startswith(UPLOAD)):
            entry.video_url = f"dataset:{validation_dataset}/clips/{index}"


def _load(source: str | bytes, problems: list[Problem]) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) < len(pairs):
            twice = sorted(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            problems.extend(Problem(_shown(key), "is given twice") for key in twice[:MAX_PROBLEMS])
        return document

    try:
        text = source if isinstance(source, str) else source.decode(json.detect_encoding(source)).lstrip("\ufeff")
        if not text.strip():
            raise _not_a_sheet("it is empty; {} is a sheet with every default")
        document = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise _not_a_sheet(f"{error.msg} in line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError:
        raise _not_a_sheet("it is not text (UTF-8 is expected)") from None
    except (ValueError, RecursionError):  # digits or brackets beyond what Python's parser takes
        raise _not_a_sheet("it holds a number with thousands of digits, or nests too deeply") from None
    if not isinstance(document, dict):
        raise _not_a_sheet(f"a sheet is a JSON object, this is {_kind(document)}")
    return document


def _not_a_sheet(text: str) -> SheetInvalid:
    return SheetInvalid([Problem("", text)])


def _set(document: dict[str, Any], setting: str, problems: list[Problem]) -> None:
    path, equals, text = setting.partition("=")
    path = path.strip()
    steps = [_STEP.fullmatch(step) for step in path.split(".")]
    if not equals or not all(steps):
        problems.append(Problem(setting, "expected key=value, as in rank=64, options.seed=7 or validation[0].prompt=…"))
        return
    keys: list[str | int] = []
    for step in steps:
        assert step is not None
        keys.append(step[1])
        if step[2]:
            keys.append(int(step[2][1:-1]))
    place: Any = document
    for key, following in pairwise(keys):
        place = _enter(place, key, [] if isinstance(following, int) else {})
        if place is None:
            problems.append(Problem(path, "there is no such place in the sheet"))
            return
    _enter(place, keys[-1], None)
    try:
        place[keys[-1]] = _typed(keys, text)
    except (TypeError, IndexError):
        problems.append(Problem(path, "there is no such place in the sheet"))


def _enter(place: Any, key: str | int, empty: Any) -> Any:
    """Value at `key`, created empty when absent; a list grows by one entry at most."""
    if isinstance(place, list) and isinstance(key, int):
        if key == len(place):
            place.append(empty)
        return place[key] if key < len(place) else None
    if isinstance(place, dict) and isinstance(key, str):
        if place.get(key) is None:
            place[key] = empty
        return place[key]
    return None


def _typed(keys: Sequence[str | int], text: str) -> Any:
    """Value of a setting: text where the sheet expects text, JSON or a bare word elsewhere."""
    descriptor: Any = ExtendPrefixSpec.DESCRIPTOR
    names = [key for key in keys if isinstance(key, str)]
    if names[0] == OPTIONS:
        descriptor, names = JobOptions.DESCRIPTOR, names[1:]
    field: Any = None
    for name in names:
        field = descriptor.fields_by_name.get(name) if descriptor is not None else None
        descriptor = field.message_type if field is not None else None
    if field is not None and field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _fill(message: Message, document: Any, path: str, problems: list[Problem]) -> None:
    if not isinstance(document, Mapping):
        problems.append(Problem(path, f"must be an object, not {_kind(document)}"))
        return
    fields: Mapping[str, Any] = message.DESCRIPTOR.fields_by_name
    for key, value in document.items():
        if len(problems) > MAX_PROBLEMS:
            return
        place = f"{path}.{_shown(str(key))}" if path else _shown(str(key)) or '""'
        field = fields.get(key)
        if field is None:
            near = _unknown(str(key), fields, message) if len(problems) < MAX_SUGGESTIONS else "is not known"
            problems.append(Problem(place, near))
        elif value is None:
            continue
        elif field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            other = message.WhichOneof(field.containing_oneof.name)
            problems.append(Problem(place, f"cannot be given together with {other}"))
        elif field.is_repeated:
            if isinstance(value, list) and len(value) > MAX_ENTRIES:
                problems.append(Problem(place, f"has {len(value)} entries, far more than are ever allowed"))
            elif isinstance(value, list):
                for index, item in enumerate(value):
                    _fill(getattr(message, key).add(), item, f"{place}[{index}]", problems)
            else:
                problems.append(Problem(place, f"must be a list, not {_kind(value)}"))
        elif (converted := _value(field, value, place, problems)) is not _WRONG:
            setattr(message, key, converted)


def _shown(key: str) -> str:
    return key if len(key) <= MAX_KEY_CHARS else f"{key[: MAX_KEY_CHARS - 1]}…"


def _value(field: FieldDescriptor, value: Any, path: str, problems: list[Problem]) -> Any:
    """Value converted for the field, or _WRONG after adding a problem."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if field.enum_type is not None:
        known = words(field.enum_type)
        names = {name: item.number for name, item in field.enum_type.values_by_name.items() if item.number}
        if isinstance(value, str) and value in (both := known | names):
            return both[value]
        expected = f"must be one of {', '.join(json.dumps(name) for name in known)}"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if isinstance(value, str) and _encodable(value):
            return value
        expected = "must be text in Unicode" if isinstance(value, str) else "must be text"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if isinstance(value, bool):
            return value
        expected = "must be true or false"
    elif field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        if number and _finite(value):
            return float(value)
        expected = "must be a finite number"
    else:
        limit = 2 ** _INTEGER_BITS[field.cpp_type]
        if number and (isinstance(value, int) or value.is_integer()) and -limit <= value < limit:
            return int(value)
        expected = "must be a whole number"
    problems.append(Problem(path, f"{expected}, not {_kind(value)}"))
    return _WRONG


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any double
        return False


def _encodable(value: str) -> bool:
    """False for half of a surrogate pair, which a JSON escape or an undecodable argument can contain."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown(key: str, fields: Mapping[str, Any], message: Message) -> str:
    options = JobOptions.DESCRIPTOR.fields_by_name
    if not isinstance(message, ExtendPrefixSpec):
        near = _nearest(key, [*fields])
    elif key in options:
        return f'belongs into "{OPTIONS}"'
    else:
        near = _nearest(key, [*fields, OPTIONS]) or _nearest(key, [f"{OPTIONS}.{name}" for name in options])
    return f"is not known; did you mean {near}?" if near else "is not known"


def _nearest(key: str, names: Sequence[str]) -> str | None:
    """Shortest name that starts with the key, else the most similar one; a path is compared by its last part."""
    by_part = {name.rpartition(".")[2]: name for name in names}
    if len(key) > MAX_KEY_CHARS:
        return None
    begun = sorted((part for part in by_part if len(key) > 2 and part.startswith(key)), key=len)
    near = begun or difflib.get_close_matches(key, by_part, n=1)
    return by_part[near[0]] if near else None


def _kind(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"
