"""Encoded samples on their way to the model, prefetched ahead of the step that needs them."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

import torch

from ltxtrain_trainer import seeds
from ltxtrain_trainer.data.encoded import EncodedClip, PromptEmbedding, load_clip, load_prompt
from ltxtrain_trainer.errors import SampleUnreadable
from ltxtrain_trainer.plan import SampleFiles

Item = TypeVar("Item")
Place = TypeVar("Place")


class Samples(Protocol):
    """Encoded clips with their prompts, each read when asked for, from a thread beside the training's."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[EncodedClip, PromptEmbedding]: ...


def read_files(files: SampleFiles) -> tuple[EncodedClip, PromptEmbedding]:
    """The sample in two files. Raises SampleUnreadable."""
    return load_clip(files.latents.read_bytes()), load_prompt(files.prompt.read_bytes())


@dataclass(frozen=True)
class SampleFolder:
    """The samples of a training, each read when it is asked for."""

    files: tuple[SampleFiles, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[EncodedClip, PromptEmbedding]:
        return read_files(self.files[index])


def read_sample(samples: Samples, index: int, with_audio: bool) -> tuple[EncodedClip, PromptEmbedding]:
    """A sample as a training uses it: its audio left out, or there."""
    clip, prompt = samples[index]
    if not with_audio:
        return replace(clip, audio=None), prompt
    if clip.audio is None:
        raise SampleUnreadable(f"Sample {index} was encoded without audio. Preprocess the clips with audio.")
    return clip, prompt


def split_held_out(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split of count samples into those trained on and those held out: a fraction of them, at least one of each."""
    if fraction <= 0 or count < 2:
        return list(range(count)), []
    size = min(max(round(count * fraction), 1), count - 1)
    order: list[int] = torch.randperm(count, generator=seeds.generator(seed, "held out")).tolist()
    return sorted(order[size:]), sorted(order[:size])


def prefetch(read: Callable[[Place], Item], places: Iterable[Place]) -> Iterator[tuple[Item, float]]:
    """read() of every place in order, the next one under way while this one is used; with the seconds waited for it."""
    remaining = iter(places)
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="samples") as reader:
        ahead = deque(reader.submit(read, place) for place in islice(remaining, 1))
        while ahead:
            started = time.perf_counter()
            item = ahead.popleft().result()
            waited = time.perf_counter() - started
            ahead.extend(reader.submit(read, place) for place in islice(remaining, 1))
            yield item, waited
