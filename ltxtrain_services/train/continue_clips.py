"""Jobs that continue clips with the LoRA of another job: their spec from the request and that job, and their task."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.continue_clips_pb2 import ContinueClipsSpec
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import AspectRatio, Resolution
from ltxtrain.v1.preprocess_pb2 import AudioSettings, PreprocessSettings
from ltxtrain.v1.preprocess_pb2 import Geometry as GeometryMessage
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import BasePrecision, ContinueFrom, ContinueMode, Job, JobOptions, JobOutput
from ltxtrain_client.enum_words import word, words
from ltxtrain_client.errors import CLIPS_PATH
from ltxtrain_client.sheet import continues_clips

from ltxtrain_services.runtime.errors import Violation
from ltxtrain_services.runtime.extend_prefix import (
    OPTIONS,
    below,
    bucket_geometry,
    check_prefix,
    check_prompts,
    check_videos,
    fill,
)
from ltxtrain_services.runtime.parameters import table
from ltxtrain_services.runtime.rules import max_items
from ltxtrain_services.runtime.telemetry import current_trace
from ltxtrain_services.train.actors import TrainTask
from ltxtrain_services.train.continuation import Origin, Resolved, over
from ltxtrain_services.train.job_plan import PlanFiles, Prepared, preview_inputs
from ltxtrain_trainer.data.prompt_text import NEGATIVE_PROMPT
from ltxtrain_trainer.plan import ContinuationPlan, PreviewSettings
from ltxtrain_trainer.preview.recipe import AUDIO_TEXT_GUIDANCE, STEPS, VIDEO_TEXT_GUIDANCE

MAX_OPENINGS = max_items(ContinueClipsSpec, "openings")
# The options that decide something of a continuation.
TAKEN_OPTIONS = frozenset({"seed", "base_precision", "preview_schedule_tokens"})

# Most defaults are the source's, which `inherited` fills in.
RULES = table(
    ContinueClipsSpec,
    {
        "number_of_frames": 89,
        "conditioning_frames": 9,
        "frame_rate": 24,
        "resolution": Resolution.RESOLUTION_HIGH,
        "aspect_ratio": AspectRatio.ASPECT_RATIO_1_1,
        "with_audio": False,
        "audio_normalize": True,
        "trigger_phrase": "",
        "negative_prompt": NEGATIVE_PROMPT,
        "guidance_scale": VIDEO_TEXT_GUIDANCE,
        "audio_guidance_scale": AUDIO_TEXT_GUIDANCE,
        "stg_scale": 1.0,
        "sampling_steps": STEPS,
        "base_model": False,
    },
    snapped=("number_of_frames",),
)


def inherited(origin: Origin, with_audio: bool) -> ContinueClipsSpec:
    """The spec of the origin's own previews, without their openings; with_audio: of its LoRA."""
    spec = origin.spec
    if continues_clips(origin.job):
        # It has no LoRA: that alone is its fault.
        own = over(origin.job.effective_spec.continue_clips, ContinueClipsSpec(with_audio=with_audio))
        own.ClearField("openings")
        return own
    return ContinueClipsSpec(
        number_of_frames=spec.validation_number_of_frames,
        conditioning_frames=spec.conditioning_frames,
        frame_rate=spec.validation_frame_rate,
        resolution=spec.validation_resolution,
        aspect_ratio=spec.validation_aspect_ratio,
        with_audio=with_audio,
        audio_normalize=spec.audio_normalize,
        trigger_phrase=spec.trigger_phrase,
        negative_prompt=spec.validation_negative_prompt,
        stg_scale=spec.stg_scale,
    )


def resolve_clips(
    origin: Origin,
    request: ContinueFrom,
    given: ContinueClipsSpec,
    given_options: JobOptions,
    check_url: Callable[[str], str | None],
) -> Resolved:
    """The spec and options as used, the LoRA, and every violation, one a field."""
    lora, with_audio, violations = origin.lora()
    if request.mode not in (ContinueMode.CONTINUE_MODE_UNSPECIFIED, ContinueMode.CONTINUE_MODE_WEIGHTS):
        text = "Clips are continued with the LoRA's weights: leave the mode out."
        violations.append(Violation("continue_from.mode", ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text))
    made = ContinueFrom(source=request.source, mode=ContinueMode.CONTINUE_MODE_WEIGHTS)
    if lora is not None:
        made.artifact, made.step = lora.name, lora.step
    spec, wrong = resolve(given, inherited(origin, with_audio), check_url)
    if spec.with_audio != with_audio and lora is not None:
        wrong.append(origin.other_audio(f"{CLIPS_PATH}with_audio", with_audio))
    options, wrong_options = _options(given_options, origin.job)
    return Resolved(TaskSpec(continue_clips=spec), options, made, [*violations, *wrong, *wrong_options])


