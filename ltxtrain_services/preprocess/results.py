"""Samples and report of a training set, from the outcomes of its clips."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import PreprocessReport, PreprocessSettings, Sample
from ltxtrain.v1.work_pb2 import ReportLine

from ltxtrain_services.preprocess.cache import Entry
from ltxtrain_services.preprocess.cache_keys import latents_key, lossless_key, sheet_key
from ltxtrain_services.preprocess.context import Context
from ltxtrain_services.preprocess.failures import skipped_lines
from ltxtrain_services.preprocess.outcome import FitOutcome, SampleFile
from ltxtrain_services.preprocess.plan import Item, Plan
from ltxtrain_services.preprocess.prompts import Prompts
from ltxtrain_services.preprocess.report import clip_lines, validation_line
from ltxtrain_services.preprocess.suggestions import suggestions


@dataclass(frozen=True, kw_only=True)
class ClipResult:
    """The outcome of a clip, and the files of its scenes."""

    item: Item
    outcome: FitOutcome
    files: Mapping[tuple[int, SampleFile], Entry] = field(default_factory=dict)
    # Samples that were there already, and those that were made.
    hits: int = 0
    misses: int = 0


async def find_cached(context: Context, items: Sequence[Item]) -> tuple[list[ClipResult], dict[str, Entry]]:
    """Items that are cached whole, and cached files of the others by their key."""
    outcomes = await context.cache.find([item.key for item in items], context.name)
    loaded = {item.key: FitOutcome.load(outcomes[item.key].facts) for item in items if item.key in outcomes}
    known = {key: outcome for key, outcome in loaded.items() if outcome is not None}
    wanted = {
        item_key(context, item, scene, file)
        for item in items
        if item.key in known
        for scene in known[item.key].kept
        for file in item.wanted_files
    }
    found = await context.cache.find(sorted(wanted), context.name)
    whole = []
    for item in items:
        if item.key not in known:
            continue
        outcome = known[item.key]
        files = item_files(context, item, outcome, found)
        if files is not None:
            whole.append(ClipResult(item=item, outcome=outcome, files=files, hits=len(outcome.kept)))
    return whole, found


def item_key(context: Context, item: Item, scene: int, file: SampleFile) -> str:
    """The cache's key of one file of a scene."""
    match file:
        case SampleFile.LATENTS:
            return latents_key(item.key, scene, context.model_revision)
        case SampleFile.SHEET:
            return sheet_key(item.key, scene, context.settings.conditioning_frames)
        case SampleFile.PREVIEW | SampleFile.PREFIX:
            return lossless_key(item.key, scene, file)


def item_files(
    context: Context, item: Item, outcome: FitOutcome, found: Mapping[str, Entry]
) -> dict[tuple[int, SampleFile], Entry] | None:
    """The files of all kept scenes, or None when one is not there."""
    keys = {(scene, file): item_key(context, item, scene, file) for scene in outcome.kept for file in item.wanted_files}
    if any(key not in found for key in keys.values()):
        return None
    return {place: found[key] for place, key in keys.items()}


@dataclass(kw_only=True)
class Results:
    """A plan, and what each key of it has come to so far."""

    plan: Plan
    settings: PreprocessSettings
    duplicates: Mapping[str, str]
    prompts: Prompts = field(default_factory=Prompts)
    made: dict[str, ClipResult] = field(default_factory=dict)

    def lines(self, item: Item) -> list[tuple[str, ReportLine]]:
        """Report lines of one clip, each with the name that it has among the children of the training set."""
        outcome, caption = self.made[item.key].outcome, self.prompts.caption(item.prompt)
        if item.validation_index is not None:
            return [(item.name, validation_line(item.clip, outcome.scenes[0], caption, self.settings))]
        duplicate_of = self.duplicates.get(item.clip.name, "")
        lines = clip_lines(item.clip, outcome, caption, self.settings, duplicate_of)
        return [(item.name if index == 0 else f"{item.name}-{index}", line) for index, line in enumerate(lines)]

    def skipped(self) -> list[ReportLine]:
        """Training clips and scenes that were left out so far, in their order."""
        lines = [line for item in self.plan.training if item.key in self.made for _, line in self.lines(item)]
        return skipped_lines(lines)

    def samples(self, parent: str) -> list[Sample]:
        """Training samples in the order of clips and scenes, then those of the validation clips."""
        places = [(item, scene) for item in self.plan.items if item.key in self.made for scene in self._kept(item)]
        return [self._sample(f"{parent}/samples/{index:06}", item, scene) for index, (item, scene) in enumerate(places)]

    def sheets(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Blob]]:
        """Training samples with their part of the contact sheet."""
        places = [(item, scene) for item in self.plan.training for scene in self._kept(item)]
        for sample, (item, scene) in zip(samples, places, strict=False):
            if (blob := self.made[item.key].files[scene, SampleFile.SHEET].blob) is not None:
                yield sample, blob

    def report(self) -> PreprocessReport:
        """Counts training clips; hits and misses are of validation clips and prompts too."""
        training = [(item.clip, self.made[item.key].outcome) for item in self.plan.training if item.key in self.made]
        split = [outcome for _, outcome in training if len(outcome.scenes) > 1]
        return PreprocessReport(
            clips=len(self.plan.training),
            split_clips=len(split),
            scenes=sum(len(outcome.scenes) for outcome in split),
            samples=sum(len(outcome.kept) for _, outcome in training),
            skipped=sum(len(outcome.scenes) - len(outcome.kept) for _, outcome in training),
            cache_hits=self.prompts.hits + sum(made.hits for made in self.made.values()) + self._repeated(),
            cache_misses=self.prompts.misses + sum(made.misses for made in self.made.values()),
            suggestions=suggestions(training, self.settings),
        )

    def _repeated(self) -> int:
        """Samples of clips that are there twice: made once, found by the others."""
        seen: set[str] = set()
        count = 0
        for item in self.plan.items:
            if item.key in seen:
                count += len(self._kept(item))
            seen.add(item.key)
        return count

    def _kept(self, item: Item) -> list[int]:
        return list(self.made[item.key].outcome.kept) if item.key in self.made else []

    def _sample(self, name: str, item: Item, index: int) -> Sample:
        made = self.made[item.key]
        scene = made.outcome.scenes[index]
        return Sample(
            name=name,
            clip=item.clip.name,
            start_frame=scene.start_frame,
            caption=item.prompt,
            latents=_blob(made, index, SampleFile.LATENTS),
            prompt=self.prompts.blob(item.prompt),
            clip_preview=_blob(made, index, SampleFile.PREVIEW),
            validation_index=item.validation_index,
            speed=1 / scene.stretch,
            prefix_frames=_blob(made, index, SampleFile.PREFIX),
            frame_rate=scene.frame_rate,
            frame_count=scene.frame_count,
        )


def _blob(made: ClipResult, scene: int, file: SampleFile) -> Blob | None:
    entry = made.files.get((scene, file))
    return None if entry is None else entry.blob
