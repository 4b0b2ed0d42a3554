import asyncio
from collections.abc import AsyncIterator, Callable

import aiohttp
import grpc
import grpc.aio
import pytest
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Event, Outcome, Progress, QueuePosition, ReportLine, ReportReason, Stage, TrainMetrics
from prometheus_client import REGISTRY

from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.metrics import serve_metrics
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.store import Edit, Store
from ltxtrain_services.runtime.work import Attempt, WorkRunner
from tests.services.runtime.front import Front, serving

JOB = "jobs/1"
METHOD = "/ltxtrain.v1.TrainService/"


@pytest.fixture
async def front(database: Database) -> AsyncIterator[Front]:
    async with serving(database, Settings()) as front:
        yield front


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"ltxtrain_{name}", labels) or 0.0


async def add(jobs: Store[Job], *events: Event) -> None:
    async with jobs.edit(JOB) as edit:
        for event in events:
            edit.add_event(event)


async def test_metrics_are_served_on_a_port_of_their_own() -> None:
    with serve_metrics("127.0.0.1:0") as address:
        async with aiohttp.ClientSession() as session, session.get(f"http://{address}/metrics") as response:
            text = await response.text()
    assert response.status == 200
    for name in ("rpc_seconds", "open_watches", "resources", "work_starts", "stage_seconds", "report_lines", "queued"):
        assert f"# TYPE ltxtrain_{name}" in text


async def test_a_port_that_is_taken_or_none_is_refused() -> None:
    with serve_metrics("127.0.0.1:0") as address:
        for bind in (address, "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000"):
            with pytest.raises(SettingsError, match="LTXTRAIN_METRICS_BIND"), serve_metrics(bind):
                pass
    with serve_metrics("") as none:
        assert none == ""


async def test_calls_are_counted_by_method_and_code(front: Front) -> None:
    stub = front.stub()

    def calls(method: str, code: str) -> float:
        return value("rpc_seconds_count", method=METHOD + method, code=code)

    async def fail() -> None:
        raise ZeroDivisionError

    front.book.estimate = fail
    before = calls("ListJobs", "OK"), calls("GetJob", "NOT_FOUND"), calls("EstimateJob", "INTERNAL")
    await stub.list()
    for call in (stub.get("jobs/nothing"), stub.estimate()):
        with pytest.raises(grpc.aio.AioRpcError):
            await call
    after = calls("ListJobs", "OK"), calls("GetJob", "NOT_FOUND"), calls("EstimateJob", "INTERNAL")
    assert [new - old for new, old in zip(after, before, strict=True)] == [1, 1, 1]


async def test_open_watches_and_how_they_end_are_counted(front: Front) -> None:
    stub = front.stub()
    job = (await stub.create()).name

    def ended(code: str) -> float:
        return value("streams_ended_total", method=f"{METHOD}WatchJob", code=code)

    before = value("open_watches"), ended("OK"), ended("CANCELLED")
    watches = [stub.watch(job), stub.watch(job)]
    for watch in watches:
        assert (await watch.read()).sequence == 1
    assert value("open_watches") == before[0] + 2
    front.book.stream_ended.clear()
    watches[0].cancel()
    await front.book.stream_ended.wait()
    assert value("open_watches") == before[0] + 1
    await front.book.finish(job)
    while await watches[1].read() is not grpc.aio.EOF:
        pass
    assert (value("open_watches"), ended("OK"), ended("CANCELLED")) == (before[0], before[1] + 1, before[2] + 1)


async def test_resources_are_counted_by_state(jobs: Store[Job]) -> None:
    for number in range(3):
        await jobs.create(Job(name=f"jobs/{number}"), owner="ann", request_id="", digest=b"")
    async with jobs.edit(JOB) as edit:
        edit.enter(4)  # type: ignore[arg-type]
    await WorkRunner(jobs, Succeeding()).count()
    assert value("resources", kind="jobs", state="PENDING") == 2
    assert value("resources", kind="jobs", state="SUCCEEDED") == 1
    assert value("resources", kind="jobs", state="RUNNING") == 0


class Succeeding:
    async def run(self, attempt: Attempt[Job]) -> Callable[[Edit[Job]], None]:
        return lambda edit: None

    salvage = run


async def test_attempts_and_their_ends_are_counted(jobs: Store[Job]) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    starts, ends = value("work_starts_total", kind="jobs"), value("work_ends_total", kind="jobs", state="SUCCEEDED")
    WorkRunner(jobs, Succeeding()).start(JOB)
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == JOB]
    await task
    assert value("work_starts_total", kind="jobs") == starts + 1
    assert value("work_ends_total", kind="jobs", state="SUCCEEDED") == ends + 1


async def test_report_lines_are_counted_by_reason(jobs: Store[Job]) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    labels = {"outcome": "SKIPPED", "reason": "CLIP_TOO_SHORT"}
    before = value("report_lines_total", **labels), value("report_lines_total", outcome="KEPT", reason="NONE")
    short = ReportLine(outcome=Outcome.OUTCOME_SKIPPED, reasons=[ReportReason.REPORT_REASON_CLIP_TOO_SHORT])
    await add(jobs, *[Event(report_line=line) for line in (short, short, ReportLine(outcome=Outcome.OUTCOME_KEPT))])
    assert value("report_lines_total", **labels) == before[0] + 2
    assert value("report_lines_total", outcome="KEPT", reason="NONE") == before[1] + 1


async def test_the_numbers_of_a_training_come_and_go_with_it(jobs: Store[Job]) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    queued, trained = value("queued"), value("stage_seconds_count", stage="TRAIN")
    await add(jobs, Event(stage=Stage.STAGE_QUEUE, queue_position=QueuePosition(ahead=2)))
    assert value("queued") == queued + 1
    await add(jobs, Event(stage=Stage.STAGE_TRAIN, progress=Progress(completed=0, total=100)))
    assert value("queued") == queued
    metrics = TrainMetrics(step=8, loss=0.5, seconds_per_step=0.25, tokens_per_second=1000.0)
    await add(jobs, Event(stage=Stage.STAGE_TRAIN, train_metrics=metrics))
    names = ("loss", "steps_per_second", "tokens_per_second")
    assert [REGISTRY.get_sample_value(f"ltxtrain_{name}", {"resource": JOB}) for name in names] == [0.5, 4.0, 1000.0]
    async with jobs.edit(JOB) as edit:
        edit.enter(6)  # type: ignore[arg-type]
    assert [REGISTRY.get_sample_value(f"ltxtrain_{name}", {"resource": JOB}) for name in names] == [None, None, None]
    assert value("stage_seconds_count", stage="TRAIN") == trained + 1


async def test_what_is_rolled_back_is_not_counted(jobs: Store[Job]) -> None:
    await jobs.create(Job(name=JOB), owner="ann", request_id="", digest=b"")
    before = value("report_lines_total", outcome="KEPT", reason="NONE")
    with pytest.raises(ZeroDivisionError):
        async with jobs.edit(JOB) as edit:
            edit.add_event(Event(report_line=ReportLine(outcome=Outcome.OUTCOME_KEPT)))
            raise ZeroDivisionError
    assert value("report_lines_total", outcome="KEPT", reason="NONE") == before
