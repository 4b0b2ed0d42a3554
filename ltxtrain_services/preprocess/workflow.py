"""From a dataset to a training set. Every step can run twice: what was made before is found again."""

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.preprocess_pb2 import OnSkippedClip, PreprocessSettings, TrainingSet
from ltxtrain.v1.work_pb2 import ReportReason, Stage
from ltxtrain_client.ingest import IngestClient

from ltxtrain_services.preprocess.actors import Phase
from ltxtrain_services.preprocess.cache import Cache
from ltxtrain_services.preprocess.context import ClipReport, Context
from ltxtrain_services.preprocess.encode_clips import ClipGone, ClipPipeline
from ltxtrain_services.preprocess.encoder_pool import Encoders
from ltxtrain_services.preprocess.failures import Faults, all_too_short, clip_skipped, nothing_left
from ltxtrain_services.preprocess.outcome import SampleFile
from ltxtrain_services.preprocess.plan import Item, Plan, make_plan
from ltxtrain_services.preprocess.prompts import Prompts, count_tokens, embed
from ltxtrain_services.preprocess.report import no_text_line, rejected_line
from ltxtrain_services.preprocess.results import ClipResult, Results, find_cached
from ltxtrain_services.preprocess.salvage import salvage
from ltxtrain_services.preprocess.source import Source, check_alive, keep_alive, read_source, skipped_at_ingest
from ltxtrain_services.runtime.errors import ApiError, FailedPrecondition, NotFound
from ltxtrain_services.runtime.report import ReportWriter
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.upstream import connect_service
from ltxtrain_services.runtime.work import Attempt, Ending, Retryable
from ltxtrain_trainer.errors import ModelUnavailable, ModelUnsupported
from ltxtrain_trainer.model.folder import resolve_model

T = TypeVar("T")

COMPONENTS = ("vae", "audio_vae", "text_encoder", "tokenizer", "connectors")


class PreprocessWorkflow:
    """The work of the Preprocess service on one training set."""

    def __init__(self, runtime: Runtime, cache: Cache) -> None:
        self._runtime = runtime
        self._cache = cache
        self._ingest: IngestClient | None = None

    async def run(self, attempt: Attempt[TrainingSet]) -> Ending[TrainingSet]:
        training_set = await attempt.get()
        ingest = self._client(attempt.owner)
        source = await read_source(ingest, training_set)
        plan = make_plan(source, training_set.settings)
        revision = await self._model_revision(training_set.settings)
        context = await self._context(attempt, training_set, plan, revision)
        try:
            return await _unless(TrainingSetRun(context, plan, source, ingest).run(), keep_alive(ingest, training_set))
        except ClipGone as gone:
            # The dataset went while it was read; its name says more than that of a clip.
            await check_alive(ingest, training_set)
            raise NotFound(gone.clip) from gone

    async def salvage(self, attempt: Attempt[TrainingSet]) -> Ending[TrainingSet]:
        """Actors ended with the run, what was made is in the cache: the report and the contact sheet say so."""
        training_set = await attempt.get()
        try:
            source = await read_source(self._client(attempt.owner), training_set)
            plan = make_plan(source, training_set.settings)
        except (ApiError, Retryable):
            # Without its dataset nothing is known of it.
            return lambda edit: None
        return await salvage(await self._context(attempt, training_set, plan, ""), plan, source)

    async def _context(
        self, attempt: Attempt[TrainingSet], training_set: TrainingSet, plan: Plan, model_revision: str
    ) -> Context:
        writer = await ReportWriter.open(attempt, Stage.STAGE_PREPROCESS)
        return Context(
            attempt=attempt,
            runtime=self._runtime,
            cache=self._cache,
            report=ClipReport(writer, plan, fit_only=training_set.settings.fit_only),
            training_set=training_set,
            model_revision=model_revision,
        )

    def _client(self, owner: str) -> IngestClient:
        if self._ingest is None:
            self._ingest = IngestClient(connect_service(self._runtime.settings.ingest, self._runtime.settings))
        return self._ingest.acting_for(owner)

    async def _model_revision(self, settings: PreprocessSettings) -> str:
        """The revision of the model here; empty when none is needed. Raises FailedPrecondition."""
        if settings.fit_only:
            return ""
        model, revision = self._runtime.settings.model, self._runtime.settings.model_revision or None
        try:
            found = await asyncio.to_thread(resolve_model, model, revision, COMPONENTS)
        except ModelUnavailable as error:
            raise FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE, str(error)) from error
        except ModelUnsupported as error:
            raise FailedPrecondition(ErrorReason.ERROR_REASON_MODEL_UNSUPPORTED, str(error)) from error
        if settings.model_revision not in ("", found.revision):
            raise FailedPrecondition(
                ErrorReason.ERROR_REASON_MODEL_UNAVAILABLE,
                f"This service encodes with revision {found.revision} of {model}, not with {settings.model_revision}. "
                "Give all services the same LTXTRAIN_MODEL and LTXTRAIN_MODEL_REVISION.",
                metadata={"revision": found.revision, "wanted": settings.model_revision},
            )
        return found.revision


