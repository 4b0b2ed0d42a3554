"""Probes clips by Ray actors: a pool for each dataset, made when the first clip needs it and gone with the last."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from ltxtrain_services.ingest.clip_store import ClipStore
from ltxtrain_services.ingest.gather import StoredCandidate
from ltxtrain_services.ingest.names import suffix_of
from ltxtrain_services.ingest.prober import Prober, ProbeResult, ProbeTask
from ltxtrain_services.runtime.cluster import ActorKilled, kill
from ltxtrain_services.runtime.objects import ObjectCorrupt, ObjectMissing
from ltxtrain_services.runtime.pool import map_bounded
from ltxtrain_services.runtime.service import Runtime
from ltxtrain_services.runtime.telemetry import current_trace
from ltxtrain_services.runtime.work import Retryable

# More actors than this would wait for the unpacking of one archive.
MAX_ACTORS = 16
# An actor that nobody is left to kill ends by itself, so long after its time.
GRACE_SECONDS = 5.0


class Probing:
    """Probes by the cluster."""

    def __init__(self, runtime: Runtime, clips: ClipStore) -> None:
        self._runtime = runtime
        self._clips = clips

    async def results(
        self, stored: AsyncGenerator[StoredCandidate, None]
    ) -> AsyncGenerator[tuple[StoredCandidate, ProbeResult], None]:
        """Each candidate with its result, as it comes. Raises ObjectStoreUnavailable, Retryable, ClusterLost."""
        cluster = self._runtime.cluster
        found = map_bounded(
            cluster, self._make_actor, stored, self._probe, size=lambda: min(cluster.cpu_count, MAX_ACTORS)
        )
        async with aclosing(found) as results:
            async for item, result in results:
                if isinstance(result, ActorKilled):
                    text = "Decoding it ended its worker three times."
                    result = ProbeResult(failure=text, exhausted=True)
                if isinstance(result, ObjectMissing | ObjectCorrupt):
                    self._clips.distrust(item.blob.key)
                    raise Retryable(f"{item.blob.key} has to be stored again: {result}")
                if isinstance(result, Exception):
                    raise result
                yield item, result

    def _make_actor(self) -> Any:
        settings = self._runtime.settings
        address = self._runtime.objects.objects.address
        limits = settings.clip_seconds + GRACE_SECONDS, settings.clip_memory_bytes
        return Prober.remote(address, *limits, current_trace())  # type: ignore[attr-defined]

    async def _probe(self, actor: Any, stored: StoredCandidate) -> ProbeResult:
        blob, cluster = stored.blob, self._runtime.cluster
        task = ProbeTask(key=blob.key, sha256=blob.sha256, suffix=suffix_of(stored.candidate.path))
        await cluster.value(actor.load.remote(task))
        limit = self._runtime.settings.clip_seconds
        try:
            async with asyncio.timeout(limit):
                result: ProbeResult = await cluster.value(actor.probe.remote())
                return result
        except TimeoutError:
            # Trying again would take as long; the next clip finds the actor dead and gets another.
            kill(actor)
            return ProbeResult(
                failure=f"Decoding it takes longer than the {limit:.0f} s that a clip may take.", exhausted=True
            )
