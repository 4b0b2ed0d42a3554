"""Jobs that go on from another: what they inherit, what may change, and the files that they take over."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.task_pb2 import TaskSpec
from ltxtrain.v1.train_pb2 import ContinueFrom, ContinueMode, Job, JobOptions, Schedule
from ltxtrain.v1.work_pb2 import Event, PreviewMetrics, Stage, State
from ltxtrain_client.errors import SHEET_PATH
from ltxtrain_client.sheet import continues_clips, name_datasets
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.runtime.errors import NotFound, NotReady, Violation
from ltxtrain_services.runtime.extend_prefix import OPTIONS, SPEC, fill
from ltxtrain_services.runtime.objects import ObjectStore
from ltxtrain_services.runtime.parameters import Named, Rule
from ltxtrain_services.runtime.store import Store
from ltxtrain_services.runtime.work import Attempt
from ltxtrain_services.train.artifacts import (
    COLLECTION,
    INITIAL_LORA,
    OF_CHECKPOINT,
    artifacts,
    latest_checkpoint,
    object_key,
    of_step,
    record,
    short_name,
)
from ltxtrain_services.train.publication import MEASURED, measured_key

T = TypeVar("T", bound=Message)

EXACT, WEIGHTS = ContinueMode.CONTINUE_MODE_EXACT, ContinueMode.CONTINUE_MODE_WEIGHTS
SOURCE = re.compile(r"(jobs/[^/]+)(/artifacts/[^/]+)?")
SOURCE_FIELD = "continue_from.source"

# Parameters that decide no number of a training: an exact continuation may change them.
OF_PREVIEWS = frozenset(rule.name for rule in SPEC if rule.name.startswith("validation_")) | {"stg_scale"}
FREE_SPEC = OF_PREVIEWS | {"number_of_steps", "debug_dataset"}
FREE_OPTIONS = frozenset({"checkpoint_interval", "preview_interval", "preview_schedule_tokens", "on_skipped_clip"})

OTHERWISE = "Mode weights starts a new training from its LoRA."


@dataclass(frozen=True)
class Resolved:
    """A request as it would be used, and every violation of it."""

    spec: TaskSpec
    options: JobOptions
    continue_from: ContinueFrom | None
    violations: list[Violation]


@dataclass(frozen=True)
class Origin:
    """The job that another goes on from, and its artifacts."""

    job: Job
    found: Sequence[Artifact]
    # The one that was named, if it was not the job.
    named: Artifact | None = None

    @classmethod
    async def read(cls, jobs: Store[Job], source: str, owner: str | None) -> "Origin":
        """The origin that a caller names. Raises NotFound, also for another's, and NotReady for one that goes on."""
        parts = SOURCE.fullmatch(source)
        if parts is None:
            raise NotFound(source)
        job = await jobs.get(parts[1], owner)
        if job.lifecycle.state not in TERMINAL:
            raise NotReady(f"{job.name} has not ended: wait for it, or cancel it.", metadata={"name": job.name})
        found = await jobs.all_children(job.name, COLLECTION, Artifact)
        named = next((item for item in found if item.name == source), None)
        if parts[2] and named is None:
            raise NotFound(source)
        return cls(job, found, named)

    @property
    def spec(self) -> ExtendPrefixSpec:
        """The spec as it was used, with the datasets that were made of its sources."""
        spec = ExtendPrefixSpec()
        spec.CopyFrom(self.job.effective_spec.extend_prefix)
        name_datasets(spec, self.job.dataset, self.job.validation_dataset)
        return spec

    def inherited(self, spec: ExtendPrefixSpec, options: JobOptions) -> tuple[ExtendPrefixSpec, JobOptions]:
        """A request's spec and options, with the origin's where the request leaves something out."""
        return over(self.spec, spec), over(self.job.options, options)

    def continuation(
        self, request: ContinueFrom, given: ExtendPrefixSpec, spec: ExtendPrefixSpec, options: JobOptions
    ) -> tuple[ContinueFrom, list[Violation]]:
        """How a job goes on, and everything that forbids it.

        given: the spec as received. spec and options: resolved.
        """
        if continues_clips(self.job):
            text = f"{self.job.name} trained nothing: it continued clips with {self.job.continue_from.artifact}."
            artifact, wrong = None, [_not_allowed(SOURCE_FIELD, text)]
        elif request.mode == WEIGHTS:
            artifact, wrong = self._weights(spec)
        elif request.mode in (EXACT, ContinueMode.CONTINUE_MODE_UNSPECIFIED):
            artifact, wrong = self._exact(given, spec, options)
        else:
            names = ", ".join(item.name for item in ContinueMode.DESCRIPTOR.values[1:])
            wrong = [_not_allowed("continue_from.mode", f"{request.mode} is none of {names}.")]
            artifact = None
        exact = request.mode != WEIGHTS
        made = ContinueFrom(source=request.source, mode=EXACT if exact else WEIGHTS)
        if artifact is not None:
            made.artifact, made.step = artifact.name, artifact.step
        if spec.dataset == self.job.dataset:
            made.training_set = self.job.training_set
        if exact:
            made.billed_steps = self._billed(made.step)
        return made, wrong

    def retried(self) -> Job:
        """The job that goes on with this one, as it was asked for. Raises NotReady for one that succeeded."""
        old = self.job
        if old.lifecycle.state == State.STATE_SUCCEEDED:
            text = f"{old.name} succeeded. To train it further, create a job that continues from it."
            raise NotReady(text, metadata={"name": old.name})
        going_on = ContinueFrom(source=old.name, mode=EXACT, training_set=old.training_set)
        if continues_clips(old):
            # Once more from the same LoRA.
            going_on = old.continue_from
        elif checkpoint := latest_checkpoint(self.found):
            going_on.artifact, going_on.step = checkpoint["CHECKPOINT"].name, checkpoint["CHECKPOINT"].step
        elif old.continue_from.artifact:
            # It ended before a checkpoint of its own: from what it went on from itself.
            going_on.MergeFrom(old.continue_from)
            going_on.source = old.name
            if own := next((item for item in self.found if short_name(item) == INITIAL_LORA), None):
                going_on.artifact = own.name
        going_on.billed_steps = self._billed(going_on.step) if going_on.mode == EXACT else 0
        return Job(
            spec=old.spec,
            effective_spec=old.effective_spec,
            options=old.options,
            display_name=old.display_name,
            labels=old.labels,
            continue_from=going_on,
        )

    def _billed(self, step: int) -> int:
        paid = step if self.job.lifecycle.state == State.STATE_SUCCEEDED else self.job.continue_from.billed_steps
        return min(step, paid)

    def _exact(
        self, given: ExtendPrefixSpec, spec: ExtendPrefixSpec, options: JobOptions
    ) -> tuple[Artifact | None, list[Violation]]:
        old = self.job
        # What there was no choice of then stood as it does by default.
        before_options, _ = fill(old.options, OPTIONS)
        wrong = [
            *_changed(SHEET_PATH, SPEC, FREE_SPEC, old.effective_spec.extend_prefix, spec, old.name),
            *_changed("options.", OPTIONS, FREE_OPTIONS, before_options, options, old.name),
        ]
        if (data := given.WhichOneof("training_data")) is not None and getattr(given, data) not in {
            old.dataset,
            getattr(old.effective_spec.extend_prefix, data),
        }:
            wrong.append(_not_allowed(f"{SHEET_PATH}{data}", f"It keeps the data of {old.name}. {OTHERWISE}"))
        artifact = self.named or latest_checkpoint(self.found).get("CHECKPOINT")
        if artifact is None:
            text = f"{old.name} has no checkpoint: it ended before one, or its state was dropped. {OTHERWISE}"
            return None, [*wrong, _not_allowed(SOURCE_FIELD, text)]
        if artifact.kind != Artifact.KIND_CHECKPOINT:
            kind = Artifact.Kind.Name(artifact.kind)
            text = f"{artifact.name} is a {kind}; an exact continuation needs a KIND_CHECKPOINT. {OTHERWISE}"
            return None, [*wrong, _not_allowed(SOURCE_FIELD, text)]
        steps, before = spec.number_of_steps, old.effective_spec.extend_prefix.number_of_steps
        if old.options.schedule != Schedule.SCHEDULE_CONSTANT and steps != before:
            text = (
                f"{steps} steps are another training than {before}: under a linear schedule every step depends on "
                f"their number. {OTHERWISE}"
            )
            wrong.append(_not_allowed(f"{SHEET_PATH}number_of_steps", text))
        elif steps <= artifact.step:
            text = f"{steps} is not above the {artifact.step} steps that are done. It counts from the first step."
            wrong.append(_out_of_range(f"{SHEET_PATH}number_of_steps", text))
        return artifact, wrong

    def lora(self) -> tuple[Artifact | None, bool, list[Violation]]:
        """The LoRA that is meant, whether it is one with audio, and why there is none."""
        old, artifact = self.job, self.named
        if artifact is None:
            artifact = next((item for item in self.found if item.name == old.output.lora_file), None)
        if artifact is None:
            text = f"{old.name} has no LoRA: it ended before its first checkpoint."
            if continues_clips(old):
                text = f"{old.name} has no LoRA of its own: it continued clips with {old.continue_from.artifact}."
            return None, False, [_not_allowed(SOURCE_FIELD, text)]
        if artifact.kind not in (Artifact.KIND_LORA, Artifact.KIND_LORA_VIDEO_ONLY):
            kind = Artifact.Kind.Name(artifact.kind)
            return None, False, [_not_allowed(SOURCE_FIELD, f"{artifact.name} is a {kind} and no LoRA.")]
        return artifact, artifact.kind == Artifact.KIND_LORA and self.spec.with_audio, []

    def other_audio(self, field: str, with_audio: bool) -> Violation:
        """The violation of a with_audio that is not the LoRA's."""
        text = f"The LoRA is one {'with' if with_audio else 'without'} audio."
        if with_audio:
            text += " Its part without is the job's lora-video-only.safetensors: name that artifact."
        return _not_allowed(field, text)

    def _weights(self, spec: ExtendPrefixSpec) -> tuple[Artifact | None, list[Violation]]:
        artifact, with_audio, wrong = self.lora()
        if artifact is None:
            return None, wrong
        if spec.rank != (rank := self.spec.rank):
            text = f"{spec.rank} is not the LoRA's rank of {rank}. Leave it out to keep it."
            wrong.append(_not_allowed(f"{SHEET_PATH}rank", text))
        if spec.with_audio != with_audio:
            wrong.append(self.other_audio(f"{SHEET_PATH}with_audio", with_audio))
        return artifact, wrong


