"""Samples are read in order, one ahead, and a fault comes out where the sample is used."""

import threading
from collections.abc import Generator
from typing import Any

import pytest
import torch

from ltxtrain_trainer import seeds
from ltxtrain_trainer.data.dataset import prefetch


def test_items_come_in_order_and_one_is_prefetch() -> None:
    started = []
    second_started = threading.Event()

    def read(place: int) -> int:
        started.append(place)
        if place == 1:
            second_started.set()
        return place * 10

    items = prefetch(read, range(5))
    first, waited = next(items)
    assert first == 0 and waited >= 0
    assert second_started.wait(10), "the next one is under way while the first is used"
    assert started == [0, 1], "and no more than that"
    assert [item for item, _ in items] == [10, 20, 30, 40]
    assert started == list(range(5))


def test_a_fault_comes_out_where_the_sample_is_used() -> None:
    def read(place: int) -> int:
        if place == 2:
            raise OSError("this file is gone")
        return place

    items = prefetch(read, range(5))
    assert [next(items)[0], next(items)[0]] == [0, 1]
    with pytest.raises(OSError, match="this file is gone"):
        next(items)


def test_the_reader_ends_with_its_user() -> None:
    items = prefetch(lambda place: threading.current_thread(), range(1000))
    reader, _ = next(items)
    assert isinstance(items, Generator)
    items.close()
    assert not reader.is_alive()


def test_nothing_to_read() -> None:
    assert list(prefetch(str, [])) == []


def draw(*name: Any) -> torch.Tensor:
    return torch.randn(4, generator=seeds.generator(*name))


def test_what_is_drawn_depends_on_its_name_alone() -> None:
    first = draw(1, "video noise", 3, 0)
    draw(1, "video noise", 4, 0)
    torch.manual_seed(0)
    assert torch.equal(draw(1, "video noise", 3, 0), first)


@pytest.mark.parametrize(
    "name",
    [
        (2, "video noise", 3, 0),
        (1, "audio noise", 3, 0),
        (1, "video noise", 4, 0),
        (1, "video noise", 3, 1),
        (1, "video noise", 30),
    ],
)
def test_another_name_draws_something_else(name: Any) -> None:
    assert not torch.equal(draw(*name), draw(1, "video noise", 3, 0))
