"""The rules of a watch: every event once, in order, whatever happens to the stream."""

import asyncio
from contextlib import aclosing

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from ltxtrain_client import (
    Backoff,
    CallError,
    IngestClient,
    OutOfRange,
    Pace,
    PreprocessClient,
    TrainClient,
    Unavailable,
    connect,
)

from tests.clients.far_side import (
    Act,
    FarSide,
    abort_with,
    abort_with_status,
    end_ok,
    progress_events,
    serving,
    status,
    stay_silent,
)

JOB = "jobs/1"
HASTY = Pace(silence_seconds=20.0, backoff=Backoff(first_seconds=0.001, last_seconds=0.002))
COUNT = 7

DRAINING = status(
    grpc.StatusCode.UNAVAILABLE,
    "shutting down",
    "DRAINING",
    details=[error_details_pb2.RetryInfo(retry_delay=Duration(nanos=1_000_000))],
)
CUTS = {
    "unavailable": abort_with(grpc.StatusCode.UNAVAILABLE),
    "internal": abort_with(grpc.StatusCode.INTERNAL),
    "cancelled": abort_with(grpc.StatusCode.CANCELLED),
    "exhausted": abort_with(grpc.StatusCode.RESOURCE_EXHAUSTED),
    "draining": abort_with_status(DRAINING),
    "ok": end_ok,
}


async def collect(train: TrainClient, after: int = 0, pace: Pace = HASTY) -> list[int]:
    return [sequence async for sequence, _ in train.watch_job(JOB, after, pace)]


def cursors(far: FarSide) -> list[int]:
    return [request.after_sequence for request in far.requests("WatchJob")]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("sent", range(1, COUNT))
async def test_a_cut_after_any_event_loses_and_repeats_nothing(
    far: FarSide, train: TrainClient, cut: str, sent: int
) -> None:
    far.events = progress_events(COUNT)
    far.acts.append(Act(send=sent, then=CUTS[cut]))
    assert await collect(train) == list(range(1, COUNT + 1))
    assert cursors(far) == [0, sent]


