"""From a dataset to a training set. Every step can run twice: what was made before is found again."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain.v1.preprocess_pb2 import PreprocessSettings, TrainingSet
from ltxtrain_client.ingest import IngestClient

from services.preprocess.attempt import Attempt
from services.preprocess.cache import Cache
from services.preprocess.clips import ClipGone
from services.preprocess.making import Making
from services.preprocess.plan import make_plan
from services.preprocess.progress import Journal
from services.preprocess.source import check_alive, keep_alive, read_source
from services.runtime.errors import FailedPrecondition, NotFound
from services.runtime.service import Runtime
from services.runtime.store import Edit, Store
from services.runtime.upstream import connect_service
from trainer.errors import ModelUnavailable, ModelUnsupported
from trainer.model.folder import resolve_model

T = TypeVar("T")

COMPONENTS = ("vae", "audio_vae", "text_encoder", "tokenizer", "connectors")


class PreprocessWorkflow:
    """What the Preprocess service does with one training set."""

    def __init__(self, runtime: Runtime, sets: Store[TrainingSet], cache: Cache) -> None:
        self._runtime = runtime
        self._sets = sets
        self._cache = cache
        self._ingest: IngestClient | None = None

    async def run(self, name: str, attempt: int) -> Callable[[Edit[TrainingSet]], None]:
        training_set = await self._sets.get(name)
        ingest = self._client(await self._sets.owner(name))
        source = await read_source(ingest, training_set)
        plan = make_plan(source, training_set.settings)
        context = Attempt(
            runtime=self._runtime,
            cache=self._cache,
            journal=await Journal.open(self._sets, name, attempt),
            training_set=training_set,
            model_revision=await self._model_revision(training_set.settings),
        )
        making = Making(context, self._sets, attempt, plan, source, ingest)
        try:
            return await _unless(making.run(), keep_alive(ingest, training_set))
        except ClipGone as gone:
            # The dataset went while it was read; its name says more than that of a clip.
            await check_alive(ingest, training_set)
            raise NotFound(gone.clip) from gone

    async def give_back(self, name: str, attempt: int) -> Callable[[Edit[TrainingSet]], None]:
        """Actors ended with the cancelled run; what was made stays in the cache."""
        return lambda edit: None

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
    """What `work` gives, unless `guard` raises before that."""
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
