"""A hub on loopback that serves one folder, as far as huggingface_hub asks for a snapshot."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "somebody/LTX-2.3-tiny"


@dataclass
class Hub:
    endpoint: str
    fetched: list[str] = field(default_factory=list)  # paths of the files that were sent
    # Weights are sent once it is set.
    open: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(folder: Path, refusal: tuple[int, str] | None = None) -> Iterator[Hub]:
    """Refuses every request with a status and the error code of the hub, when given."""
    hub = Hub("")
    hub.open.set()
    files = {str(file.relative_to(folder)): file for file in sorted(folder.rglob("*")) if file.is_file()}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            if refusal:
                self.reply(refusal[0], b"", {"X-Error-Code": refusal[1]})
            elif path == f"/api/models/{REPOSITORY}/revision/main":
                self.reply(200, json.dumps({"id": REPOSITORY, "sha": COMMIT, "siblings": []}).encode())
            elif path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": digest(file)}
                    for name, file in files.items()
                ]
                self.reply(200, json.dumps(tree).encode())
            elif path.startswith(f"/{REPOSITORY}/resolve/{COMMIT}/"):
                name = path.split("/", 5)[5]
                if body:
                    hub.fetched.append(name)
                    if name.endswith(".safetensors"):
                        hub.open.wait(timeout=60)
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest(files[name])}"'}
                self.reply(200, files[name].read_bytes(), headers, body)
            else:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound"})

        def reply(self, status: int, content: bytes, headers: dict[str, str] | None = None, body: bool = True) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()
