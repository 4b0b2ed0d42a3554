"""Validation of a CreateTrainingSetRequest, every fault at once."""

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.preprocess_pb2 import (
    CreateTrainingSetRequest,
    Geometry,
    OnSkippedClip,
    PreprocessSettings,
    TrainingSet,
)

from ltxtrain_services.runtime.errors import InvalidSpec, Violation
from ltxtrain_services.runtime.extend_prefix import check_validation, preprocess_settings, resolve
from ltxtrain_services.runtime.requests import check_names, check_request_id, excess
from ltxtrain_services.runtime.rules import limits, max_items
from ltxtrain_trainer.geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION

MAX_SIDE = limits(Geometry, "width")[1]
MAX_FRAMES = limits(Geometry, "frame_count")[1]
MAX_FRAME_RATE = limits(Geometry, "frame_rate")[1]
MAX_VALIDATION_PROMPTS = max_items(PreprocessSettings, "validation_prompts")


def requested(request: CreateTrainingSetRequest) -> TrainingSet:
    """The training set that a request asks for, nameless. Raises InvalidSpec with every violation, one a field."""
    made = TrainingSet(
        dataset=request.dataset,
        validation_dataset=request.validation_dataset,
        settings=request.settings,
        display_name=request.display_name,
        labels=request.labels,
    )
    violations = []
    match request.WhichOneof("plan"):
        case "spec" if request.spec.HasField("continue_clips"):
            text = "It trains nothing; its openings are prepared by settings."
            violations.append(Violation("spec.continue_clips", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text))
        case "spec":
            made.dataset = request.dataset or request.spec.extend_prefix.dataset
            violations += _resolve(request, made)
        case "settings":
            violations += _check_settings(made)
        case _:
            violations.append(_required("spec", "Send the spec of a job, or settings."))
    openings_alone = request.WhichOneof("plan") == "settings" and made.validation_dataset.startswith("datasets/")
    if (made.dataset or not openings_alone) and not made.dataset.startswith("datasets/"):
        violations.append(_required("dataset", "Name a dataset, as in datasets/{dataset}."))
    if made.validation_dataset and not made.validation_dataset.startswith("datasets/"):
        violations.append(_required("validation_dataset", "Name a dataset, as in datasets/{dataset}."))
    if (wrong := _check_on_skipped_clip("on_skipped_clip", request.on_skipped_clip)) is not None:
        violations.append(wrong)
    violations += check_request_id(request.request_id)
    if violations := violations + check_names(request.display_name, request.labels):
        raise InvalidSpec(violations)
    return made


def _resolve(request: CreateTrainingSetRequest, made: TrainingSet) -> list[Violation]:
    """Fill in the settings of a spec, whose sources are the request's datasets."""
    spec = ExtendPrefixSpec()
    spec.CopyFrom(request.spec.extend_prefix)
    spec.dataset = made.dataset
    violations = []
    if not request.validation_dataset:
        # There are no clips for them, but what no job may have is told.
        violations += check_validation(spec)
        del spec.validation[:]
    for entry in spec.validation:
        entry.video_url = entry.video_url or request.validation_dataset
    resolved, wrong = resolve(spec, lambda url: None)
    # The dataset is told as the request's own field.
    violations += [violation for violation in wrong if not violation.field.endswith(".training_data_url")]
    if not violations:
        made.settings.CopyFrom(preprocess_settings(resolved, request.on_skipped_clip))
        made.settings.fit_only = request.fit_only
    return violations


def _check_settings(request: TrainingSet) -> list[Violation]:
    settings = request.settings
    violations = []
    prompts = settings.validation_prompts[:MAX_VALIDATION_PROMPTS]
    if (count := len(settings.validation_prompts)) > MAX_VALIDATION_PROMPTS:
        text = f"{count} prompts, at most {MAX_VALIDATION_PROMPTS} are taken: one for each validation clip."
        violations.append(_out_of_range("settings.validation_prompts", text))
    violations += _check_geometry("settings.training", settings.training)
    if request.validation_dataset or settings.HasField("validation"):
        violations += _check_geometry("settings.validation", settings.validation)
    violations += _check_prefix(request)
    texts = {"trigger_phrase": settings.trigger_phrase, "negative_prompt": settings.negative_prompt}
    texts |= {f"validation_prompts[{index}]": prompt for index, prompt in enumerate(prompts)}
    violations += [_out_of_range(f"settings.{name}", found) for name, text in texts.items() if (found := excess(text))]
    if settings.HasField("split_above_seconds") and not settings.split_above_seconds > 0:
        violations.append(_out_of_range("settings.split_above_seconds", "It must be above 0."))
    if (wrong := _check_on_skipped_clip("settings.on_skipped_clip", settings.on_skipped_clip)) is not None:
        violations.append(wrong)
    return violations


def _check_on_skipped_clip(field: str, value: int) -> Violation | None:
    if value in OnSkippedClip.values():
        return None
    names = ", ".join(name for name in OnSkippedClip.keys() if not name.endswith("_UNSPECIFIED"))  # noqa: SIM118
    return Violation(field, ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, f"{value} is none of {names}.")


def _check_geometry(path: str, geometry: Geometry) -> list[Violation]:
    violations = []
    for side in ("width", "height"):
        value = getattr(geometry, side)
        if not 0 < value <= MAX_SIDE or value % SPATIAL_COMPRESSION:
            text = f"{value} is not a multiple of {SPATIAL_COMPRESSION} from {SPATIAL_COMPRESSION} to {MAX_SIDE}."
            violations.append(_out_of_range(f"{path}.{side}", text))
    if not 1 <= geometry.frame_count <= MAX_FRAMES:
        violations.append(_out_of_range(f"{path}.frame_count", f"It must be from 1 to {MAX_FRAMES}."))
    elif geometry.frame_count % TEMPORAL_COMPRESSION != 1:
        violations.append(_not_one_modulo_eight(f"{path}.frame_count", geometry.frame_count))
    if not 1 <= geometry.frame_rate <= MAX_FRAME_RATE:
        violations.append(_out_of_range(f"{path}.frame_rate", f"It must be from 1 to {MAX_FRAME_RATE}."))
    return violations


def _check_prefix(request: TrainingSet) -> list[Violation]:
    settings, path = request.settings, "settings.conditioning_frames"
    prefix = settings.conditioning_frames
    if prefix < 1:
        return [_out_of_range(path, "It must be at least 1.")]
    if prefix % TEMPORAL_COMPRESSION != 1:
        return [_not_one_modulo_eight(path, prefix)]
    counts = {"training": settings.training.frame_count}
    if request.validation_dataset:
        counts["validation"] = settings.validation.frame_count
    covered = [f"{name} ({count} frames)" for name, count in counts.items() if 0 < count <= prefix]
    if not covered:
        return []
    text = f"A prefix of {prefix} frames leaves nothing to generate in {' and '.join(covered)}."
    return [Violation(path, ErrorReason.ERROR_REASON_PREFIX_COVERS_CLIP, text)]


def _required(field: str, text: str) -> Violation:
    return Violation(field, ErrorReason.ERROR_REASON_FIELD_REQUIRED, text)


def _out_of_range(field: str, text: str) -> Violation:
    return Violation(field, ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)


def _not_one_modulo_eight(field: str, value: int) -> Violation:
    text = f"{value} is not 1 modulo 8; the video encoder cannot fold it."
    return Violation(field, ErrorReason.ERROR_REASON_NOT_ONE_MODULO_EIGHT, text)