async def used_lora(jobs: Store[Job], job: Job) -> Artifact:
    """The LoRA that a continuation uses. Raises NotFound once it was deleted."""
    name = job.continue_from.artifact
    origin, _, short = name.partition("/artifacts/")
    lora = await jobs.child(origin, COLLECTION, short, Artifact)
    if lora is None:
        raise NotFound(name)
    return lora


async def take_over(objects: ObjectStore, attempt: Attempt[Job]) -> None:
    """Copy, once, what a job goes on from under its own name: the source may be deleted from then on.

    Raises NotFound when the source was deleted before.
    """
    job = await attempt.get()
    source = job.continue_from
    if not source.artifact or continues_clips(job):
        # A use of a LoRA leaves nothing that others could go on from.
        return
    if any(item.kind in OF_CHECKPOINT for item in await artifacts(attempt)):
        return
    origin = source.artifact.partition("/artifacts/")[0]
    found = await attempt.store.all_children(origin, COLLECTION, Artifact)
    start = next((item for item in found if item.name == source.artifact), None)
    if start is None:
        raise NotFound(source.artifact)
    if source.mode == WEIGHTS:
        taken = [(start, INITIAL_LORA)]
    else:
        taken = [(item, short_name(item)) for item in of_step(found, source.step).values()]
    previews = await _previews(attempt, job, origin, found)
    taken += [(item, short_name(item)) for item in found if previews and _is_preview(item, source.step)]
    made = [await _copied(objects, job, item, name) for item, name in taken]
    async with attempt.edit() as edit:
        record(edit, made)
        for measured in previews:
            edit.put_child(MEASURED, measured_key(measured), measured)
            edit.add_event(Event(stage=Stage.STAGE_PREVIEW, preview_metrics=measured))
        if source.mode == EXACT:
            edit.body.checkpoint_step = source.step