async def _unless(work: Coroutine[Any, Any, T], guard: Coroutine[Any, Any, Any]) -> T:
    """Return the result of `work`, or raise what `guard` raises first."""
    tasks: tuple[asyncio.Task[T], asyncio.Task[Any]] = (asyncio.create_task(work), asyncio.create_task(guard))
    working, guarding = tasks
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            guarding.result()
        return await working
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class TrainingSetRun:
    """One attempt at one training set."""

    def __init__(
        self,
        context: Context,
        plan: Plan,
        source: Source,
        ingest: IngestClient,
    ) -> None:
        self._context = context
        self._plan = plan
        self._ingest = ingest
        self._results = Results(plan=plan, settings=context.settings, duplicates=source.duplicates)
        self._skipped = False
        self._by_key: dict[str, list[Item]] = {}
        for item in plan.items:
            self._by_key.setdefault(item.key, []).append(item)

    async def run(self) -> Ending[TrainingSet]:
        """Make all samples. Raises ApiError for what the data shows, once its report is written."""
        context = self._context
        try:
            async with context.report.writing():
                if self._plan.has_no_text(context.settings):
                    await context.report.add_whole("no-text", no_text_line())
                prefixes = await self._check_faults()
                await self._settle_known()
                async with Encoders(context.runtime.cluster, context.make_encoder) as encoders:
                    self._results.prompts = await self._embed(encoders)
                    if context.settings.fit_only:
                        for made in prefixes:
                            self._accept(made)
                    await self._make_clips(encoders)
                await self._check_result()
        except ApiError:
            async with context.attempt.edit() as edit:
                edit.body.report.CopyFrom(self._results.report())
            raise
        # Needed only now: it brings decoders and picture libraries into the service.
        from ltxtrain_services.preprocess.publish import publish

        return await publish(context, self._results)

    async def _check_faults(self) -> Sequence[ClipResult]:
        """Validation clips, fitted. Raises every fault that makes the data as a whole unfit (D12, P18) at once."""
        faults = Faults(without_audio=self._plan.without_audio)
        prefixes = [replace(item, wanted_files=frozenset({SampleFile.PREFIX})) for item in self._plan.validation]
        clips = {clip.name for clip in faults.without_audio}
        fittable = [item for item in prefixes if item.clip.name not in clips]
        found, known = await find_cached(self._context, fittable)
        made = {one.item.key: one for one in found}
        missing = _unique(item for item in fittable if item.key not in made)
        if missing:
            async with aclosing(ClipPipeline(self._context, None, known).make(missing)) as fitted:
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
                self._context.report.add_lines(item.position, [(item.name, line)])
            elif item.key in made and made[item.key].outcome.scenes[0].skipped:
                self._results.made[item.key] = made[item.key]
                self._context.report.add_lines(item.position, self._results.lines(item))
        raise error

    async def _settle_known(self) -> None:
        """Clips that are known to be left out need no decoding; when none else is there, no model is loaded."""
        for item in self._plan.training:
            if item.outcome is not None:
                self._accept(ClipResult(item=item, outcome=item.outcome))
        if self._stops_at_a_skip() or all(item.outcome is not None for item in self._plan.training):
            await self._check_result()

    async def _embed(self, encoders: Encoders) -> Prompts:
        """Captions and prompts, before any clip; with fit_only they are counted alone."""
        settings = self._context.settings
        prompts = [item.prompt for item in self._plan.items if item.outcome is None]
        if settings.fit_only:
            return await count_tokens(self._context.runtime.settings, prompts)
        if self._plan.validation:
            prompts.append(settings.negative_prompt)
        return await embed(self._context, prompts, encoders)

    async def _make_clips(self, encoders: Encoders) -> None:
        context = self._context
        wanted = _unique(item for item in self._plan.items if item.key not in self._results.made)
        found, known = await find_cached(context, wanted)
        for made in found:
            self._accept(made)
        missing = [item for item in wanted if item.key not in self._results.made]
        if not missing or self._stops_at_a_skip():
            return
        if not context.settings.fit_only:
            await encoders.turn_to(Phase.CLIPS, min(context.encoder_count, len(missing)))
        async with aclosing(ClipPipeline(context, encoders, known).make(missing)) as making:
            async for made in making:
                self._accept(made)
                if self._stops_at_a_skip():
                    return

    def _accept(self, made: ClipResult) -> None:
        self._results.made[made.item.key] = made
        if made.item.validation_index is None and len(made.outcome.kept) < len(made.outcome.scenes):
            self._skipped = True
        for item in self._by_key[made.item.key]:
            self._context.report.reach(Stage.STAGE_PREPROCESS, item.position)
            if made.outcome.kept:
                self._context.report.reach(Stage.STAGE_ENCODE, item.position)
            else:
                self._context.report.leave_out(item.position)
            self._context.report.add_lines(item.position, self._results.lines(item))

    def _stops_at_a_skip(self) -> bool:
        strict = self._context.settings.on_skipped_clip == OnSkippedClip.ON_SKIPPED_CLIP_FAIL
        return strict and self._skipped

    async def _check_result(self) -> None:
        """Raises when no clip is left of those to train on, or one was left out that must not be."""
        if not self._context.training_set.dataset:
            return
        skipped = self._results.skipped()
        looked_at_all = all(item.key in self._results.made for item in self._plan.training)
        if looked_at_all and not any(made.outcome.kept for made in self._training_made()):
            if all_too_short(skipped):
                skipped += await skipped_at_ingest(self._ingest, self._context.training_set.dataset)
            raise nothing_left(skipped)
        if self._stops_at_a_skip():
            raise clip_skipped(skipped)

    def _training_made(self) -> Sequence[ClipResult]:
        return [self._results.made[item.key] for item in self._plan.training if item.key in self._results.made]


def _unique(items: Iterable[Item]) -> list[Item]:
    """The first item of each key."""
    return list({item.key: item for item in reversed(list(items))}.values())[::-1]
