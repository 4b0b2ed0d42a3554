import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client import TrainClient
from ltxtrain_client.channel import Channel
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.database import Database
from ltxtrain_services.runtime.settings import Settings, SettingsError
from ltxtrain_services.runtime.store import Edit, Store
from ltxtrain_services.runtime.telemetry import JsonLines, bound, current_trace, resumed_trace
from ltxtrain_services.runtime.upstream import connect_service
from ltxtrain_services.runtime.work import Attempt, WorkRunner
from tests.services.runtime.collector import collecting
from tests.services.runtime.front import Front, info_of, serving

log = logging.getLogger(__name__)


@pytest.fixture
def spans() -> Iterator[Callable[[], list[ReadableSpan]]]:
    """Finished spans, oldest first, while tracing is on."""
    exporter = InMemorySpanExporter()
    tracing.start_tracing("", "train", SimpleSpanProcessor(exporter))
    yield lambda: list(exporter.get_finished_spans())
    tracing.stop_tracing()


@pytest.fixture
async def front(spans: object, database: Database) -> AsyncIterator[Front]:
    async with serving(database, Settings()) as front:
        yield front


@pytest.fixture
async def behind(spans: object, front: Front) -> AsyncIterator[TrainClient]:
    """The same server, called as one service calls another."""
    channel: Channel = connect_service(front.address, Settings())
    yield TrainClient(channel)
    await channel.close()


@pytest.fixture
def lines() -> Iterator[Callable[[], list[dict[str, Any]]]]:
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(JsonLines())
    logger = logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    logger.removeHandler(handler)
    logger.setLevel(level)


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def tree(spans: list[ReadableSpan]) -> dict[str, str]:
    """Each span's kind and name, and those of its parent."""
    labels = {span.context.span_id: f"{span.kind.name} {span.name}" for span in spans if span.context}
    return {
        labels[span.context.span_id]: labels[span.parent.span_id] if span.parent else ""
        for span in spans
        if span.context
    }


async def test_a_call_that_calls_another_service_is_one_trace(
    front: Front, behind: TrainClient, spans: Callable[[], list[ReadableSpan]]
) -> None:
    async def call_on() -> None:
        assert [job async for job in behind.list_jobs()] == []

    front.book.estimate = call_on
    await front.stub().estimate()
    service = "/ltxtrain.v1.TrainService"
    assert tree(spans()) == {
        f"SERVER {service}/EstimateJob": "",
        f"CLIENT {service}/ListJobs": f"SERVER {service}/EstimateJob",
        f"SERVER {service}/ListJobs": f"CLIENT {service}/ListJobs",
    }
    assert len({trace_of(span) for span in spans()}) == 1


async def test_work_and_the_watches_that_it_opens_belong_to_the_call_that_began_it(
    front: Front, behind: TrainClient, jobs: Store[Job], spans: Callable[[], list[ReadableSpan]]
) -> None:
    class Watching:
        async def run(self, attempt: Attempt[Job]) -> Callable[[Edit[Job]], None]:
            upstream = await behind.submit(Job().spec.extend_prefix)
            await front.book.finish(upstream.name)
            assert [sequence async for sequence, _ in behind.watch_job(upstream.name)] == [1, 2]
            return lambda edit: None

        salvage = run

    await front.book.jobs.create(Job(name="jobs/1"), owner="ann", request_id="", digest=b"")
    runner = WorkRunner(front.book.jobs, Watching())

    async def begin() -> None:
        runner.start("jobs/1")

    front.book.estimate = begin
    await front.stub().estimate()
    async for _ in front.book.log.follow("jobs/1", 0):
        pass
    await runner.drain()
    assert len({trace_of(span) for span in spans()}) == 1
    parents = tree(spans())
    service = "/ltxtrain.v1.TrainService"
    assert parents["INTERNAL work jobs"] == f"SERVER {service}/EstimateJob"
    assert parents[f"CLIENT {service}/CreateJob"] == parents[f"SERVER {service}/WatchJob"] == "INTERNAL work jobs"


