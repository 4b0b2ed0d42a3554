"""Follow a piece of work across cut connections: every event once, in order, until it ends.

The services keep events, not connections: a stream that breaks is opened again at the last sequence that was seen.
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2
from ltxtrain.v1.ingest_pb2 import WatchDatasetResponse
from ltxtrain.v1.preprocess_pb2 import WatchTrainingSetResponse
from ltxtrain.v1.train_pb2 import WatchJobResponse
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_client.errors import CallError, from_rpc_error, from_status

log = logging.getLogger(__name__)

TERMINAL = frozenset({State.STATE_SUCCEEDED, State.STATE_FAILED, State.STATE_CANCELLED})
# Another try with the same cursor would end the same way.
FATAL = frozenset(
    {
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

WatchResponse = WatchJobResponse | WatchDatasetResponse | WatchTrainingSetResponse


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How long a watch waits: for news, between two tries, and altogether."""

    # Longer than the servers' heartbeat of 15 s, by so much that two may be lost.
    silence_seconds: float = 45.0
    first_backoff_seconds: float = 0.2
    last_backoff_seconds: float = 10.0
    # Give up when nothing was heard for so long; None: never.
    patience_seconds: float | None = None

    def backoff(self, failures: int, asked: float | None) -> float:
        """Seconds before the next try, with jitter; no less than the server asked for."""
        limit = min(self.last_backoff_seconds, self.first_backoff_seconds * 2 ** min(failures, 30))
        return max(random.uniform(limit / 2, limit), min(asked or 0.0, self.last_backoff_seconds))


STEADY = Pace()


def is_terminal(event: Event) -> bool:
    """Whether nothing comes after this event."""
    return event.WhichOneof("detail") == "lifecycle" and event.lifecycle.state in TERMINAL


async def watch(
    open_stream: Callable[[int], "grpc.aio.UnaryStreamCall[Any, Any]"],
    after_sequence: int = 0,
    pace: Pace = STEADY,
) -> AsyncGenerator[tuple[int, Event], None]:
    """Events after `after_sequence` with their sequences, each once and in order; ends after the terminal one.

    `open_stream` starts a Watch call at a cursor. Store the sequence once you have handled its event, and pass it
    as `after_sequence` to go on in another process. A lost or silent stream is opened again; raises CallError for
    what no retry mends (NOT_FOUND, OUT_OF_RANGE, ...), and the last failure when `pace.patience_seconds` are over.
    """
    cursor, failures, heard = after_sequence, 0, time.monotonic()
    while True:
        stream = open_stream(cursor)
        empty = True
        try:
            messages = aiter(stream)
            while True:
                async with asyncio.timeout(pace.silence_seconds):
                    response: WatchResponse = await anext(messages)
                empty, failures, heard = False, 0, time.monotonic()
                # A heartbeat has no event. A sequence at or below the cursor was handed on before.
                if response.HasField("event") and response.sequence > cursor:
                    cursor = response.sequence
                    yield cursor, response.event
                    if is_terminal(response.event):
                        return
        except StopAsyncIteration:
            if empty:  # OK without a word: the work has ended, and the cursor is at its end
                return
            lost = _unavailable("The stream ended before the work did.")
        except TimeoutError:
            lost = _unavailable(f"Nothing was heard for {pace.silence_seconds:.0f} s.")
        except grpc.aio.AioRpcError as error:
            lost = from_rpc_error(error)
            if lost.code in FATAL:
                raise lost from None
        finally:
            stream.cancel()
        delay = pace.backoff(failures, lost.retry_after_seconds)
        if pace.patience_seconds is not None and time.monotonic() + delay - heard > pace.patience_seconds:
            raise lost
        # Once for as long as nothing is heard.
        level = logging.DEBUG if failures else logging.WARNING
        log.log(level, "After event %d: %s Trying again%s.", cursor, lost.message, _for_how_long(pace))
        failures += 1
        await asyncio.sleep(delay)


def _for_how_long(pace: Pace) -> str:
    return "" if pace.patience_seconds is None else f", for up to {pace.patience_seconds:g} s"


def _unavailable(text: str) -> CallError:
    return from_status(status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=text))
