"""The gateway's health check; those of the services are in test_tls.py and test_proxies.py."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ltxtrain_services.runtime.healthcheck import is_answering
from ltxtrain_services.runtime.settings import read_settings


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert self.path == "/healthz"
        self.send_response(getattr(self.server, "status", 200))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_gateway_is_healthy_while_it_says_so(server: HTTPServer) -> None:
    settings = read_settings({"LTXTRAIN_BIND": f"0.0.0.0:{server.server_port}"})
    assert is_answering(settings)
    server.status = 503  # type: ignore[attr-defined]
    assert not is_answering(settings)
    server.shutdown()
    server.server_close()
    assert not is_answering(settings)
