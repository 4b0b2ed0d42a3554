"""Prometheus metrics of a service, on a port of their own. They hold no names of owners, URLs or captions."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from ltxtrain.v1.work_pb2 import Event, Outcome, ReportReason, Stage, State
from ltxtrain_client.channel import is_loopback
from ltxtrain_client.watch import TERMINAL
from prometheus_client import Counter, Gauge, Histogram, start_http_server

from ltxtrain_services.runtime.settings import SettingsError

log = logging.getLogger(__name__)

STAGE_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 3 * 3600, 12 * 3600, 48 * 3600)

rpc_seconds = Histogram("ltxtrain_rpc_seconds", "Seconds of unary calls.", ["method", "code"])
streams_ended = Counter("ltxtrain_streams_ended", "Watches and other streams that have ended.", ["method", "code"])
open_watches = Gauge("ltxtrain_open_watches", "Watches that are open now.")
resources = Gauge("ltxtrain_resources", "Resources in each state.", ["kind", "state"])
work_starts = Counter("ltxtrain_work_starts", "Attempts at the work of a resource.", ["kind"])
work_ends = Counter("ltxtrain_work_ends", "Resources that reached a terminal state.", ["kind", "state"])
stage_seconds = Histogram(
    "ltxtrain_stage_seconds",
    "Seconds between the first and the last event of a stage.",
    ["stage"],
    buckets=STAGE_BUCKETS,
)
report_lines = Counter("ltxtrain_report_lines", "Files by outcome, once for each reason.", ["outcome", "reason"])
loss = Gauge("ltxtrain_loss", "Mean training loss of the newest steps.", ["resource"])
steps_per_second = Gauge("ltxtrain_steps_per_second", "Optimizer steps a second.", ["resource"])
tokens_per_second = Gauge("ltxtrain_tokens_per_second", "Tokens a second through the model.", ["resource"])
queued = Gauge("ltxtrain_queued", "Jobs that wait for a GPU.")

_BY_RESOURCE = (loss, steps_per_second, tokens_per_second)

# Of each unfinished resource: the seconds at which each stage was first and last heard of.
_stages: dict[str, dict[str, tuple[float, float]]] = {}
_waiting: set[str] = set()
queued.set_function(lambda: float(len(_waiting)))


@contextmanager
def serve_metrics(bind: str) -> Iterator[str]:
    """Answer at http://{address}/metrics during the block, which gets the address; nothing when `bind` is empty.

    Raises SettingsError.
    """
    if not bind:
        yield ""
        return
    host, _, port = bind.rpartition(":")
    if not is_loopback(bind):
        log.warning("metrics are open to other machines at %s", bind)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"))
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(f"LTXTRAIN_METRICS_BIND={bind}: {error}. Name a host and a free port.") from error
    try:
        yield f"{host}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def count_resources(kind: str, by_state: Mapping[int, int]) -> None:
    for name, state in State.items():
        resources.labels(kind, _name(name, "STATE_")).set(by_state.get(state, 0))


def count_end(kind: str, state: "State") -> None:
    work_ends.labels(kind, _name(State.Name(state), "STATE_")).inc()


def observe(resource: str, events: Sequence[tuple[int, Event]]) -> None:
    """Count what durable events of a resource tell."""
    now = time.monotonic()
    for _, event in events:
        if event.stage:
            stage = _name(Stage.Name(event.stage), "STAGE_") if event.stage in Stage.values() else "OTHER"
            stages = _stages.setdefault(resource, {})
            stages[stage] = (stages.get(stage, (now, now))[0], now)
        _observe_detail(resource, event)


def _observe_detail(resource: str, event: Event) -> None:
    match event.WhichOneof("detail"):
        case "report_line":
            line = event.report_line
            outcome = _name(Outcome.Name(line.outcome), "OUTCOME_")
            for reason in line.reasons or (ReportReason.REPORT_REASON_UNSPECIFIED,):
                name = "NONE" if not reason else _name(ReportReason.Name(reason), "REPORT_REASON_")
                report_lines.labels(outcome, name).inc()
        case "train_metrics":
            _waiting.discard(resource)
            numbers = event.train_metrics
            loss.labels(resource).set(numbers.loss)
            tokens_per_second.labels(resource).set(numbers.tokens_per_second)
            if numbers.seconds_per_step > 0:
                steps_per_second.labels(resource).set(1 / numbers.seconds_per_step)
        case "queue_position":
            _waiting.add(resource)
        case "progress" if event.stage == Stage.STAGE_TRAIN:
            _waiting.discard(resource)
        case "lifecycle" if event.lifecycle.state in TERMINAL:
            _forget(resource)


def _forget(resource: str) -> None:
    """The series of a resource go with its work: their number stays bounded."""
    _waiting.discard(resource)
    for stage, (first, last) in _stages.pop(resource, {}).items():
        stage_seconds.labels(stage).observe(last - first)
    for gauge in _BY_RESOURCE:
        gauge.remove_by_labels({"resource": resource})


def _name(value: str, prefix: str) -> str:
    return value.removeprefix(prefix)
