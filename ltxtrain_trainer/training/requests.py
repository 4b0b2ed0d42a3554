"""Requests to a training while it runs: put by another thread, taken between two steps. No tensors."""

import threading
from enum import StrEnum


class Request(StrEnum):
    """Things that a running training can be asked for; none of them changes what it computes."""

    CHECKPOINT = "checkpoint"
    PREVIEW = "preview"
    # A checkpoint of the step that is under way, and no more steps.
    STOP = "stop"


class Requests:
    """The requests that wait for the end of a step, each kind once however often it is put."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: set[Request] = set()

    def put(self, request: Request) -> None:
        with self._lock:
            self._waiting.add(request)

    def take(self) -> frozenset[Request]:
        """All that wait, which wait no longer; but STOP, which stays for good."""
        with self._lock:
            taken = frozenset(self._waiting)
            self._waiting &= {Request.STOP}
        return taken

    @property
    def stopping(self) -> bool:
        return Request.STOP in self._waiting
