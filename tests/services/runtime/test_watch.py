"""Rules of streams, over a real server with a real database."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import EventKind, State
from ltxtrain_client import Backoff, TrainClient, connect
from ltxtrain_client.channel import service_config
from ltxtrain_client.watch import STEADY, Pace, is_terminal

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.events import HEARTBEAT_SECONDS, PAGE
from ltxtrain_services.runtime.settings import Settings
from tests.services.runtime.front import Front, Stub, info_of, serving

BACKENDS = ("sqlite", "postgresql")
QUICK = Pace(backoff=Backoff(first_seconds=0.01, last_seconds=0.05))
# A hundred times what flow control holds back.
LONG_TEXT = "x" * 100_000


@pytest.fixture
async def front(database: Database) -> AsyncIterator[Front]:
    async with serving(database, Settings(grace_seconds=5.0)) as front:
        yield front


@pytest.fixture
def stub(front: Front) -> Stub:
    return front.stub()


@pytest.fixture
async def job(stub: Stub) -> str:
    return (await stub.create()).name


async def sequences(watch: Any) -> list[int]:
    """Sequences of the events that are left of a stream, which ends with OK."""
    seen: list[int] = []
    while (response := await watch.read()) is not grpc.aio.EOF:
        seen += [response.sequence] if response.HasField("event") else []
    assert await watch.code() == grpc.StatusCode.OK
    return seen


async def some(watch: Any, count: int) -> list[int]:
    """The next events of a stream; heartbeats are passed over."""
    seen: list[int] = []
    while len(seen) < count:
        response = await watch.read()
        seen += [response.sequence] if response.HasField("event") else []
    return seen


async def test_only_the_kinds_that_are_asked_for_come_and_the_last_one(front: Front, stub: Stub, job: str) -> None:
    await front.book.add(job, 2)
    await front.book.add(job, 1, text="careful")
    await front.book.add(job, 2)
    await front.book.finish(job)
    assert await sequences(stub.watch(job, kinds=[EventKind.EVENT_KIND_WARNING])) == [4, 7]
    assert await sequences(stub.watch(job, 1, kinds=[EventKind.EVENT_KIND_LIFECYCLE, 99])) == [7]
    async with connect(front.address) as channel:
        seen = TrainClient(channel).watch_job(job, kinds=[EventKind.EVENT_KIND_WARNING])
        assert [sequence async for sequence, _ in seen] == [4, 7]


async def test_events_that_nobody_asked_for_move_the_cursor_of_heartbeats(front: Front, stub: Stub, job: str) -> None:
    watch = stub.watch(job, kinds=[EventKind.EVENT_KIND_WARNING])
    reached, last = 0, 1
    while reached < 20:
        await front.book.add(job)
        last += 1
        if last % 5 == 0:
            response = await watch.read()
            assert not response.HasField("event") and reached <= response.sequence <= last
            reached = response.sequence
    watch.cancel()


# WatchJobs: all of a caller's jobs.


async def told(watch: Any, count: int) -> list[tuple[str, int]]:
    """Job and sequence of the next messages about jobs, 0 for a deletion; their cursors grow."""
    seen: list[tuple[str, int]] = []
    cursor = 0
    while len(seen) < count:
        response = await watch.read()
        assert response.cursor >= cursor and (not response.job or response.cursor > cursor)
        cursor = response.cursor
        if response.job:
            assert response.deleted != response.HasField("event")
            seen.append((response.job, response.sequence))
    return seen


async def test_one_stream_has_every_event_of_all_jobs_those_to_come_included(
    front: Front, stub: Stub, job: str
) -> None:
    await front.book.add(job, 2 * PAGE)
    watches = [stub.watch_all() for _ in range(3)]
    past = [(job, sequence) for sequence in range(1, 2 * PAGE + 2)]
    assert [await told(watch, len(past)) for watch in watches] == [past] * 3
    other = (await stub.create()).name
    await front.book.add(other, 2)
    await front.book.finish(job)
    news = [(other, 1), (other, 2), (other, 3), (job, 2 * PAGE + 2)]
    assert [await told(watch, len(news)) for watch in watches] == [news] * 3
    late = stub.watch_all()
    assert await told(late, len(past + news)) == past + news


async def test_a_feed_goes_on_at_its_cursor_across_reconnects_and_restarts_of_the_log(
    front: Front, stub: Stub, job: str
) -> None:
    async with connect(front.address) as channel:
        feed = TrainClient(channel).watch_jobs(pace=QUICK)
        first = await anext(feed)
        await front.book.add(job, 3)
        second = await anext(feed)
        await feed.aclose()
        await front.book.add(job, 1)
        again = TrainClient(channel).watch_jobs(second.cursor, QUICK)
        assert [first.sequence, second.sequence] == [1, 2]
        assert [(await anext(again)).sequence for _ in range(3)] == [3, 4, 5]
        await again.aclose()
    with pytest.raises(grpc.aio.AioRpcError) as beyond:
        await stub.watch_all(6).read()
    assert beyond.value.code() == grpc.StatusCode.OUT_OF_RANGE
    info = info_of(beyond.value)
    assert (info.reason, info.metadata["lastSequence"]) == ("CURSOR_OUT_OF_RANGE", "5")


async def test_a_feed_of_few_kinds_skips_the_rest_and_its_cursor_moves_all_the_same(
    front: Front, stub: Stub, job: str
) -> None:
    await front.book.add(job, 3 * PAGE)
    await front.book.finish(job)
    watch = stub.watch_all(kinds=[EventKind.EVENT_KIND_LIFECYCLE])
    assert await told(watch, 2) == [(job, 1), (job, 3 * PAGE + 2)]
    other = (await stub.create()).name
    assert await told(watch, 1) == [(other, 1)]
    await front.book.add(other, 5)
    while (response := await watch.read()).cursor < 3 * PAGE + 8:
        assert not response.job
    assert not response.job, "a heartbeat, past what nobody asked for"


async def test_a_deleted_job_is_told_and_its_events_are_gone_from_the_feed(front: Front, stub: Stub, job: str) -> None:
    other = (await stub.create()).name
    await front.book.finish(job)
    watch = stub.watch_all()
    assert await told(watch, 3) == [(job, 1), (other, 1), (job, 2)]
    await stub.delete(job)
    assert await told(watch, 1) == [(job, 0)]
    await front.book.finish(other)
    assert await told(watch, 1) == [(other, 2)]
    assert await told(stub.watch_all(), 3) == [(other, 1), (job, 0), (other, 2)]
    # The newest position is never given away again, although its rows are gone.
    assert await told(stub.watch_all(4, kinds=[EventKind.EVENT_KIND_LIFECYCLE]), 1) == [(other, 2)]


async def test_a_feed_holds_the_jobs_of_its_owner_alone_and_ends_with_the_server(front: Front, stub: Stub) -> None:
    mine = (await stub.create()).name
    await front.book.jobs.create(Job(name="jobs/bobs"), owner="bob", request_id="", digest=b"")
    assert await told(stub.watch_all(), 1) == [(mine, 1)]
    assert await front.book.log.newest("local") == await front.book.log.newest("bob") == 1
    watch = stub.watch_all(1)
    await watch.read()
    await front.drain()
    with pytest.raises(grpc.aio.AioRpcError) as drained:
        while await watch.read() is not grpc.aio.EOF:
            pass
    assert info_of(drained.value).reason == "DRAINING"


# Rule 1: dense from 1; 0 replays everything, also of what has ended.


async def test_zero_replays_everything_also_of_a_finished_job(front: Front, stub: Stub, job: str) -> None:
    await front.book.add(job, 2 * PAGE)
    await front.book.finish(job)
    last = 2 * PAGE + 2
    assert await sequences(stub.watch(job)) == list(range(1, last + 1))
    assert await sequences(stub.watch(job, last - 3)) == [last - 2, last - 1, last]
    assert (await stub.get(job)).lifecycle.last_sequence == last


async def test_watchers_who_come_at_any_time_have_every_event_once(front: Front, stub: Stub, job: str) -> None:
    watchers = []
    for _ in range(20):
        watchers.append(asyncio.create_task(sequences(stub.watch(job))))
        await front.book.add(job, 3)
    await front.book.finish(job)
    for watcher in watchers:
        assert await watcher == list(range(1, 63))


# Rule 2: the cursor is in every message. Rule 3: a heartbeat each 15 s of silence.


async def test_a_heartbeat_holds_the_cursor_and_no_event(front: Front, stub: Stub, job: str) -> None:
    await front.book.add(job)
    watch = stub.watch(job)
    assert await some(watch, 2) == [1, 2]
    for _ in range(2):
        beat = await watch.read()
        assert (beat.sequence, beat.HasField("event")) == (2, False)
    await front.book.add(job)
    assert await some(watch, 1) == [3]
    watch.cancel()


async def test_a_watch_from_the_newest_cursor_begins_with_its_heartbeat(stub: Stub, job: str) -> None:
    watch = stub.watch(job, 1)
    beat = await watch.read()
    assert (beat.sequence, beat.HasField("event")) == (1, False)
    watch.cancel()


def test_two_heartbeats_may_be_lost_before_a_client_reconnects() -> None:
    assert HEARTBEAT_SECONDS == 15.0
    assert STEADY.silence_seconds == 3 * HEARTBEAT_SECONDS


# Rule 4: the terminal event is the last; then OK.


async def test_the_terminal_event_is_the_last_and_then_comes_ok(front: Front, stub: Stub, job: str) -> None:
    watch = stub.watch(job)
    assert await some(watch, 1) == [1]
    await front.book.finish(job)
    while not (final := await watch.read()).HasField("event"):
        pass
    assert (final.sequence, final.event.lifecycle.state) == (2, State.STATE_SUCCEEDED)
    assert await watch.read() is grpc.aio.EOF
    assert await watch.code() == grpc.StatusCode.OK
    # What the event says is what GetJob says.
    assert (await stub.get(job)).lifecycle == final.event.lifecycle


async def test_nothing_comes_after_the_end_and_then_ok(front: Front, stub: Stub, job: str) -> None:
    await front.book.finish(job)
    assert await sequences(stub.watch(job, 2)) == []


async def test_a_watch_that_is_cut_at_every_event_goes_on_by_its_cursor(front: Front, stub: Stub, job: str) -> None:
    await front.book.add(job, 8)
    seen: list[int] = []
    while len(seen) < 9:
        watch = stub.watch(job, seen[-1] if seen else 0)
        seen += await some(watch, 1)
        watch.cancel()
    await front.book.finish(job)
    seen += await sequences(stub.watch(job, seen[-1]))
    assert seen == list(range(1, 11))


# Rule 5: a cursor of another job is refused.


@pytest.mark.parametrize("after", [-1, 4, 2**62])
async def test_a_cursor_outside_of_the_log_is_refused(front: Front, stub: Stub, job: str, after: int) -> None:
    await front.book.add(job, 2)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.watch(job, after).read()
    assert caught.value.code() == grpc.StatusCode.OUT_OF_RANGE
    info = info_of(caught.value)
    assert (info.reason, dict(info.metadata)) == (
        "CURSOR_OUT_OF_RANGE",
        {"oldestSequence": "1", "lastSequence": "3"},
    )


async def test_a_job_that_does_not_exist_is_not_found(stub: Stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.watch("jobs/nothing").read()
    assert (caught.value.code(), info_of(caught.value).reason) == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_job_that_is_deleted_ends_its_watches(front: Front, stub: Stub, job: str) -> None:
    await front.book.finish(job)
    await stub.delete(job)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.watch(job, 2).read()
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


# Rule 7: a reader who does not read costs what flow control holds, and nobody else waits for it.


async def test_a_slow_reader_is_held_back_and_has_everything_in_the_end(front: Front, stub: Stub, job: str) -> None:
    count = 300
    narrow = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0)]
    slow = front.stub(options=narrow).watch(job)
    assert await some(slow, 1) == [1]
    for _ in range(count // 10):
        await front.book.add(job, 10, LONG_TEXT)
    await front.book.finish(job)
    expected = list(range(1, count + 3))
    before = front.book.sent
    assert await sequences(stub.watch(job)) == expected
    sent_to_slow = front.book.sent - len(expected)
    assert before <= sent_to_slow < count / 2
    assert await sequences(slow) == expected[1:]


# Rule 8: unary calls have a deadline, watches have none; connections age, which nobody notices.


def test_every_call_but_the_watches_has_a_deadline() -> None:
    config = json.loads(service_config(10.0))["methodConfig"]
    timed = {
        (name["service"], name["method"]) for item in config if item["timeout"] == "10.0s" for name in item["name"]
    }
    methods = [
        method
        for file in (ingest_pb2, preprocess_pb2, train_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert {method.name for method in methods if method.server_streaming} == {
        "WatchDataset",
        "WatchTrainingSet",
        "WatchJob",
        "WatchJobs",
    }
    unary = {(method.containing_service.full_name, method.name) for method in methods if not method.server_streaming}
    assert timed == unary


async def test_a_connection_that_grew_old_is_replaced_unnoticed(database: Database) -> None:
    async with serving(database, Settings(), max_connection_age_seconds=0.3) as front:
        job = (await front.stub().create()).name
        seen: list[int] = []
        async with connect(front.address) as channel:
            async for sequence, event in TrainClient(channel).watch_job(job, pace=QUICK):
                seen.append(sequence)
                if front.book.streams < 3:
                    await front.book.add(job)
                elif not is_terminal(event):
                    await front.book.finish(job)
        assert seen == list(range(1, len(seen) + 1))
        assert (await front.book.jobs.get(job)).lifecycle.last_sequence == len(seen)


# Rule 9: a server that drains tells why; its watchers go on with the next one.


async def test_watchers_go_on_when_the_server_is_started_again(database: Database) -> None:
    async with serving(database, Settings(grace_seconds=5.0)) as front:
        job = (await front.stub().create()).name
        async with connect(front.address) as channel:
            watch = TrainClient(channel).watch_job(job, pace=QUICK)
            seen = [(await anext(watch))[0]]
            going_on = asyncio.create_task(anext(watch))
            await front.drain()
            async with serving(database, Settings(bind=front.address)) as again:
                await again.book.add(job, 3)
                seen.append((await going_on)[0])
                await again.book.finish(job)
                seen += [sequence async for sequence, _ in watch]
    assert seen == [1, 2, 3, 4, 5]


# Rule 10: whoever leaves, leaves nothing behind.


async def test_a_watcher_who_leaves_in_silence_leaves_nothing(front: Front, stub: Stub, job: str) -> None:
    watch = stub.watch(job)
    assert await some(watch, 1) == [1]
    assert front.book.log.followers == 1
    front.book.stream_ended.clear()
    watch.cancel()
    await front.book.stream_ended.wait()
    assert front.book.log.followers == 0


async def test_a_watcher_who_leaves_unread_messages_leaves_nothing(front: Front, job: str) -> None:
    await front.book.add(job, 300, LONG_TEXT)
    stub = front.stub(options=[("grpc.use_local_subchannel_pool", 1)])
    watch = stub.watch(job)
    assert await some(watch, 1) == [1]
    front.book.stream_ended.clear()
    await stub.channel.close()
    await front.book.stream_ended.wait()
    assert front.book.log.followers == 0
    assert front.book.sent < 300


async def test_dropping_a_watch_cancels_no_job(front: Front, stub: Stub, job: str) -> None:
    watch = stub.watch(job)
    assert await some(watch, 1) == [1]
    watch.cancel()
    await front.book.stream_ended.wait()
    assert (await stub.get(job)).lifecycle.state == State.STATE_PENDING
