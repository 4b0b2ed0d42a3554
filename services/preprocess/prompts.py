"""Every caption and prompt of a training set as embeddings, before any clip is encoded and Gemma is gone again."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason

from services.preprocess.actors import Embedded, Phase
from services.preprocess.attempt import Attempt
from services.preprocess.cache import Entry, as_blob
from services.preprocess.encoders import Encoders
from services.preprocess.keys import prompt_key
from services.preprocess.report import Caption
from services.runtime.cluster import ActorKilled
from services.runtime.errors import Unavailable

# Gemma takes long to load: an actor more pays for so many prompts.
PROMPTS_AN_ACTOR = 256


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Embeddings by prompt, and how many of them were there already."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    hits: int = 0
    misses: int = 0

    def blob(self, prompt: str) -> Blob | None:
        entry = self.entries.get(prompt)
        return None if entry is None else entry.blob

    def caption(self, prompt: str) -> Caption:
        facts = self.entries[prompt].facts if prompt in self.entries else {}
        return Caption(text=prompt, tokens=facts.get("tokens", 0), truncated=facts.get("truncated", False))


async def embed(attempt: Attempt, prompts: Sequence[str], encoders: Encoders) -> Prompts:
    """Embeddings of all prompts, equal ones once; none that was made before is made again. Raises as Encoders."""
    keys = {prompt: prompt_key(prompt, attempt.model_revision) for prompt in dict.fromkeys(prompts)}
    known = await attempt.cache.find(list(keys.values()), attempt.name)
    missing = {prompt: key for prompt, key in keys.items() if key not in known}
    made: dict[str, Entry] = {}
    waiting = iter(missing.items())

    async def work() -> None:
        for prompt, key in waiting:
            embedded: Embedded = await encoders.call("embed", prompt)
            facts = {"tokens": embedded.tokens, "truncated": embedded.truncated}
            made[key] = Entry(as_blob(embedded.stored), facts)
            await attempt.cache.keep({key: made[key]}, attempt.name)

    if missing:
        size = min(attempt.encoder_count, 1 + len(missing) // PROMPTS_AN_ACTOR)
        await encoders.turn_to(Phase.PROMPTS, size)
        tasks = [asyncio.create_task(work()) for _ in range(size)]
        try:
            await asyncio.gather(*tasks)
        except ActorKilled as error:
            text = "Embedding a caption ended its worker three times; it may lack memory."
            raise Unavailable(ErrorReason.ERROR_REASON_WORKER_LOST, text) from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    entries = {prompt: {**known, **made}[key] for prompt, key in keys.items()}
    return Prompts(entries=entries, hits=len(keys) - len(missing), misses=len(missing))
