"""Requests at each bound of each rule of the contract, and just beyond it, for every call."""

import math
from collections.abc import Callable, Iterator
from typing import Any

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from ltxtrain.v1 import train_pb2
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec, ValidationInput
from ltxtrain.v1.ingest_pb2 import CreateDatasetRequest, CreateUploadRequest, VideoUrls
from ltxtrain.v1.preprocess_pb2 import (
    CreateTrainingSetRequest,
    Geometry,
    OnSkippedClip,
    PreprocessSettings,
)
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import ContinueFrom, CreateJobRequest, EstimateJobRequest

from ltxtrain_services.runtime.rules import rules_of

URL = "https://example.com/clips.zip"
UUID = "6f1c0d3e-0000-4000-8000-0123456789ab"
ENDED = "jobs/ended"
# Long enough for every prefix, so that a prefix alone is at fault where one is.
LONG = ExtendPrefixSpec(training_data_url=URL, number_of_frames=121, validation_number_of_frames=121)
CLIPS = ContinueClipsSpec(openings=[ValidationInput(video_url=URL)], number_of_frames=257, conditioning_frames=9)
# Of as many clips as the most GPUs.
BATCH = train_pb2.JobOptions(batch_size=64)
GEOMETRY = Geometry(width=512, height=288, frame_count=1017, frame_rate=24)
SETTINGS = PreprocessSettings(training=GEOMETRY, validation=GEOMETRY, conditioning_frames=9)

# Requests that are right. Each field that has a rule is changed in each of those that hold it; a request without an
# entry is right when it is empty.
RIGHT: dict[type[Message], tuple[Message, ...]] = {
    CreateJobRequest: (
        CreateJobRequest(spec=TaskSpec(extend_prefix=LONG), options=BATCH),
        CreateJobRequest(continue_from=ContinueFrom(source=ENDED)),
        CreateJobRequest(spec=TaskSpec(continue_clips=CLIPS), continue_from=ContinueFrom(source=ENDED)),
    ),
    EstimateJobRequest: (EstimateJobRequest(spec=TaskSpec(extend_prefix=LONG), options=BATCH),),
    CreateUploadRequest: (CreateUploadRequest(size_bytes=7, sha256="0" * 64),),
    CreateDatasetRequest: (
        CreateDatasetRequest(archive_url=URL),
        CreateDatasetRequest(upload="uploads/" + "0" * 32),
        CreateDatasetRequest(videos=VideoUrls(urls=[URL])),
    ),
    CreateTrainingSetRequest: (
        CreateTrainingSetRequest(dataset="datasets/a", validation_dataset="datasets/b", settings=SETTINGS),
        CreateTrainingSetRequest(dataset="datasets/a", spec=TaskSpec(extend_prefix=LONG)),
    ),
}
# What a call about something that is there names.
NAMED = {"IngestService": "datasets/a", "PreprocessService": "trainingSets/a", "TrainService": ENDED}
# Texts on both sides of each pattern, by the name of the field.
TEXTS = {
    "request_id": (UUID, UUID.replace("-", ""), "{" + UUID.upper() + "}", f"urn:uuid:{UUID}", "", "1", UUID + "0",
                   UUID[:-1] + "g", f"{UUID}\n", f"{{{{{UUID}}}}}", " " * 32),
    "sha256": ("0123456789abcdef" * 4, "A" * 64, "0" * 63, "0" * 65, "", "0" * 64 + "\n"),
    "display_name": ("", "Drohne 車 🎬 \xa0\xad", "a\nb", "a\n", "\0", "\x1f", "\x7f", "\x9f", "\u2028", "\u2029"),
    "labels.key": ("a", "a" * 63, "a/b-c_d.0", "", "A", "1", "a" * 64, "a b", "ä", "a\n"),
    "labels.value": ("", "ä 🎬", "a\tb", "b\n", "\x85"),
}  # fmt: skip
Names = tuple[str, ...]


# They refuse a task that trains nothing as a whole.
OF_TRAININGS = {"EstimateJob", "CreateTrainingSet"}