async def test_an_error_marks_its_span_and_names_its_trace(
    front: Front, spans: Callable[[], list[ReadableSpan]], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("inner workings")

    front.book.estimate = fail
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.stub().estimate()
    (span,) = spans()
    assert info_of(caught.value).metadata["traceId"] == trace_of(span)
    assert span.status.status_code == StatusCode.ERROR
    assert (span.attributes or {})["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]
    assert "inner workings" not in span.to_json()
    (line,) = [line for line in lines() if line["message"] == "unforeseen"]
    assert (line["trace_id"], line["method"]) == (trace_of(span), "/ltxtrain.v1.TrainService/EstimateJob")
    assert "inner workings" in line["exception"]


async def test_a_watcher_who_leaves_ends_its_span(
    front: Front, spans: Callable[[], list[ReadableSpan]], lines: Callable[[], list[dict[str, Any]]]
) -> None:
    stub = front.stub()
    job = await stub.create()
    watch = stub.watch(job.name)
    assert (await watch.read()).sequence == 1
    watch.cancel()
    await front.book.stream_ended.wait()
    await stub.list()
    assert [span.name.rpartition("/")[2] for span in spans()] == ["CreateJob", "WatchJob", "ListJobs"]
    assert [line for line in lines() if line["level"] == "ERROR"] == []


async def test_health_is_no_span(front: Front, spans: Callable[[], list[ReadableSpan]]) -> None:
    health: Any = health_pb2_grpc.HealthStub(front.stub().channel)
    await health.Check(health_pb2.HealthCheckRequest())
    assert spans() == []


async def test_without_tracing_log_lines_have_an_id_all_the_same(
    database: Database, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    assert tracing.server_interceptors() == tracing.client_interceptors() == []
    async with serving(database, Settings()) as front:
        stub = front.stub()
        names = [(await stub.create()).name for _ in range(2)]
        for name in names:
            await stub.get(name)
    served = [line for line in lines() if line["message"] == "served" and line["method"].endswith("GetJob")]
    assert [line["resource"] for line in served] == names
    assert len({line["trace_id"] for line in served}) == 2
    assert all(len(line["trace_id"]) == 32 for line in served)


def test_the_endpoint_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "INSTALLED", False)
    with pytest.raises(SettingsError, match=r"ltxtrain\[telemetry\]"):
        tracing.start_tracing("http://127.0.0.1:4318", "train")


def test_what_is_bound_goes_with_the_work_and_no_further(lines: Callable[[], list[dict[str, Any]]]) -> None:
    with bound(resource="jobs/2", method="GetJob"), bound(resource="jobs/1", method=""):
        carrier = current_trace()
        log.warning("inside")
    log.warning("outside")
    with resumed_trace(carrier, "train"):
        log.warning("elsewhere")
    inside, outside, elsewhere = lines()
    assert carrier == {"resource": "jobs/1", "trace_id": inside["trace_id"]}
    assert "resource" not in outside and "trace_id" not in outside
    assert (elsewhere["resource"], elsewhere["trace_id"]) == ("jobs/1", inside["trace_id"])


# What an actor does with the carrier among its arguments.
WORKER = """
import json, logging, sys
from ltxtrain_services.runtime.telemetry import log_to_stderr, resumed_trace
log_to_stderr("DEBUG")
logging.getLogger("aiosqlite").debug("a statement with its values")
log_to_stderr("INFO")
with resumed_trace(json.loads(sys.argv[1]), "train", flush=True):
    logging.getLogger("worker").info("at work")
"""


def test_the_trace_goes_on_in_the_process_of_a_worker() -> None:
    with collecting() as collector:
        tracing.start_tracing(collector.endpoint, "train")
        try:
            with bound(resource="jobs/1"), tracing.span("work jobs"):
                carrier = json.dumps(current_trace())
                command = [sys.executable, "-c", WORKER, carrier]
                worker = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        finally:
            tracing.stop_tracing()
    assert "with its values" not in worker.stderr
    line = json.loads(worker.stderr.splitlines()[-1])
    found = {span.name: span for span in collector.spans()}
    assert collector.services() == {found["work jobs"].trace_id: {"train", "ltxtrain-worker"}}
    assert found["train"].parent_span_id == found["work jobs"].span_id
    assert (line["message"], line["resource"]) == ("at work", "jobs/1")
    assert line["trace_id"] == found["train"].trace_id.hex()


def test_an_endpoint_that_does_not_answer_stops_nothing() -> None:
    tracing.start_tracing("http://127.0.0.1:9", "train")
    with tracing.span("work jobs"):
        assert len(tracing.trace_id()) == 32
    tracing.stop_tracing()
    assert tracing.trace_id() == ""
