"""Watch a job, dataset or training set across reconnects: every event once, in order, until it ends.

Events are durable on the server: a stream that breaks is reopened at the last sequence received.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.rpc import status_pb2
from ltxtrain.v1.train_pb2 import WatchJobsResponse
from ltxtrain.v1.work_pb2 import Event, State

from ltxtrain_client.backoff import Backoff
from ltxtrain_client.errors import CallError, from_rpc_error, from_status

log = logging.getLogger(__name__)

TERMINAL = frozenset({State.STATE_SUCCEEDED, State.STATE_FAILED, State.STATE_CANCELLED})
# A retry with the same cursor would fail the same way.
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


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Timing of a watch: how long a stream may be silent, how to retry, and when to give up."""

    silence_seconds: float = 45.0
    """Reconnect after this long without a message. The servers send a heartbeat every 15 s, so two may be lost."""

    backoff: Backoff = field(default_factory=Backoff)
    """Waits between reconnects."""

    patience_seconds: float | None = None
    """Give up after this long without a message; None: never."""


STEADY = Pace()


def is_terminal(event: Event) -> bool:
    """Whether this event is the last one: a lifecycle event in a terminal state."""
    return event.WhichOneof("detail") == "lifecycle" and event.lifecycle.state in TERMINAL


async def watch(
    open_stream: Callable[[int], "grpc.aio.UnaryStreamCall[Any, Any]"],
    after_sequence: int = 0,
    pace: Pace = STEADY,
) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield (sequence, event) for everything after `after_sequence`, once and in order, until the terminal event.

    `open_stream` starts a Watch call at a cursor. Store a sequence once its event is handled, and pass it as
    `after_sequence` to resume in another process. A lost or silent stream is reopened.
    Raises CallError when no retry can help (NOT_FOUND, OUT_OF_RANGE, ...) or `pace.patience_seconds` have passed.
    """
    responses = _responses(open_stream, after_sequence, pace, lambda response: int(response.sequence))
    async with aclosing(responses):
        async for response in responses:
            # A heartbeat has no event, but may have passed some that were not asked for.
            if response.HasField("event"):
                yield response.sequence, response.event
                if is_terminal(response.event):
                    return


async def watch_feed(
    open_stream: Callable[[int], "grpc.aio.UnaryStreamCall[Any, Any]"], after_cursor: int = 0, pace: Pace = STEADY
) -> AsyncGenerator[WatchJobsResponse, None]:
    """Yield each message of WatchJobs that is about a job, once and in order, for ever; see watch."""
    responses = _responses(open_stream, after_cursor, pace, lambda response: int(response.cursor), ends=False)
    async with aclosing(responses):
        async for response in responses:
            if response.job:
                yield response


async def _responses(
    open_stream: Callable[[int], "grpc.aio.UnaryStreamCall[Any, Any]"],
    cursor: int,
    pace: Pace,
    number: Callable[[Any], int],
    *,
    ends: bool = True,
) -> AsyncGenerator[Any, None]:
    """Messages that move the cursor, across reconnects; `ends`: a stream that is OK without a message is over."""
    failures, heard = 0, time.monotonic()
    while True:
        stream = open_stream(cursor)
        empty = True
        try:
            messages = aiter(stream)
            while True:
                async with asyncio.timeout(pace.silence_seconds):
                    response = await anext(messages)
                empty, failures, heard = False, 0, time.monotonic()
                # One at or below the cursor was yielded before.
                if number(response) > cursor:
                    cursor = number(response)
                    yield response
        except StopAsyncIteration:
            if empty and ends:  # the work has ended, and the cursor is past its last event
                return
            lost = _unavailable("The stream ended before the work did.")
        except TimeoutError:
            lost = _unavailable(f"No message for {pace.silence_seconds:.0f} s.")
        except grpc.aio.AioRpcError as error:
            lost = from_rpc_error(error)
            if lost.code in FATAL:
                raise lost from None
        finally:
            stream.cancel()
        failures += 1
        delay = pace.backoff.seconds(failures, lost.retry_after_seconds)
        if pace.patience_seconds is not None and time.monotonic() + delay - heard > pace.patience_seconds:
            raise lost
        # Warn once per outage.
        level = logging.DEBUG if failures > 1 else logging.WARNING
        log.log(level, "After event %d: %s Retrying%s.", cursor, lost.message, _for_how_long(pace))
        await asyncio.sleep(delay)


def _for_how_long(pace: Pace) -> str:
    return "" if pace.patience_seconds is None else f", for up to {pace.patience_seconds:g} s"


def _unavailable(text: str) -> CallError:
    return from_status(status_pb2.Status(code=grpc.StatusCode.UNAVAILABLE.value[0], message=text))
