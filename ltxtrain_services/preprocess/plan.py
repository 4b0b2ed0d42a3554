"""Plan of a training set: its clips, the files wanted of each, and outcomes known before anything is decoded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.ingest_pb2 import Clip
from ltxtrain.v1.preprocess_pb2 import Geometry, PreprocessSettings

from ltxtrain_services.preprocess.cache_keys import fit_key, prefix_key
from ltxtrain_services.preprocess.outcome import FitOutcome, FitTask, SampleFile, SceneOutcome, Skip
from ltxtrain_services.preprocess.source import Source
from ltxtrain_services.runtime.errors import InvalidSpec, Violation
from ltxtrain_trainer import geometry
from ltxtrain_trainer.data.prompt_text import with_trigger
from ltxtrain_trainer.errors import ClipTooShort
from ltxtrain_trainer.media.frame_schedule import FitSettings, Scene, plan


@dataclass(frozen=True, kw_only=True)
class Item:
    """One clip of a training set, and the samples wanted of it."""

    # Among all clips of the training set; those to train on come first.
    position: int
    clip: Clip
    # Names the clip fitted as the settings ask.
    key: str
    # Caption or prompt as it is embedded.
    prompt: str
    task: FitTask
    wanted_files: frozenset[SampleFile]
    validation_index: int | None = None
    # Set when the clip is known to be left out.
    outcome: FitOutcome | None = None

    @property
    def name(self) -> str:
        """Among the children of the training set."""
        if self.validation_index is not None:
            return f"v{self.validation_index}"
        return f"c{self.clip.name.rpartition('/')[2]}"

    @property
    def main(self) -> SampleFile:
        """The file that makes a scene a sample."""
        if SampleFile.LATENTS in self.wanted_files:
            return SampleFile.LATENTS
        return SampleFile.PREVIEW if self.validation_index is None else SampleFile.PREFIX


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Training clips, then validation clips, each in the order of their dataset."""

    training: Sequence[Item]
    validation: Sequence[Item]
    # Clips without the audio track that was asked for.
    without_audio: list[Clip] = field(default_factory=list)

    @property
    def items(self) -> list[Item]:
        return [*self.training, *self.validation]

    def has_no_text(self, settings: PreprocessSettings) -> bool:
        """Whether no clip has a caption and there is no trigger phrase."""
        bare = all(not item.clip.caption.strip() for item in self.training)
        return bool(self.training) and bare and not settings.trigger_phrase.strip()


def make_plan(source: Source, settings: PreprocessSettings) -> Plan:
    """Raises InvalidSpec when there is not one prompt for each validation clip."""
    prompts = list(settings.validation_prompts)
    if len(prompts) != len(source.validation):
        text = f"{len(prompts)} prompts for {len(source.validation)} validation clips: give one for each, in order."
        field_name = "settings.validation_prompts"
        raise InvalidSpec([Violation(field_name, ErrorReason.ERROR_REASON_FIELD_OUT_OF_RANGE, text)])
    return Plan(
        training=[_training_item(position, clip, settings) for position, clip in enumerate(source.training)],
        validation=[
            _validation_item(len(source.training) + index, clip, index, prompt, settings)
            for index, (clip, prompt) in enumerate(zip(source.validation, prompts, strict=True))
        ],
        without_audio=list(_without_audio(source, settings)),
    )


def _training_item(position: int, clip: Clip, settings: PreprocessSettings) -> Item:
    above = settings.split_above_seconds if settings.HasField("split_above_seconds") else float("inf")
    split = clip.probe.duration_seconds > above
    fit = _fit_settings(settings, settings.training, auto_scale=settings.auto_scale_input)
    wanted_files = {SampleFile.SHEET}
    if settings.export_archive or settings.fit_only:
        wanted_files.add(SampleFile.PREVIEW)
    if not settings.fit_only:
        wanted_files.add(SampleFile.LATENTS)
    return Item(
        position=position,
        clip=clip,
        key=fit_key(clip.blob.sha256, settings, split=split),
        prompt=with_trigger(clip.caption, settings.trigger_phrase),
        task=_task(clip, fit, split=split),
        wanted_files=frozenset(wanted_files),
        outcome=None if split else _known_outcome(clip, fit),
    )


def _validation_item(position: int, clip: Clip, index: int, prompt: str, settings: PreprocessSettings) -> Item:
    validation = Geometry()
    validation.CopyFrom(settings.validation)
    validation.frame_count = settings.conditioning_frames
    fit = _fit_settings(settings, validation, auto_scale=True)
    wanted_files = {SampleFile.PREFIX} if settings.fit_only else {SampleFile.PREFIX, SampleFile.LATENTS}
    return Item(
        position=position,
        clip=clip,
        key=prefix_key(clip.blob.sha256, settings),
        prompt=prompt,
        task=_task(clip, fit, prefix=True),
        wanted_files=frozenset(wanted_files),
        validation_index=index,
    )


def _fit_settings(settings: PreprocessSettings, shape: Geometry, *, auto_scale: bool) -> FitSettings:
    return FitSettings(
        geometry=geometry.Geometry(
            width=shape.width, height=shape.height, frame_count=shape.frame_count, frame_rate=shape.frame_rate
        ),
        auto_scale=auto_scale,
        with_audio=settings.HasField("audio"),
        normalize_audio=settings.audio.normalize,
        preserve_pitch=settings.audio.preserve_pitch,
    )


def _task(clip: Clip, fit: FitSettings, *, split: bool = False, prefix: bool = False) -> FitTask:
    return FitTask(
        key=clip.blob.key,
        sha256=clip.blob.sha256,
        settings=fit,
        frame_count=clip.frame_count,
        duration_seconds=clip.probe.duration_seconds,
        damage=clip.probe.damage,
        split=split,
        prefix=prefix,
    )


def _known_outcome(clip: Clip, fit: FitSettings) -> FitOutcome | None:
    """A clip that is too short is known by its probe, by the rule that would fit it."""
    whole = Scene(
        start_frame=0,
        end_frame=clip.frame_count,
        start_seconds=0.0,
        end_seconds=clip.probe.duration_seconds,
        score=0.0,
    )
    try:
        plan(fit.geometry, fit.auto_scale, whole)
    except ClipTooShort as error:
        damage = clip.probe.damage
        scene = SceneOutcome(
            source_frames=clip.frame_count,
            skipped=Skip.CLIP_DAMAGED if damage else Skip.CLIP_TOO_SHORT,
            description=f"{damage} {error} before it" if damage else str(error),
            have_frames=error.frame_count,
            needed_frames=error.needed_frames,
        )
        return FitOutcome(scenes=(scene,))
    return None


def _without_audio(source: Source, settings: PreprocessSettings) -> Iterator[Clip]:
    """Clips without a track (D12); one that is there and cannot be decoded is another fault, of its clip alone."""
    if settings.HasField("audio"):
        for clip in (*source.training, *source.validation):
            if not clip.HasField("audio_sample_rate") and not clip.probe.audio_error:
                yield clip
