"""Clips to samples: fitted on CPUs, encoded where the model is, with a bounded number of pictures in between."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from ltxtrain.v1.work_pb2 import Stage

from ltxtrain_services.preprocess.actors import FitOrder, Fitted
from ltxtrain_services.preprocess.cache import Entry, as_blob
from ltxtrain_services.preprocess.context import Context
from ltxtrain_services.preprocess.encoder_pool import Encoders
from ltxtrain_services.preprocess.outcome import FitOutcome, SampleFile, SceneOutcome, Skip
from ltxtrain_services.preprocess.plan import Item
from ltxtrain_services.preprocess.results import ClipResult, item_files, item_key
from ltxtrain_services.runtime.cluster import ActorKilled, kill
from ltxtrain_services.runtime.objects import ObjectCorrupt, ObjectMissing, StoredBlob
from ltxtrain_services.runtime.pool import map_bounded
from ltxtrain_services.runtime.trainer_errors import api_error
from ltxtrain_services.runtime.work import Retryable
from ltxtrain_trainer.errors import DeviceMemoryExhausted

# Share of Ray's object store for scenes that wait to be encoded; when it is nearly full, Ray spills to disk.
IN_FLIGHT_SHARE = 0.5
# Pictures that wait for one encoder; more would not make it faster.
WAITING = 2
# Values that a fitter may run ahead: the frames and the outcome of one scene.
AHEAD = 2
# Pictures of one fitter: that which waits for its place, and the next scene's.
OF_A_FITTER = 2


class ClipGone(Exception):
    """The bytes of a clip are not in the store any more."""

    def __init__(self, clip: str) -> None:
        super().__init__(clip)
        self.clip = clip


@dataclass
class _Fitting:
    """A clip while it is made; outlives the actors that make it."""

    scenes: dict[int, Fitted] = field(default_factory=dict)
    encodings: dict[int, "asyncio.Task[StoredBlob]"] = field(default_factory=dict)


class ClipPipeline:
    """Makes items that are not there yet; each key once."""

    def __init__(self, context: Context, encoders: Encoders | None, known: Mapping[str, Entry]) -> None:
        self._context = context
        self._cluster = context.runtime.cluster
        self._encoders = encoders
        self._known = known
        self._fittings: dict[str, _Fitting] = {}
        self._slot_count = 0
        self._slots = asyncio.Semaphore(0)

    async def make(self, items: Sequence[Item]) -> AsyncGenerator[ClipResult, None]:
        """Each item as it is done.

        Raises ClipGone, the status of DeviceMemoryExhausted, Retryable, ClusterLost and ObjectStoreUnavailable.
        """
        finishing: set[asyncio.Task[ClipResult]] = set()
        fitted = map_bounded(
            self._cluster,
            self._context.make_fitter,
            items,
            self._fit,
            size=lambda: min(self._widths()[0], len(items)),
        )
        self._grow(len(items))
        try:
            with self._cluster.calling(lambda: self._grow(len(items))):
                async with aclosing(fitted) as results:
                    async for item, result in results:
                        finishing.add(asyncio.create_task(self._finish(item, result)))
                        for made in _taken(finishing):
                            yield made
            while finishing:
                await asyncio.wait(finishing, return_when=asyncio.FIRST_COMPLETED)
                for made in _taken(finishing):
                    yield made
        finally:
            encodings = [task for fitting in self._fittings.values() for task in fitting.encodings.values()]
            tasks: list[asyncio.Task[Any]] = [*finishing, *encodings]
            for one in tasks:
                one.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _widths(self) -> tuple[int, int]:
        """Fitters and places for pictures, by the nodes that there are now."""
        training = self._context.settings.training
        picture_bytes = training.width * training.height * 3 * training.frame_count
        room = int(self._cluster.object_store_bytes * IN_FLIGHT_SHARE) // picture_bytes
        return widths(room, self._cluster.cpu_count, self._context.encoder_count)

    def _grow(self, item_count: int) -> None:
        """Have more pictures wait, and more encoders, where nodes have come. Those that go take theirs with them."""
        slots = self._widths()[1]
        while self._slot_count < slots:
            self._slot_count += 1
            self._slots.release()
        if self._encoders is not None and not self._context.settings.fit_only:
            self._encoders.grow(min(self._context.encoder_count, item_count))

    async def _fit(self, actor: Any, item: Item) -> FitOutcome:
        """Fit all scenes of an item; each is handed to the encoders as it comes."""
        fitting = self._fittings.setdefault(item.key, _Fitting())
        order = FitOrder(
            task=item.task,
            wanted_files=item.wanted_files,
            conditioning_frames=self._context.settings.conditioning_frames,
        )
        streaming = actor.fit.options(num_returns="streaming", _generator_backpressure_num_objects=AHEAD)
        references = streaming.remote(order)
        limit = self._context.runtime.settings.clip_seconds
        # Nothing is left to wait for after the only scene of a clip that is not split.
        for index in itertools.count() if item.task.split else range(1):
            try:
                async with asyncio.timeout(limit):
                    picture = await self._cluster.reference(references)
                    if picture is None:
                        break
                    # Whether the actor still lived after the picture is known by what follows it.
                    following = await self._cluster.reference(references)
                    fitted: Fitted = await self._cluster.value(picture if following is None else following)
            except TimeoutError:
                # Trying again would take as long; the next clip finds the actor dead and gets another.
                kill(actor)
                return _killed(item, f"fitting it takes longer than the {limit:.0f} s that a clip may take")
            if index not in fitting.scenes:
                fitting.scenes[index] = fitted
                await self._hand_over(item, index, fitting, picture)
        return FitOutcome(scenes=tuple(fitting.scenes[index].scene for index in sorted(fitting.scenes)))

    async def _hand_over(self, item: Item, scene: int, fitting: _Fitting, picture: Any) -> None:
        wanted = SampleFile.LATENTS in item.wanted_files and not fitting.scenes[scene].scene.skipped
        if wanted and item_key(self._context, item, scene, SampleFile.LATENTS) not in self._known:
            await self._slots.acquire()
            fitting.encodings[scene] = asyncio.create_task(self._encode(picture))

    async def _encode(self, picture: Any) -> StoredBlob:
        assert self._encoders is not None
        try:
            stored: StoredBlob = await self._encoders.call("encode", picture)
        finally:
            self._slots.release()
        return stored

    async def _finish(self, item: Item, result: FitOutcome | Exception) -> ClipResult:
        """Wait for the encodings of an item's scenes, and cache and return its result."""
        self._context.report.reach(Stage.STAGE_PREPROCESS, item.position)
        fitting = self._fittings.get(item.key, _Fitting())
        encoded: dict[int, StoredBlob] = {}
        try:
            stored = await asyncio.gather(*fitting.encodings.values())
            encoded = dict(zip(fitting.encodings, stored, strict=True))
        except ActorKilled:
            result = _killed(item, "encoding it ended its worker three times")
        except DeviceMemoryExhausted as error:
            raise api_error(error) from error
        outcome = _outcome(item, result)
        entries = {}
        if not outcome.killed:
            entries = self._entries(item, outcome, fitting, encoded)
            await self._context.cache.keep(entries, self._context.name)
        files = item_files(self._context, item, outcome, {**self._known, **entries})
        assert files is not None
        misses = len(outcome.kept) if item.main is not SampleFile.LATENTS else len(fitting.encodings)
        return ClipResult(item=item, outcome=outcome, files=files, hits=len(outcome.kept) - misses, misses=misses)

    def _entries(
        self, item: Item, outcome: FitOutcome, fitting: _Fitting, encoded: Mapping[int, StoredBlob]
    ) -> dict[str, Entry]:
        entries = {}
        for index in outcome.kept:
            stored = dict(fitting.scenes[index].stored)
            if index in encoded:
                stored[SampleFile.LATENTS] = encoded[index]
            for file, blob in stored.items():
                entries[item_key(self._context, item, index, file)] = Entry(as_blob(blob))
        # Last: it says that the rest is there.
        entries[item.key] = Entry(facts=outcome.dump())
        return entries


def widths(room: int, cpus: int, encoders: int) -> tuple[int, int]:
    """Fitter count and encode-queue depth that together keep at most `room` fitted scenes in Ray's object store."""
    fitters = max(1, min(cpus, (room - 1) // OF_A_FITTER))
    return fitters, max(1, min(WAITING * encoders, room - OF_A_FITTER * fitters))


def _taken(tasks: set[asyncio.Task[ClipResult]]) -> Iterator[ClipResult]:
    """Results of the tasks that have ended, which are taken out of the set."""
    for task in [task for task in tasks if task.done()]:
        tasks.remove(task)
        yield task.result()


def _outcome(item: Item, result: FitOutcome | Exception) -> FitOutcome:
    match result:
        case FitOutcome():
            return result
        case ActorKilled():
            return _killed(item, "decoding it ended its worker three times")
        case ObjectMissing():
            raise ClipGone(item.clip.name)
        case ObjectCorrupt():
            raise Retryable(f"the bytes of {item.clip.name} were read wrongly: {result}")
    raise result


def _killed(item: Item, text: str) -> FitOutcome:
    scene = SceneOutcome(source_frames=item.clip.frame_count, skipped=Skip.ACTOR_KILLED, description=text)
    return FitOutcome(scenes=(scene,))
