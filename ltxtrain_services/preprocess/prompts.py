"""Every caption and prompt of a training set as embeddings, before any clip is encoded and Gemma is gone again."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ltxtrain.v1.artifact_pb2 import Blob
from ltxtrain.v1.error_pb2 import ErrorReason

from ltxtrain_services.preprocess.actors import Embedded, Phase
from ltxtrain_services.preprocess.cache import Entry, as_blob
from ltxtrain_services.preprocess.cache_keys import prompt_key
from ltxtrain_services.preprocess.context import Context
from ltxtrain_services.preprocess.encoder_pool import Encoders
from ltxtrain_services.preprocess.report import Caption
from ltxtrain_services.runtime.cluster import ActorKilled
from ltxtrain_services.runtime.errors import Unavailable
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.trainer_errors import translated
from ltxtrain_trainer.errors import TrainerError
from ltxtrain_trainer.model.folder import ModelFolder, resolve_model

# Gemma takes long to load: an actor more pays for so many prompts.
PROMPTS_AN_ACTOR = 256
# Formats of the text encoder that change an embedding (ltxtrain_trainer.model.text_encoder.TextHold.numbers).
OTHER_NUMBERS = ("int8",)


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


async def embed(context: Context, prompts: Sequence[str], encoders: Encoders) -> Prompts:
    """Embeddings of all prompts, equal ones once; none that was made before is made again. Raises as Encoders.

    One made by a text encoder in another format has a key of its own, and is taken where there is none by the model's.
    """
    keys = {prompt: prompt_key(prompt, context.model_revision) for prompt in dict.fromkeys(prompts)}
    known = await context.cache.find(list(keys.values()), context.name)
    for numbers in OTHER_NUMBERS:
        others = {key: prompt_key(prompt, context.model_revision, numbers) for prompt, key in keys.items()}
        wanted = {key: other for key, other in others.items() if key not in known}
        found = await context.cache.find(list(wanted.values()), context.name) if wanted else {}
        known = {**known, **{key: found[other] for key, other in wanted.items() if other in found}}
    missing = {prompt: key for prompt, key in keys.items() if key not in known}
    made: dict[str, Entry] = {}
    waiting = iter(missing.items())

    async def work() -> None:
        for prompt, key in waiting:
            embedded: Embedded = await encoders.call("embed", prompt)
            facts = {"tokens": embedded.tokens, "truncated": embedded.truncated}
            made[key] = Entry(as_blob(embedded.stored), facts)
            kept = prompt_key(prompt, context.model_revision, embedded.numbers)
            await context.cache.keep({kept: made[key]}, context.name)

    if missing:
        size = min(context.encoder_count, 1 + len(missing) // PROMPTS_AN_ACTOR)
        await encoders.turn_to(Phase.PROMPTS, size)
        tasks = [asyncio.create_task(work()) for _ in range(size)]
        try:
            with translated():
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


log = logging.getLogger(__name__)

# A hub that does not answer shall not hold up a check of data.
TOKENIZER_SECONDS = 20.0


async def count_tokens(settings: Settings, prompts: Sequence[str]) -> Prompts:
    """Captions with their tokens; without counts where the model's tokenizer is not to be had."""
    try:
        async with asyncio.timeout(TOKENIZER_SECONDS):
            counts = await asyncio.to_thread(_count, settings, list(dict.fromkeys(prompts)))
    except (TrainerError, OSError, TimeoutError) as error:
        log.warning("tokens are not counted: %s", error)
        return Prompts()
    return Prompts(entries={prompt: Entry(facts=facts) for prompt, facts in counts.items()})


def _count(settings: Settings, prompts: Sequence[str]) -> dict[str, dict[str, int | bool]]:
    from tokenizers import Tokenizer

    folder: ModelFolder = resolve_model(settings.model, settings.model_revision or None, ("tokenizer",))
    tokenizer = Tokenizer.from_file(str(folder.path / "tokenizer" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    limit = folder.prompt_tokens
    counts = {prompt: len(tokenizer.encode(prompt.strip()).ids) for prompt in prompts}
    return {prompt: {"tokens": count, "truncated": count > limit} for prompt, count in counts.items()}
