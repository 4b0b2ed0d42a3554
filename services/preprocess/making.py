"""The steps of one attempt: validation clips, prompts, clips, verdict."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

from ltxtrain.v1.preprocess_pb2 import OnSkippedClip, TrainingSet
from ltxtrain.v1.work_pb2 import ReportReason, Stage
from ltxtrain_client.ingest import IngestClient

from services.preprocess.actors import Phase
from services.preprocess.attempt import Attempt
from services.preprocess.clips import ClipMaker
from services.preprocess.encoders import Encoders
from services.preprocess.made import Made, find_made
from services.preprocess.pieces import Piece
from services.preprocess.plan import Item, Plan
from services.preprocess.prompts import Prompts, embed
from services.preprocess.publish import publish
from services.preprocess.report import rejected_line
from services.preprocess.samples import Results
from services.preprocess.source import Source, skipped_at_ingest
from services.preprocess.tokens import count_tokens
from services.preprocess.verdict import Faults, all_too_short, clip_skipped, nothing_left
from services.runtime.errors import ApiError
from services.runtime.store import Edit, Store


class Making:
    """One attempt at one training set."""

    def __init__(
        self,
        attempt: Attempt,
        sets: Store[TrainingSet],
        number: int,
        plan: Plan,
        source: Source,
        ingest: IngestClient,
    ) -> None:
        self._attempt = attempt
        self._sets = sets
        self._number = number
        self._plan = plan
        self._ingest = ingest
        self._results = Results(plan=plan, settings=attempt.settings, duplicates=source.duplicates)
        self._skipped = False
        self._by_key: dict[str, list[Item]] = {}
        for item in plan.items:
            self._by_key.setdefault(item.key, []).append(item)

    async def run(self) -> Callable[[Edit[TrainingSet]], None]:
        """All of it. Raises what the data shows, when its report is written."""
        journal, settings = self._attempt.journal, self._attempt.settings
        journal.expect(len(self._plan.items))
        stages = [Stage.STAGE_PREPROCESS, *([] if settings.fit_only else [Stage.STAGE_ENCODE])]
        try:
            async with journal.writing(*stages):
                prefixes = await self._check_faults()
                await self._settle_known()
                async with Encoders(self._attempt.runtime.cluster, self._attempt.make_encoder) as encoders:
                    self._results.prompts = await self._embed(encoders)
                    if settings.fit_only:
                        for made in prefixes:
                            self._accept(made)
                    await self._make_clips(encoders)
                await self._check_verdict()
        except ApiError:
            async with self._sets.edit(self._attempt.name, attempt=self._number) as edit:
                edit.body.report.CopyFrom(self._results.report())
            raise
        return await publish(self._attempt, self._sets, self._number, self._results)

    async def _check_faults(self) -> Sequence[Made]:
        """Validation clips, fitted. Raises every fault that makes the data as a whole unfit (D12, P18) at once."""
        faults = Faults(without_audio=self._plan.without_audio)
        prefixes = [replace(item, pieces=frozenset({Piece.PREFIX})) for item in self._plan.validation]
        clips = {clip.name for clip in faults.without_audio}
        fittable = [item for item in prefixes if item.clip.name not in clips]
        found, known = await find_made(self._attempt, fittable)
        made = {one.item.key: one for one in found}
        missing = _unique(item for item in fittable if item.key not in made)
        if missing:
            async with aclosing(ClipMaker(self._attempt, None, known).make(missing)) as fitted:
                made |= {one.item.key: one async for one in fitted}
        for item in fittable:
            scene = made[item.key].outcome.scenes[0]
            if scene.skipped:
                faults.unusable.append((item.clip, scene))
        if (error := faults.error()) is None:
            return list(made.values())
        for item in self._plan.items:
            if item.clip.name in clips:
                line = rejected_line(item.clip, ReportReason.REPORT_REASON_AUDIO_TRACK_MISSING, "no audio track")
                self._attempt.journal.add_lines(item.position, [(item.name, line)])
            elif item.key in made and made[item.key].outcome.scenes[0].skipped:
                self._results.made[item.key] = made[item.key]
                self._attempt.journal.add_lines(item.position, self._results.lines(item))
        raise error

    async def _settle_known(self) -> None:
        """Clips that are known to be left out need no decoding; when none else is there, no model is loaded."""
        for item in self._plan.training:
            if item.outcome is not None:
                self._accept(Made(item=item, outcome=item.outcome))
        if self._stops_at_a_skip() or all(item.outcome is not None for item in self._plan.training):
            await self._check_verdict()

    async def _embed(self, encoders: Encoders) -> Prompts:
        """Captions and prompts, before any clip; with fit_only they are counted alone."""
        settings = self._attempt.settings
        prompts = [item.prompt for item in self._plan.items if item.outcome is None]
        if settings.fit_only:
            return await count_tokens(self._attempt.runtime.settings, prompts)
        if self._plan.validation:
            prompts.append(settings.negative_prompt)
        return await embed(self._attempt, prompts, encoders)

    async def _make_clips(self, encoders: Encoders) -> None:
        attempt = self._attempt
        wanted = _unique(item for item in self._plan.items if item.key not in self._results.made)
        found, known = await find_made(attempt, wanted)
        for made in found:
            self._accept(made)
        missing = [item for item in wanted if item.key not in self._results.made]
        if not missing or self._stops_at_a_skip():
            return
        if not attempt.settings.fit_only:
            await encoders.turn_to(Phase.CLIPS, min(attempt.encoder_count, len(missing)))
        async with aclosing(ClipMaker(attempt, encoders, known).make(missing)) as making:
            async for made in making:
                self._accept(made)
                if self._stops_at_a_skip():
                    return

    def _accept(self, made: Made) -> None:
        self._results.made[made.item.key] = made
        if made.item.validation_index is None and len(made.outcome.kept) < len(made.outcome.scenes):
            self._skipped = True
        for item in self._by_key[made.item.key]:
            self._attempt.journal.reach(Stage.STAGE_PREPROCESS, item.position)
            self._attempt.journal.reach(Stage.STAGE_ENCODE, item.position)
            self._attempt.journal.add_lines(item.position, self._results.lines(item))

    def _stops_at_a_skip(self) -> bool:
        strict = self._attempt.settings.on_skipped_clip == OnSkippedClip.ON_SKIPPED_CLIP_FAIL
        return strict and self._skipped

    async def _check_verdict(self) -> None:
        """Raises when no clip is left, or one was left out that must not be."""
        skipped = self._results.skipped()
        looked_at_all = all(item.key in self._results.made for item in self._plan.training)
        if looked_at_all and not any(made.outcome.kept for made in self._training_made()):
            if all_too_short(skipped):
                skipped += await skipped_at_ingest(self._ingest, self._attempt.training_set.dataset)
            raise nothing_left(skipped)
        if self._stops_at_a_skip():
            raise clip_skipped(skipped)

    def _training_made(self) -> Sequence[Made]:
        return [self._results.made[item.key] for item in self._plan.training if item.key in self._results.made]


def _unique(items: Iterable[Item]) -> list[Item]:
    """The first item of each key."""
    return list({item.key: item for item in reversed(list(items))}.values())[::-1]
