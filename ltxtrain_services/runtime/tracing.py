"""OpenTelemetry: one trace from a caller's request across the services into Ray. An optional extra, off by default.

A process has one tracer, as it has one place to send spans to; `start_tracing` makes it, `stop_tracing` ends it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import grpc.aio

from ltxtrain_services.runtime.settings import SettingsError

try:
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
    from opentelemetry.trace.status import Status, StatusCode

    # What sends the spans is imported by those who do: it takes 10 MB.
    INSTALLED = all(
        find_spec(f"opentelemetry.{part}") for part in ("sdk", "exporter.otlp.proto.http", "instrumentation.grpc")
    )
except ImportError:
    INSTALLED = False

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

HEALTH = "grpc.health.v1.Health"
# Key of a carrier beside the W3C ones: where an actor's process sends its spans.
ENDPOINT = "ltxtrain-otlp-endpoint"
# What is sent to a collector that does not answer is given up after so long.
SEND_SECONDS = 2
FLUSH_MILLISECONDS = 2_000
SENT_TOGETHER = 512

_provider: "TracerProvider | None" = None
_endpoint = ""


def start_tracing(
    endpoint: str, service: str, processor: "SpanProcessor | None" = None, *, together: int = SENT_TOGETHER
) -> None:
    """Send spans to an OTLP endpoint (http://host:4318), so many together, or to `processor`. Nothing without either.

    Raises SettingsError when the extra is not installed.
    """
    global _provider, _endpoint
    if _provider is not None or not (endpoint or processor):
        return
    if not INSTALLED:
        raise SettingsError("LTXTRAIN_OTLP_ENDPOINT is set: pip install 'ltxtrain[telemetry]', or unset it.")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    url = f"{endpoint.rstrip('/')}/v1/traces"
    if processor is None:
        exporter = OTLPSpanExporter(url, timeout=SEND_SECONDS)
        processor = BatchSpanProcessor(exporter, max_export_batch_size=together)
    provider.add_span_processor(processor)
    _provider, _endpoint = provider, endpoint


def stop_tracing() -> None:
    """Send what is left."""
    global _provider, _endpoint
    if _provider is not None:
        _provider.force_flush(FLUSH_MILLISECONDS)
        _provider.shutdown()
    _provider, _endpoint = None, ""


def server_interceptors() -> list[grpc.aio.ServerInterceptor]:
    """Make each call a span of the caller's trace; calls of the health service are none."""
    if _provider is None:
        return []
    from opentelemetry.instrumentation.grpc import aio_server_interceptor
    from opentelemetry.instrumentation.grpc.filters import negate, service_name

    return [aio_server_interceptor(_provider, negate(service_name(HEALTH)))]


def client_interceptors() -> list[grpc.aio.ClientInterceptor]:
    """Make each call to another service a span, and tell the other side of it."""
    if _provider is None:
        return []
    from opentelemetry.instrumentation.grpc import aio_client_interceptors

    interceptors = aio_client_interceptors(_provider)
    return [item for item in interceptors if isinstance(item, grpc.aio.UnaryUnaryClientInterceptor)] + [_Watches()]


class _Watches(grpc.aio.UnaryStreamClientInterceptor):
    """Tells the other side of the present span: a watch is a span there, not here, where it is left without an end."""

    async def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        metadata = grpc.aio.Metadata(*(client_call_details.metadata or ()), *carrier.items())
        return await continuation(client_call_details._replace(metadata=metadata), request)


def trace_id() -> str:
    """The present span's trace, 32 hexadecimal digits; empty without one."""
    if _provider is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


@contextmanager
def span(name: str, **attributes: str) -> Iterator[None]:
    """A span of the present trace around the block."""
    if _provider is None:
        yield
        return
    # The log has exceptions, without what may be secret in them.
    with _provider.get_tracer(__name__).start_as_current_span(name, attributes=attributes, record_exception=False):
        yield


def mark_failed(code: grpc.StatusCode) -> None:
    """Say in the present span with which code its call ended."""
    if _provider is not None:
        present = trace.get_current_span()
        present.set_attribute("rpc.grpc.status_code", code.value[0])
        present.set_status(Status(StatusCode.ERROR, code.name))


def carried() -> dict[str, str]:
    """The carrier of the present trace for another process; empty without one."""
    carrier: dict[str, str] = {}
    if _provider is not None:
        TraceContextTextMapPropagator().inject(carrier)
        if carrier and _endpoint:
            carrier[ENDPOINT] = _endpoint
    return carrier


@contextmanager
def resumed(carrier: Mapping[str, str], name: str, *, flush: bool) -> Iterator[None]:
    """A span `name` in the trace that `carried` told of, in whatever process; flush: spans are sent before it ends."""
    if "traceparent" not in carrier or not INSTALLED:
        yield
        return
    # A worker is ended without a word: it sends each span at once.
    start_tracing(carrier.get(ENDPOINT, ""), "ltxtrain-worker", together=1)
    if _provider is None:
        yield
        return
    parent = TraceContextTextMapPropagator().extract(carrier)
    try:
        with _provider.get_tracer(__name__).start_as_current_span(name, context=parent, record_exception=False):
            yield
    finally:
        if flush:
            _provider.force_flush(FLUSH_MILLISECONDS)
