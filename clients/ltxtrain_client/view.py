"""Interface of whatever shows the progress of work: bars, lines, JSON, or nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self

from ltxtrain.v1.work_pb2 import Event

from ltxtrain_client.transfer import Transfer


class View(Protocol):
    """Shows events and transfers in order. Enter it before the first one; it can be re-entered."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, sequence: int, event: Event) -> None: ...

    def show_transfer(self, label: str, step: Transfer) -> None: ...

    def show_files(self, paths: Sequence[Path]) -> None: ...


class SilentView:
    """Shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def show(self, sequence: int, event: Event) -> None: ...

    def show_transfer(self, label: str, step: Transfer) -> None: ...

    def show_files(self, paths: Sequence[Path]) -> None: ...