async def _previews(attempt: Attempt[Job], job: Job, origin: str, found: Sequence[Artifact]) -> list[PreviewMetrics]:
    """Numbers of the previews that an exact continuation takes over: those of the same clips in the same way."""
    if job.continue_from.mode != EXACT:
        return []
    old = Origin(await attempt.store.get(origin), found)
    spec = job.effective_spec.extend_prefix
    same = old.job.options.preview_schedule_tokens == job.options.preview_schedule_tokens and all(
        getattr(old.spec, name) == getattr(spec, name) for name in (*OF_PREVIEWS, "validation")
    )
    measured = await attempt.store.all_children(origin, MEASURED, PreviewMetrics) if same else []
    return [item for item in measured if item.step <= job.continue_from.step]


def _is_preview(item: Artifact, until: int) -> bool:
    return item.kind in (Artifact.KIND_VALIDATION_VIDEO, Artifact.KIND_BASE_VIDEO) and item.step <= until


async def _copied(objects: ObjectStore, job: Job, item: Artifact, name: str) -> Artifact:
    stored = await objects.copy(item.blob.key, object_key(job.name, name))
    copy = Artifact()
    copy.CopyFrom(item)
    copy.name, copy.blob.key = f"{job.name}/artifacts/{name}", stored.key
    copy.create_time.GetCurrentTime()
    if name == INITIAL_LORA:
        copy.kind, copy.step = Artifact.KIND_LORA, 0
    return copy


def over(base: T, given: T) -> T:
    """The base with every field that is given in its place; a list is given as a whole."""
    merged = type(base)()
    merged.CopyFrom(base)
    for field, _ in given.ListFields():
        merged.ClearField(field.name)
    merged.MergeFrom(given)
    return merged


def _changed(
    path: str, rules: Iterable[Rule], free: frozenset[str], old: Message, new: Message, name: str
) -> list[Violation]:
    wrong = []
    for rule in rules:
        before, after = getattr(old, rule.name), getattr(new, rule.name)
        if rule.name not in free and before != after:
            text = f"It is {_shown(rule, before)} in {name}, and an exact continuation keeps it. {OTHERWISE}"
            wrong.append(_not_allowed(f"{path}{rule.name}", text))
    return wrong


def _shown(rule: Rule, value: Any) -> str:
    if isinstance(rule, Named) and value in rule.kind.values():
        return str(rule.kind.Name(value))
    return repr(value)[:80] if isinstance(value, str) else str(value)


def _not_allowed(field: str, text: str) -> Violation:
    return Violation(field, ErrorReason.ERROR_REASON_FIELD_NOT_ALLOWED, text)


def _out_of_range(field: str, text: str) -> Violation:
    return Violation(field, ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)
