"""A slow store costs no step: files of a checkpoint are written and uploaded beside the steps."""

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ltxtrain_services.runtime.objects import Objects, StoreAddress, StoredBlob
from ltxtrain_services.train.actors import TrainActor, TrainTask
from ltxtrain_trainer.reports import Checkpointed, Step
from ltxtrain_trainer.training.requests import Request
from tests.trainer.test_job import make_plan

SECONDS = 60.0  # a safety: what should happen happens at once


class BlockedStore(Objects):
    """A store that does not take a byte of a training state before it is let."""

    def __init__(self, address: StoreAddress) -> None:
        super().__init__(address)
        self.asked, self.open = threading.Event(), threading.Event()

    def put_file(self, key: str, path: Path, content_type: str, *, sha256: str | None = None) -> StoredBlob:
        if "checkpoint-" in key:
            self.asked.set()
            assert self.open.wait(SECONDS), "the training waits for the store"
        return super().put_file(key, path, content_type, sha256=sha256)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_steps_go_on_while_the_store_takes_nothing(
    tiny_model: Path, object_store: StoreAddress, tmp_path: Path
) -> None:
    plan = make_plan(tiny_model, tmp_path, previews=False)
    changed = dataclasses.replace(plan.settings, steps=60, checkpoint_interval=60)
    task = TrainTask(
        job="jobs/slow", plan=dataclasses.replace(plan, settings=changed), files={}, worker_count=1, trace={}
    )
    actor: Any = TrainActor.__ray_metadata__.modified_class(object_store, 0, 1)  # type: ignore[attr-defined]
    store = actor._objects = BlockedStore(object_store)
    beside = 0
    stored_at: dict[int, int] = {}
    last = 0
    for stored in actor.run(task, ""):
        match stored.report:
            case Step(step=1):
                actor.request(Request.CHECKPOINT)
            case Step(step=last) if store.asked.is_set() and not store.open.is_set():
                beside += 1
                if beside == 5:
                    store.open.set()
            case Step(step=last):
                # The file is being written, in a thread of its own.
                store.asked.wait(0.05)
            case Checkpointed(step=step):
                stored_at[step] = last
    assert beside == 5, "no step was made while the store was shut"
    assert list(stored_at) == [2, 60] and stored_at[2] >= 2 + beside
