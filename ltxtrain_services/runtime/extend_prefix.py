"""The parameter sheet of extend-prefix as one table: defaults, ranges and how a request becomes a resolved spec.

Ranges are the contract's rules. Comments of extend_prefix.proto and train.proto and the README's table say the same; a
test compares them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import TypeVar

from google.protobuf.message import Message
from google.type.money_pb2 import Money
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, ExtendPrefixSpec, Resolution, ValidationInput
from ltxtrain.v1.preprocess_pb2 import AudioSettings, OnSkippedClip, PreprocessSettings
from ltxtrain.v1.preprocess_pb2 import Geometry as GeometryMessage
from ltxtrain.v1.train_pb2 import Attention, BasePrecision, JobOptions, Optimizer, Schedule
from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import SHEET_PATH

from ltxtrain_services.runtime.addresses import CLIP
from ltxtrain_services.runtime.errors import Violation
from ltxtrain_services.runtime.parameters import Number, Rule, table
from ltxtrain_services.runtime.requests import excess
from ltxtrain_services.runtime.rules import max_items
from ltxtrain_services.runtime.settings import UnitPrice
from ltxtrain_trainer.data.prompt_text import NEGATIVE_PROMPT
from ltxtrain_trainer.geometry import BUCKETS, Geometry, snap_frames
from ltxtrain_trainer.preview.recipe import SCHEDULE_TOKENS
from ltxtrain_trainer.training.settings import TEAM_SIZES

MAX_VALIDATION_INPUTS = max_items(ExtendPrefixSpec, "validation")
# What a way to hold weights or to move them needs; services and workers have one environment.
LIBRARIES = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes", "adamw_8bit": "torchao"}
# Of too many, so many are looked at: a request may name twenty thousand.
CHECKED_VALIDATION_INPUTS = 100
T = TypeVar("T", bound=Message)

# Defaults are the public sheet's (conformance P1..P25).
SPEC = table(
    ExtendPrefixSpec,
    {
        "trigger_phrase": "",
        "rank": 32,
        "number_of_steps": 2000,
        "learning_rate": 0.0002,
        "conditioning_frames": 9,
        "number_of_frames": 89,
        "frame_rate": 24,
        "resolution": Resolution.RESOLUTION_MEDIUM,
        "aspect_ratio": AspectRatio.ASPECT_RATIO_1_1,
        "auto_scale_input": False,
        "split_input_into_scenes": True,
        "split_input_duration_threshold": 30.0,
        "with_audio": False,
        "audio_normalize": True,
        "audio_preserve_pitch": True,
        "validation_negative_prompt": NEGATIVE_PROMPT,
        "validation_number_of_frames": 89,
        "validation_frame_rate": 24,
        "validation_resolution": Resolution.RESOLUTION_HIGH,
        "validation_aspect_ratio": AspectRatio.ASPECT_RATIO_1_1,
        "stg_scale": 1.0,
        "debug_dataset": False,
    },
    snapped=("number_of_frames", "validation_number_of_frames"),
)

OPTIONS = table(
    JobOptions,
    {
        "seed": 42,
        "on_skipped_clip": OnSkippedClip.ON_SKIPPED_CLIP_CONTINUE,
        "batch_size": 1,
        "gpu_count": 0,
        "base_precision": BasePrecision.BASE_PRECISION_AUTO,
        "optimizer": Optimizer.OPTIMIZER_ADAMW,
        "schedule": Schedule.SCHEDULE_LINEAR,
        "checkpoint_interval": 250,
        "preview_interval": 0,
        "holdout_fraction": 0.0,
        "preview_schedule_tokens": SCHEDULE_TOKENS,
        "compile_blocks": False,
        "attention": Attention.ATTENTION_EXACT,
    },
)


def resolve(spec: ExtendPrefixSpec, check_url: Callable[[str], str | None]) -> tuple[ExtendPrefixSpec, list[Violation]]:
    """The spec with every default filled and every frame count snapped, and every violation, one a field.

    `check_url` says why a URL is refused, or None. The resolved spec means something only without violations.
    """
    resolved, violations = fill(_without_excess(spec), SPEC)
    violations += _check_sources(spec, check_url)
    wrong = {violation.field for violation in violations}
    if "conditioning_frames" not in wrong and (reason := _check_prefix(spec, resolved, wrong)) is not None:
        violations.append(Violation("conditioning_frames", *reason))
    return resolved, sorted(below(SHEET_PATH, violations), key=lambda violation: violation.field)


def _without_excess(spec: ExtendPrefixSpec) -> ExtendPrefixSpec:
    """The spec itself, or one without the entries that nobody looks at: a copy of all would cost what they cost."""
    if len(spec.validation) <= CHECKED_VALIDATION_INPUTS:
        return spec
    made = ExtendPrefixSpec(validation=spec.validation[:CHECKED_VALIDATION_INPUTS])
    for field, value in spec.ListFields():
        if field.name != "validation":
            setattr(made, field.name, value)
    return made


def resolve_options(options: JobOptions, number_of_steps: int) -> tuple[JobOptions, list[Violation]]:
    """The options with every default filled, and every violation, one a field."""
    resolved, violations = fill(options, OPTIONS)
    if not options.HasField("preview_interval"):
        resolved.preview_interval = max(1, number_of_steps // 4)
    if not violations and (wrong := _check_sharing(resolved)) is not None:
        violations.append(wrong)
    return resolved, below("options.", violations)


def _check_sharing(options: JobOptions) -> Violation | None:
    """GPUs share the clips of a step among them, or else the tokens of each clip."""
    gpus, clips = options.gpu_count, options.batch_size
    if not gpus or clips % gpus == 0:
        return None
    if gpus % clips or gpus // clips not in TEAM_SIZES:
        text = f"{gpus} GPUs neither divide a batch of {clips} nor are 2, 4 or 8 times as many."
        return Violation("gpu_count", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)
    if options.compile_blocks:
        text = f"Blocks are not compiled where GPUs share a clip, as {gpus} do with {clips} a step."
        return Violation("compile_blocks", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)
    return None


@dataclass(frozen=True)
class Offer:
    """Workers that a cluster has now: one a GPU, or some on CPUs where models go to none; and the limits on them."""

    present: int
    on_gpus: bool = True
    # GPUs of a cluster that grows, as many as there can be; 0: those that there are.
    most: int = 0
    # GPUs of one caller's jobs together; 0: no such limit.
    most_of_an_owner: int = 0


def check_offered(options: JobOptions, offer: Offer) -> list[Violation]:
    """Violations of resolved options that this cluster cannot fulfil, now or later."""
    violations = []
    wanted, share = options.gpu_count, offer.most_of_an_owner
    text = ""
    if wanted > max(offer.present, offer.most):
        there = f"has {offer.present or 'none'}"
        if not offer.on_gpus:
            there = f"has none, and {offer.present} on CPUs in their place"
        if offer.most:
            there += f"; it can have {offer.most} at most"
        text = f"The job asks for {wanted} GPUs and the cluster {there}."
    elif share and wanted > share:
        text = f"The job asks for {wanted} GPUs, and the jobs of one caller may have {share} together."
    if text:
        violations.append(Violation("gpu_count", ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text))
    reason = ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED
    precision = word(BasePrecision.DESCRIPTOR, options.base_precision)
    if precision == "nf4" and not offer.on_gpus:
        violations.append(Violation("base_precision", reason, "nf4 needs a CUDA device, and the cluster has none."))
    elif (library := LIBRARIES.get(precision)) and find_spec(library) is None:
        text = f"{precision} needs {library}, which is not installed in the suite. Choose bf16 or auto."
        violations.append(Violation("base_precision", reason, text))
    optimizer = word(Optimizer.DESCRIPTOR, options.optimizer)
    if (library := LIBRARIES.get(optimizer)) and find_spec(library) is None:
        text = f"{optimizer} needs {library}, which is not installed in the suite. Choose adamw."
        violations.append(Violation("optimizer", reason, text))
    return below("options.", violations)


def below(path: str, violations: Iterable[Violation]) -> list[Violation]:
    """The violations with their fields below a path."""
    return [replace(violation, field=f"{path}{violation.field}") for violation in violations]


def fill(given: T, rules: tuple[Rule, ...]) -> tuple[T, list[Violation]]:
    """The message with a default in every gap and every frame count snapped, and every violation of its rules."""
    resolved = type(given)()
    resolved.CopyFrom(given)
    violations = []
    for rule in rules:
        if not is_given(given, rule):
            setattr(resolved, rule.name, rule.default)
            continue
        value = getattr(given, rule.name)
        if (found := rule.check(value)) is not None:
            violations.append(Violation(rule.name, *found))
        elif isinstance(rule, Number) and rule.snapped:
            setattr(resolved, rule.name, snap_frames(value))
    return resolved, violations


def is_given(message: Message, rule: Rule) -> bool:
    field = message.DESCRIPTOR.fields_by_name[rule.name]
    return message.HasField(rule.name) if field.has_presence else bool(getattr(message, rule.name))


def _check_sources(spec: ExtendPrefixSpec, check_url: Callable[[str], str | None]) -> list[Violation]:
    violations = []
    if spec.WhichOneof("training_data") != "dataset" or not spec.dataset:
        missing = "Name a .zip of videos, or a dataset ingested earlier."
        violations += _check_source("training_data_url", spec.training_data_url, missing, check_url)
    violations += check_videos("validation", spec.validation, check_url)
    return violations + _check_entries(spec)


def check_validation(spec: ExtendPrefixSpec) -> list[Violation]:
    """Violations of the validation inputs whose videos are named elsewhere."""
    return below(SHEET_PATH, _check_entries(spec))


def _check_entries(spec: ExtendPrefixSpec) -> list[Violation]:
    violations = check_prompts("validation", spec.validation)
    if len(spec.validation) > MAX_VALIDATION_INPUTS:
        text = f"{len(spec.validation)} entries, at most {MAX_VALIDATION_INPUTS} are allowed."
        violations.append(Violation("validation", ErrorReason.ERROR_REASON_TOO_MANY_VALIDATION_INPUTS, text))
    return violations


def check_videos(
    field: str, openings: Sequence[ValidationInput], check_url: Callable[[str], str | None]
) -> list[Violation]:
    """Violations of the videos of the first hundred entries of a list of openings; a clip of a dataset is none."""
    missing = "Name a video whose opening is continued."
    return [
        violation
        for index, entry in enumerate(openings[:CHECKED_VALIDATION_INPUTS])
        if not CLIP.fullmatch(entry.video_url)
        for violation in _check_source(f"{field}[{index}].video_url", entry.video_url, missing, check_url)
    ]


def check_prompts(field: str, openings: Sequence[ValidationInput]) -> list[Violation]:
    """Violations of the prompts of the first hundred entries of a list of openings."""
    reason = ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE
    return [
        Violation(f"{field}[{index}].prompt", reason, found)
        for index, entry in enumerate(openings[:CHECKED_VALIDATION_INPUTS])
        if (found := excess(entry.prompt)) is not None
    ]


def _check_source(field: str, url: str, missing: str, check_url: Callable[[str], str | None]) -> list[Violation]:
    if not url:
        return [Violation(field, ErrorReason.ERROR_REASON_FIELD_REQUIRED, missing)]
    refusal = check_url(url)
    return [] if refusal is None else [Violation(field, ErrorReason.ERROR_REASON_URL_NOT_ALLOWED, refusal)]


def _check_prefix(
    given: ExtendPrefixSpec, resolved: ExtendPrefixSpec, wrong: set[str]
) -> tuple["ErrorReason", str] | None:
    counts = ["number_of_frames"]
    if given.validation or given.HasField("validation_number_of_frames"):
        counts.append("validation_number_of_frames")
    return check_prefix(resolved, [name for name in counts if name not in wrong])


def check_prefix(
    resolved: ExtendPrefixSpec | ContinueClipsSpec, counts: Sequence[str]
) -> tuple["ErrorReason", str] | None:
    """The fault of resolved conditioning_frames, which leave frames to generate of each of the counts."""
    prefix = resolved.conditioning_frames
    if prefix % 8 != 1:
        text = f"{prefix} is not 1 modulo 8; {snap_frames(prefix)} and {snap_frames(prefix) + 8} are the nearest."
        return ErrorReason.ERROR_REASON_NOT_ONE_MODULO_EIGHT, text
    for name in counts:
        count = getattr(resolved, name)
        if prefix >= count:
            text = f"A prefix of {prefix} frames leaves nothing to generate of {name} = {count} (after snapping)."
            return ErrorReason.ERROR_REASON_PREFIX_COVERS_CLIP, text
    return None


def billable_units(number_of_steps: int) -> int:
    """Units of a successful job (conformance B1)."""
    return max(100, number_of_steps)


def price(units: int, unit_price: UnitPrice | None) -> Money | None:
    """The price of some units; None where the operator has set none."""
    if unit_price is None:
        return None
    whole, rest = divmod(units * unit_price.amount, 1)
    return Money(currency_code=unit_price.currency, units=int(whole), nanos=int(rest * 10**9))


def preprocess_settings(
    spec: ExtendPrefixSpec, on_skipped_clip: "OnSkippedClip", model_revision: str = ""
) -> PreprocessSettings:
    """The PreprocessSettings of a resolved spec."""
    settings = PreprocessSettings(
        training=GeometryMessage(**asdict(training_geometry(spec))),
        validation=GeometryMessage(**asdict(preview_geometry(spec))),
        conditioning_frames=spec.conditioning_frames,
        trigger_phrase=spec.trigger_phrase,
        auto_scale_input=spec.auto_scale_input,
        export_archive=spec.debug_dataset,
        model_revision=model_revision,
        validation_prompts=[entry.prompt for entry in spec.validation],
        negative_prompt=spec.validation_negative_prompt,
        on_skipped_clip=on_skipped_clip,
    )
    if spec.split_input_into_scenes:
        settings.split_above_seconds = spec.split_input_duration_threshold
    if spec.with_audio:
        settings.audio.CopyFrom(AudioSettings(normalize=spec.audio_normalize, preserve_pitch=spec.audio_preserve_pitch))
    return settings


def training_geometry(spec: ExtendPrefixSpec) -> Geometry:
    """The shape of training clips; of a resolved spec."""
    return bucket_geometry(spec.resolution, spec.aspect_ratio, spec.number_of_frames, spec.frame_rate)


def preview_geometry(spec: ExtendPrefixSpec) -> Geometry:
    """The shape of whole previews, prefix included; of a resolved spec."""
    return bucket_geometry(
        spec.validation_resolution,
        spec.validation_aspect_ratio,
        spec.validation_number_of_frames,
        spec.validation_frame_rate,
    )


def bucket_geometry(resolution: int, aspect_ratio: int, frame_count: int, frame_rate: int) -> Geometry:
    """The shape of clips of a budget and an aspect ratio."""
    bucket = word(Resolution.DESCRIPTOR, resolution), word(AspectRatio.DESCRIPTOR, aspect_ratio)
    width, height = BUCKETS[bucket]
    return Geometry(width=width, height=height, frame_count=frame_count, frame_rate=frame_rate)
