"""Work beside the steps: what is slow and needs no device goes on in a thread. No tensors."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Beside(Generic[Result]):
    """One piece of work at a time, in order; who starts another waits for the one before.

    Leaving the context waits for what is under way, and drops it when an error is passing.
    """

    def __init__(self, name: str) -> None:
        self._threads = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._under_way: Future[Result] | None = None

    def __enter__(self) -> "Beside[Result]":
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def start(self, work: Callable[[], Result]) -> Iterator[Result]:
        """Begin a piece of work; the result of the one before, where it was still under way. Raises what that did."""
        yield from self.rest()
        self._under_way = self._threads.submit(work)

    def ready(self) -> Iterator[Result]:
        """The result of what has ended since the last time, if any. Raises what the work did."""
        if self._under_way is not None and self._under_way.done():
            yield from self.rest()

    def rest(self) -> Iterator[Result]:
        """The result of what is under way, waited for, if any. Raises what the work did."""
        if self._under_way is not None:
            ended, self._under_way = self._under_way, None
            yield ended.result()
