"""How long captions are for the text encoder, counted without it: the tokenizer is a small file."""

import asyncio
import logging
from collections.abc import Sequence

from services.preprocess.cache import Entry
from services.preprocess.prompts import Prompts
from services.runtime.settings import Settings
from trainer.errors import TrainerError
from trainer.model.folder import ModelFolder, resolve_model

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
