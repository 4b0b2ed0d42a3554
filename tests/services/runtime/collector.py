"""Takes spans as an OpenTelemetry collector does."""

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span


class Collector(HTTPServer):
    """Spans that came to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[ResourceSpans] = []
        self._news = threading.Condition()

    def take(self, request: ExportTraceServiceRequest) -> None:
        with self._news:
            self.received.extend(request.resource_spans)
            self._news.notify_all()

    def wait_for(self, arrived: Callable[[], bool]) -> None:
        """Return when what has come is enough."""
        with self._news:
            assert self._news.wait_for(arrived, timeout=60), sorted({span.name for span in self.spans()})

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [span for resource in self.received for scope in resource.scope_spans for span in scope.spans]

    def services(self) -> dict[bytes, set[str]]:
        """Those that sent spans of a trace."""
        found: dict[bytes, set[str]] = defaultdict(set)
        for resource in self.received:
            (name,) = (item.value.string_value for item in resource.resource.attributes if item.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    found[span.trace_id].add(name)
        return found


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector) and self.path == "/v1/traces"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.take(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def collecting() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