async def test_a_cut_after_every_event_loses_and_repeats_nothing(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    far.acts.extend(Act(send=1, then=CUTS["unavailable"]) for _ in range(COUNT - 1))
    assert await collect(train) == list(range(1, COUNT + 1))
    assert cursors(far) == list(range(COUNT))


async def test_events_sent_again_are_not_handed_on_again(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    far.acts.extend([Act(send=4, then=CUTS["unavailable"]), Act(repeat=3)])
    assert await collect(train) == list(range(1, COUNT + 1))


async def test_it_starts_after_the_cursor(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    assert await collect(train, after=5) == [6, 7]


async def test_finished_work_at_its_end_yields_nothing(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    assert await collect(train, after=COUNT) == []


async def test_it_ends_with_the_terminal_event_though_the_stream_stays_open(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    far.acts.append(Act(then=stay_silent))
    assert await collect(train) == list(range(1, COUNT + 1))
    await far.stream_ended.wait()
    assert far.open_streams == 0


async def test_a_silent_server_is_left_for_a_new_stream(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    far.acts.extend([Act(send=3, then=stay_silent), Act(send=0, then=stay_silent)])
    pace = Pace(silence_seconds=0.3, backoff=Backoff(first_seconds=0.001, last_seconds=0.002))
    assert await collect(train, pace=pace) == list(range(1, COUNT + 1))
    assert cursors(far) == [0, 3, 3]


async def test_heartbeats_keep_a_quiet_stream(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT)
    # The stream is quiet for three times as long as silence would be borne.
    far.acts.append(Act(send=3, heartbeats=30, heartbeat_seconds=0.1, then=CUTS["unavailable"]))
    pace = Pace(silence_seconds=1.0, backoff=Backoff(first_seconds=0.001, last_seconds=0.002))
    assert await collect(train, pace=pace) == list(range(1, COUNT + 1))
    assert cursors(far) == [0, 3]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
    ],
)
async def test_what_no_retry_mends_is_raised(far: FarSide, train: TrainClient, code: grpc.StatusCode) -> None:
    far.acts.append(Act(send=0, then=abort_with(code)))
    with pytest.raises(CallError) as raised:
        await collect(train)
    assert raised.value.code is code
    assert len(far.requests("WatchJob")) == 1


async def test_a_cursor_of_another_resource_says_what_there_is(far: FarSide, train: TrainClient) -> None:
    sent = status(
        grpc.StatusCode.OUT_OF_RANGE, "the cursor is newer", "CURSOR_OUT_OF_RANGE", oldestSequence="1", lastSequence="7"
    )
    far.acts.append(Act(send=0, then=abort_with_status(sent)))
    with pytest.raises(OutOfRange) as raised:
        await collect(train, after=900)
    assert raised.value.reason == "CURSOR_OUT_OF_RANGE"
    assert raised.value.metadata == {"oldestSequence": "1", "lastSequence": "7"}


async def test_news_make_the_next_wait_short_again(far: FarSide, train: TrainClient) -> None:
    asked = []

    class Noted(Backoff):
        def seconds(self, failures: int, at_least: float | None = None) -> float:
            asked.append((failures, at_least))
            return 0.0

    far.events = progress_events(COUNT)
    far.acts.extend(Act(send=sent, then=CUTS["draining"]) for sent in (0, 0, 1, 0))
    assert await collect(train, pace=Pace(backoff=Noted())) == list(range(1, COUNT + 1))
    assert asked == [(1, 0.001), (2, 0.001), (1, 0.001), (2, 0.001)]


async def test_it_survives_the_server(far: FarSide) -> None:
    """The process goes away in mid-stream and comes back at the same address."""
    there = FarSide()
    there.events = progress_events(COUNT)
    there.acts.append(Act(send=4, then=stay_silent))
    seen = []
    async with serving(there) as server, connect(there.address) as channel:
        events = TrainClient(channel).watch_job(JOB, pace=HASTY)
        async with aclosing(events):
            async for sequence, _ in events:
                seen.append(sequence)
                if sequence == 4:
                    await server.stop(None)
                    back = FarSide()
                    back.events = there.events
                    second = serving(back, port=int(there.address.rsplit(":", 1)[1]))
                    await second.__aenter__()
        await second.__aexit__(None, None, None)
    assert seen == list(range(1, COUNT + 1))
    assert cursors(back) == [4]


async def test_patience_ends() -> None:
    async with connect("127.0.0.1:1") as channel:
        pace = Pace(backoff=Backoff(first_seconds=0.01, last_seconds=0.05), patience_seconds=0.3)
        with pytest.raises(Unavailable):
            await collect(TrainClient(channel), pace=pace)


async def test_leaving_ends_the_stream_on_the_other_side(far: FarSide, train: TrainClient) -> None:
    far.events = progress_events(COUNT, ending=None)
    far.acts.append(Act(then=stay_silent))
    async with aclosing(train.watch_job(JOB, pace=HASTY)) as events:
        async for _ in events:
            break
    await far.stream_ended.wait()
    assert far.open_streams == 0


async def test_cancelling_the_task_is_not_taken_for_a_cut(far: FarSide, train: TrainClient) -> None:
    far.acts.append(Act(then=stay_silent))
    task = asyncio.create_task(collect(train))
    await far.stream_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(far.requests("WatchJob")) == 1


async def test_datasets_and_training_sets_are_watched_alike(far: FarSide) -> None:
    far.events = progress_events(COUNT)
    async with connect(far.address) as channel:
        for events in (
            IngestClient(channel).watch_dataset("datasets/1", pace=HASTY),
            PreprocessClient(channel).watch_training_set("trainingSets/1", pace=HASTY),
        ):
            far.acts.append(Act(send=2, then=CUTS["draining"]))
            assert [sequence async for sequence, _ in events] == list(range(1, COUNT + 1))


@pytest.mark.parametrize(("failures", "low", "high"), [(1, 0.1, 0.2), (2, 0.2, 0.4), (7, 5.0, 10.0), (5000, 5.0, 10.0)])
def test_backoff_grows_with_jitter_up_to_its_limit(failures: int, low: float, high: float) -> None:
    delays = [Backoff().seconds(failures) for _ in range(200)]
    assert low <= min(delays) < max(delays) <= high


def test_the_server_may_ask_for_more_time_but_not_for_ever() -> None:
    assert Backoff().seconds(1, 3.0) == 3.0
    assert Backoff().seconds(1, 3600.0) == 10.0