def paths_of_rules(message: Descriptor, path: Names = ()) -> Iterator[tuple[Names, FieldDescriptor]]:
    """Each field of a request that has a rule, and those of the messages within."""
    for field in message.fields:
        here = (*path, field.name)
        if rules_of(field).ByteSize():
            yield here, field
        if field.message_type is not None and not field.message_type.GetOptions().map_entry:
            yield from paths_of_rules(field.message_type, here)


def numbers(rules: Any, whole: bool, reach: int) -> list[float]:
    """Both ends of a range and what is just beyond, the first `reach` values; far beyond, and what is no number."""
    if values := list(getattr(rules, "in", ())):
        return sorted({value + step for value in values for step in (-1, 0, 1)})
    ends = [getattr(rules, name) for name in map(rules.WhichOneof, ("greater_than", "less_than")) if name]
    if whole:
        near = {end + step for end in ends for step in (-1, 0, 1)}
        return sorted({*near, *range(ends[0], ends[0] + reach), -(2**31), 2**31 - 1, 0})
    beside = [math.nextafter(end, to) for end in ends for to in (-math.inf, math.inf)]
    return [*ends, *beside, math.nan, math.inf, -math.inf]


def texts(rules: validate_pb2.StringRules, name: str) -> list[str]:
    found: list[str] = []
    if rules.pattern:
        found += TEXTS[name]
    if limit := rules.max_len:
        found += ["ä" * limit, "ä" * limit + "x"]
    if limit := rules.max_bytes:
        found += ["ä" * (limit // 2), "ä" * (limit // 2) + "x"]
    if rules.HasField("min_len"):
        found.append("")
    if prefix := rules.prefix:
        found += [f"{prefix}a", "", prefix[:-1], f"x{prefix}a"]
    return found


def single(field: FieldDescriptor, rules: validate_pb2.FieldRules, name: str) -> list[Any]:
    """Values of a field that is no list, or of one entry of a list or map."""
    if rules.HasField("enum"):
        assert field.enum_type is not None
        known = [value.number for value in field.enum_type.values]
        return [*known, max(known) + 1, -1]
    if rules.HasField("string"):
        return texts(rules.string, name)
    kind = rules.WhichOneof("type")
    if kind is None:
        assert rules.required, f"no values are known for the rule of {field.full_name}"
        return []
    # Expressions are about remainders of 8 and 32.
    reach = 34 if rules.cel else 0
    return numbers(getattr(rules, kind), field.cpp_type != FieldDescriptor.CPPTYPE_DOUBLE, reach)


Change = Callable[[Any], None]


def setting(name: str, value: Any) -> Change:
    return lambda holder: setattr(holder, name, value)


def entry(field: FieldDescriptor, number: int = 0) -> Any:
    """Something that may be in a list."""
    if field.enum_type is not None:
        return field.enum_type.values[1].number
    if field.message_type is not None:
        return ValidationInput(video_url=URL)
    return URL


def listing(name: str, items: list[Any]) -> Change:
    def change(holder: Any) -> None:
        holder.ClearField(name)
        getattr(holder, name).extend(items)

    return change


def labelling(name: str, items: dict[str, str]) -> Change:
    return lambda holder: getattr(holder, name).update(items)


def changes(field: FieldDescriptor) -> Iterator[Change]:
    """Ways to set a field at its rules' bounds and beyond."""
    rules = rules_of(field)
    name = field.name
    if rules.HasField("map"):
        pairs, values = rules.map, getattr(rules.map, "values")  # noqa: B009
        for count in (pairs.max_pairs, pairs.max_pairs + 1):
            yield labelling(name, {f"k{number}": "" for number in range(count)})
        yield from (labelling(name, {key: ""}) for key in texts(pairs.keys.string, f"{name}.key"))
        yield from (labelling(name, {"k": value}) for value in texts(values.string, f"{name}.value"))
    elif field.is_repeated:
        most, least = rules.repeated.max_items, rules.repeated.min_items
        for count in {most, most + 1, least, max(0, least - 1)}:
            yield listing(name, [entry(field)] * count)
        if rules.repeated.HasField("items"):
            yield from (listing(name, [URL, value]) for value in single(field, rules.repeated.items, name))
    else:
        yield from (setting(name, value) for value in single(field, rules, name))
        if rules.required:
            yield lambda holder: holder.ClearField(name)


def right_requests(method: Any) -> tuple[Message, ...]:
    kind = GetMessageClass(method.input_type)
    names = {"name", "parent"}.intersection(kind.DESCRIPTOR.fields_by_name)
    return RIGHT.get(kind, (kind(**dict.fromkeys(names, NAMED[method.containing_service.name])),))


def held(message: Any, path: Names) -> Any:
    """The message at a path, with an entry of each list on the way; None: the path is not there."""
    for name in path:
        if message.DESCRIPTOR.fields_by_name[name].is_repeated:
            message = getattr(message, name).add(video_url=URL)
        elif message.HasField(name):
            message = getattr(message, name)
        else:
            return None
    return message


def probes(method: Any) -> Iterator[Message]:
    """Right requests, each with one field of the contract's rules changed."""
    kind = GetMessageClass(method.input_type)
    for right in right_requests(method):
        yield right
        for path, field in paths_of_rules(method.input_type):
            for change in changes(field):
                made = kind()
                made.CopyFrom(right)
                if (holder := held(made, path[:-1])) is not None:
                    change(holder)
                    yield made


def sheet(**fields: Any) -> TaskSpec:
    return TaskSpec(extend_prefix=ExtendPrefixSpec(**{"training_data_url": URL, **fields}))


def made_of(spec: TaskSpec, **more: Any) -> list[Message]:
    return [CreateJobRequest(spec=spec, **more), EstimateJobRequest(spec=spec)]


def clips(**changes: Any) -> CreateJobRequest:
    """A request to continue clips; changed are its spec's fields, and those of the request beside it."""
    beside = {name: changes.pop(name) for name in ("options", "continue_from") if name in changes}
    spec = ContinueClipsSpec(**{"openings": CLIPS.openings, **changes})
    return CreateJobRequest(
        spec=TaskSpec(continue_clips=spec), **{"continue_from": ContinueFrom(source=ENDED), **beside}
    )


# Requests on both sides of each rule about several fields, and of each oneof that has to be set: by the rule's name.
TOGETHER: dict[str, list[Message]] = {
    "training_data_required": [
        *made_of(TaskSpec()),
        *made_of(sheet(training_data_url="")),
        *made_of(TaskSpec(extend_prefix=ExtendPrefixSpec(dataset=""))),
        *made_of(TaskSpec(extend_prefix=ExtendPrefixSpec(dataset="datasets/a"))),
        CreateJobRequest(continue_from=ContinueFrom(source=ENDED)),
    ],
    "video_url_required": [
        *made_of(sheet(validation=[ValidationInput(video_url=URL), ValidationInput(prompt="p")])),
        *made_of(sheet(validation=[ValidationInput(video_url=URL)] * 2)),
    ],
    "prefix_below_number_of_frames": [
        request
        for prefix, count in ((9, 9), (9, 16), (9, 17), (113, 120), (113, 121), (121, 121))
        for request in (
            *made_of(sheet(conditioning_frames=prefix, number_of_frames=count)),
            clips(conditioning_frames=prefix, number_of_frames=count),
        )
    ],
    "prefix_below_validation_number_of_frames": [
        request
        for prefix, count in ((9, 9), (9, 16), (9, 17), (113, 120), (113, 121))
        for request in made_of(
            sheet(conditioning_frames=prefix, number_of_frames=121, validation_number_of_frames=count)
        )
    ],
    "opening_video_url_required": [
        clips(openings=[ValidationInput(video_url=URL), ValidationInput(prompt="p")]),
        clips(openings=[ValidationInput(video_url=URL)] * 2),
    ],
    "source_of_continued_clips": [
        clips(),
        clips(continue_from=ContinueFrom()),
        clips(continue_from=None),
        clips(continue_from=ContinueFrom(source=ENDED, mode=train_pb2.CONTINUE_MODE_EXACT)),
        clips(continue_from=ContinueFrom(source=ENDED, mode=train_pb2.CONTINUE_MODE_WEIGHTS)),
    ],
    "options_of_continued_clips": [
        clips(options=train_pb2.JobOptions(seed=7, preview_schedule_tokens=0)),
        *(
            clips(options=options)
            for options in (
                train_pb2.JobOptions(on_skipped_clip=OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE),
                train_pb2.JobOptions(batch_size=1),
                train_pb2.JobOptions(gpu_count=0),
                train_pb2.JobOptions(optimizer=train_pb2.OPTIMIZER_ADAMW),
                train_pb2.JobOptions(schedule=train_pb2.SCHEDULE_LINEAR),
                train_pb2.JobOptions(checkpoint_interval=1),
                train_pb2.JobOptions(preview_interval=0),
                train_pb2.JobOptions(holdout_fraction=0.0),
                train_pb2.JobOptions(compile_blocks=False),
                train_pb2.JobOptions(attention=train_pb2.ATTENTION_EXACT),
            )
        ),
    ],
    "training_alone": [
        EstimateJobRequest(spec=TaskSpec(continue_clips=CLIPS)),
        EstimateJobRequest(spec=sheet()),
        CreateTrainingSetRequest(dataset="datasets/a", spec=TaskSpec(continue_clips=CLIPS)),
        CreateTrainingSetRequest(dataset="datasets/a", spec=sheet()),
    ],
    "gpu_count_divides_batch_size": [
        CreateJobRequest(spec=sheet(), options=train_pb2.JobOptions(batch_size=batch, gpu_count=count))
        for batch, count in ((4, 3), (4, 2), (4, 0), (4, 6), (4, 8), (1, 2), (1, 3), (1, 8), (1, 16), (2, 16), (64, 64))
    ],
    "shared_clips_are_not_compiled": [
        CreateJobRequest(
            spec=sheet(), options=train_pb2.JobOptions(compile_blocks=compiled, gpu_count=2, batch_size=batch)
        )
        for compiled in (False, True)
        for batch in (None, 1, 2)
    ],
    "single_put_at_most_5_gib": [
        CreateUploadRequest(size_bytes=size, sha256="0" * 64, multipart=multipart)
        for size in (5 << 30, (5 << 30) + 1)
        for multipart in (False, True)
    ],
    "source": [CreateDatasetRequest(), CreateDatasetRequest(archive_url=URL)],
    "plan": [
        CreateTrainingSetRequest(dataset="datasets/a"),
        CreateTrainingSetRequest(dataset="datasets/a", spec=sheet()),
    ],
    "dataset_required": [
        *(
            CreateTrainingSetRequest(dataset=named, spec=spec)
            for named in ("", "a", "datasets/a")
            for spec in (sheet(), *(TaskSpec(extend_prefix=ExtendPrefixSpec(dataset=of)) for of in ("a", "datasets/a")))
        ),
        *(
            CreateTrainingSetRequest(dataset=named, validation_dataset=validation, settings=SETTINGS)
            for named in ("", "a")
            for validation in ("", "datasets/b")
        ),
    ],
    "prefix_below_training": [
        CreateTrainingSetRequest(dataset="datasets/a", settings=PreprocessSettings(training=of, conditioning_frames=9))
        for of in (Geometry(width=32, height=32, frame_count=count, frame_rate=1) for count in (9, 17))
    ],
    "prefix_below_validation": [
        CreateTrainingSetRequest(dataset="datasets/a", validation_dataset=named, settings=settings)
        for named in ("", "datasets/b")
        for count in (9, 17)
        for of in [Geometry(width=32, height=32, frame_count=count, frame_rate=1)]
        for settings in [PreprocessSettings(training=GEOMETRY, validation=of, conditioning_frames=9)]
    ],
}