def resolve(
    given: ContinueClipsSpec, base: ContinueClipsSpec, check_url: Callable[[str], str | None]
) -> tuple[ContinueClipsSpec, list[Violation]]:
    """The spec over what it inherits, with every default filled, and every violation, one a field."""
    # Not those that nobody looks at: a copy of all would cost what they cost.
    openings, count = given.openings[: MAX_OPENINGS + 1], len(given.openings)
    asked = ContinueClipsSpec(openings=openings)
    for field, value in given.ListFields():
        if field.name != "openings":
            setattr(asked, field.name, value)
    spec, violations = fill(over(base, asked), RULES)
    violations += [*check_videos("openings", openings, check_url), *check_prompts("openings", openings)]
    if not count:
        text = "Name a clip whose opening is continued, and say what happens next."
        violations.append(Violation("openings", ErrorReason.ERROR_REASON_FIELD_REQUIRED, text))
    elif count > MAX_OPENINGS:
        text = f"{count} openings, at most {MAX_OPENINGS} are taken: make another job of the rest."
        violations.append(Violation("openings", ErrorReason.ERROR_REASON_TOO_MANY_VALIDATION_INPUTS, text))
    wrong = {violation.field for violation in violations}
    counts = ["number_of_frames"] if "number_of_frames" not in wrong else []
    if "conditioning_frames" not in wrong and (fault := check_prefix(spec, counts)) is not None:
        violations.append(Violation("conditioning_frames", *fault))
    return spec, sorted(below(CLIPS_PATH, violations), key=lambda violation: violation.field)


def _options(given: JobOptions, source: Job) -> tuple[JobOptions, list[Violation]]:
    """The options that a continuation has: given, or those that the source's previews were made with."""
    reason = ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED
    others = [field.name for field, _ in given.ListFields() if field.name not in TAKEN_OPTIONS]
    violations = [Violation(name, reason, "It decides nothing of a continuation. Leave it out.") for name in others]
    precision = words(BasePrecision.DESCRIPTOR).get(source.training_summary.precision)
    base = JobOptions(
        seed=source.options.seed,
        base_precision=source.options.base_precision if precision is None else precision,  # type: ignore[arg-type] # an enum's number
        preview_schedule_tokens=source.options.preview_schedule_tokens,
    )
    asked = JobOptions()
    asked.CopyFrom(given)
    for name in others:
        asked.ClearField(name)
    options, wrong = fill(over(base, asked), tuple(rule for rule in OPTIONS if rule.name in TAKEN_OPTIONS))
    return options, below("options.", [*violations, *wrong])


def opening_settings(spec: ContinueClipsSpec, model_revision: str) -> PreprocessSettings:
    """The PreprocessSettings of a resolved spec: openings alone, encoded as those of previews are."""
    geometry = bucket_geometry(spec.resolution, spec.aspect_ratio, spec.number_of_frames, spec.frame_rate)
    shape = GeometryMessage(**asdict(geometry))
    settings = PreprocessSettings(
        training=shape,
        validation=shape,
        conditioning_frames=spec.conditioning_frames,
        trigger_phrase=spec.trigger_phrase,
        model_revision=model_revision,
        validation_prompts=[entry.prompt for entry in spec.openings],
        negative_prompt=spec.negative_prompt,
    )
    if spec.with_audio:
        # An opening is never stretched, which alone would read preserve_pitch.
        settings.audio.CopyFrom(AudioSettings(normalize=spec.audio_normalize, preserve_pitch=True))
    return settings


def continuation_task(
    job: Job, prepared: Prepared, lora: Artifact, found: Sequence[Artifact], streamed_blocks: int = 0
) -> TrainTask:
    """The whole task: every opening, but for those that an earlier start has made."""
    spec, options, files = job.effective_spec.continue_clips, job.options, PlanFiles()
    made = {item.validation_index for item in found if item.kind == Artifact.KIND_CONTINUED_VIDEO}
    # Beside each other they are shown from one start.
    left = [item for item in prepared.samples if spec.base_model or item.validation_index not in made]
    plan = ContinuationPlan(
        model=prepared.model.reference,
        revision=prepared.model.revision,
        precision=word(BasePrecision.DESCRIPTOR, options.base_precision),
        lora=files.add(lora.blob),
        lora_step=job.continue_from.step,
        with_audio=spec.with_audio,
        seed=options.seed,
        clips=PreviewSettings(
            frame_count=spec.number_of_frames,
            stg_scale=spec.stg_scale,
            schedule_tokens=options.preview_schedule_tokens,
            negative=files.add(prepared.training_set.negative_prompt),
            inputs=preview_inputs(left, spec.openings, files),
            text_guidance=spec.guidance_scale,
            audio_text_guidance=spec.audio_guidance_scale,
            step_count=spec.sampling_steps,
            base_model=spec.base_model,
        ),
        work_dir=Path("made"),
        streamed_blocks=streamed_blocks,
    )
    return TrainTask(job=job.name, plan=plan, files=files.remote, worker_count=1, trace=current_trace())


def clips_output(found: Sequence[Artifact]) -> JobOutput:
    """The output of a continuation: as many videos as were made, in the order of their openings."""
    ordered = sorted(found, key=lambda item: item.validation_index)
    names = {
        kind: [item.name for item in ordered if item.kind == kind]
        for kind in (Artifact.KIND_CONTINUED_VIDEO, Artifact.KIND_BASE_VIDEO, Artifact.KIND_VALIDATION_REEL)
    }
    return JobOutput(
        continued_videos=names[Artifact.KIND_CONTINUED_VIDEO],
        base_videos=names[Artifact.KIND_BASE_VIDEO],
        video=next(iter(names[Artifact.KIND_VALIDATION_REEL]), ""),
    )
