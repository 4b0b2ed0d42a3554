"""Samples and report of a training set, from what its clips came to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.preprocess_pb2 import PreprocessReport, PreprocessSettings, Sample
from ltxtrain.v1.work_pb2 import ReportLine

from services.preprocess.made import Made
from services.preprocess.pieces import Piece
from services.preprocess.plan import Item, Plan
from services.preprocess.prompts import Prompts
from services.preprocess.report import clip_lines, validation_line
from services.preprocess.suggest import suggestions
from services.preprocess.verdict import skipped_lines


@dataclass(kw_only=True)
class Results:
    """A plan, and what each key of it has come to so far."""

    plan: Plan
    settings: PreprocessSettings
    duplicates: Mapping[str, str]
    prompts: Prompts = field(default_factory=Prompts)
    made: dict[str, Made] = field(default_factory=dict)

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
            if (blob := self.made[item.key].files[scene, Piece.SHEET].blob) is not None:
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
            latents=_blob(made, index, Piece.LATENTS),
            prompt=self.prompts.blob(item.prompt),
            clip_preview=_blob(made, index, Piece.PREVIEW),
            validation_index=item.validation_index,
            speed=1 / scene.stretch,
            prefix_frames=_blob(made, index, Piece.PREFIX),
            frame_rate=scene.frame_rate,
            frame_count=scene.frame_count,
        )


def _blob(made: Made, scene: int, piece: Piece) -> Blob | None:
    entry = made.files.get((scene, piece))
    return None if entry is None else entry.blob
