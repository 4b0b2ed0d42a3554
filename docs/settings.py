"""Write docs/settings.md: every setting, from the code that reads it, with ports and measured sizes.

python docs/settings.py            writes the page beside this file
"""

import dataclasses
import inspect
import io
import json
import re
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from ltxtrain_client.channel import ClientSettings, Credentials

from ltxtrain_services.local import up
from ltxtrain_services.runtime.settings import PREFIX, Settings, UnitPrice

HERE = Path(__file__).parent
PAGE = HERE / "settings.md"
# Written by bench/sizes.py.
SIZES = HERE / "sizes.json"
SERVICES = ("ingest", "preprocess", "train", "gateway")
GIB = 2**30
# Units by the last word of a name.
UNITS = {"seconds": "s", "bytes": "bytes"}
# Settings that are credentials: better from a file.
SECRETS = ("database_url", "service_token", "s3_access_key", "s3_secret_key", "ray_token", "fetch_proxy")

HEAD = """<!-- Made by docs/settings.py from the settings themselves; tests/test_settings_page.py compares. -->
# Settings

All settings are environment variables. Each may come from a file: `LTXTRAIN_S3_SECRET_KEY_FILE` names a file that holds
`LTXTRAIN_S3_SECRET_KEY`, as is best for secrets (marked *secret*). An empty value is the default. Wrong values end a
process at its start, with every one that is wrong. In containers, put them into `ltxtrain.env`.

Booleans are `true` or `false`, lists are separated by commas, addresses are `host:port`.
"""

PORTS = """
## Ports

| port | who listens | who connects |
| --- | --- | --- |
| {gateway} | gateway (HTTP) | browsers, clients of the hosted endpoint |
| {ingest} | Ingest (gRPC) | callers, Train, Preprocess, the gateway |
| {preprocess} | Preprocess (gRPC) | callers, Train |
| {train} | Train (gRPC) | callers, the gateway |
| `LTXTRAIN_S3_ENDPOINT` (9000 in containers) | object store | services, Ray's nodes; callers, by the public endpoint |
| `LTXTRAIN_METRICS_BIND` | metrics of a service (HTTP), off by default | Prometheus |
| 5432 in containers | PostgreSQL | the three services |
| 6379 in containers | Ray's head | every Ray node, the services among them |
| of Ray's choice | raylets, object managers, workers | every Ray node to every other, both ways |

[hosts.md](hosts.md) has who calls whom, as rules of a firewall. `ltxtrain up` takes the first four where
`LTXTRAIN_GATEWAY`, `LTXTRAIN_INGEST`, `LTXTRAIN_PREPROCESS` and `LTXTRAIN_TRAIN` name no others, and free ones on
loopback for the object store and for Ray; with `--host` the store's S3 port is 9000, with `--nodes` Ray's are 6379–6381
and 10002–10999.
"""

SIZES_HEAD = """
## Sizes

Measured by `bench/sizes.py` with the tiny model, in MB: resident memory of each process of `ltxtrain up` at rest and at
most in a job of 100 steps, the part of it that is shared memory (`/dev/shm`), and the disk that its folder then took.
Actors come and go with the work; there are several of a kind. With the published model a trainer takes a GPU and up to
41 GiB of host memory ([kubernetes.md](kubernetes.md#sizes) says of what), an encoder as much as Gemma (30 GiB, or
22 GiB layer by layer), and `/dev/shm` three times width × height × 3 × frames of the largest clip, in bytes.

| process | listens on | at rest | in a job | shared | disk |
| --- | --- | --- | --- | --- | --- |
"""
# Processes that listen, by their names in the measurement.
LISTENS = {
    "gateway": "7000",
    "ingest": "7001",
    "preprocess": "7002",
    "train": "7003",
    "object store": "S3 and its own, of 20000–31999",
    "Ray: GCS": "`--port`",
    "Ray: raylet": "`--node-manager-port`, `--object-manager-port`",
}
# What a process of Ray's own, or an actor, is there for.
ROLES = {
    "ltxtrain up": "supervises the rest",
    "Ray: GCS": "one on the head",
    "Ray: raylet": "one a node; its shared memory is the object store",
    "Ray: agent": "two a node, which sleep",
    "Ray: ray start": "one a node, which waits",
    "supervisor of Ray": "of `ltxtrain up`",
}


def comments() -> dict[str, list[str]]:
    """Lines of comment above each field of the settings."""
    found: dict[str, list[str]] = {}
    kept: list[str] = []
    source = textwrap.dedent(inspect.getsource(Settings))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            kept.append(token.string.lstrip("# "))
        elif token.type == tokenize.NAME and token.line.lstrip().startswith(token.string):
            found.setdefault(token.string, kept)
            kept = []
        elif token.type == tokenize.NL and not token.line.strip():
            kept = []
    return found


def readers() -> dict[str, str]:
    """By setting: the processes that read it; the runtime is in all services."""
    package = HERE.parent / "ltxtrain_services"
    found: dict[str, str] = {}
    texts = {
        name: "\n".join(path.read_text() for path in sorted((package / name).glob("*.py")))
        for name in (*SERVICES, "runtime")
    }
    indirect = {"database_url": "database", "s3_public_endpoint": "public_endpoint", "fetch_buckets": "source_buckets"}
    for field in dataclasses.fields(Settings):
        used = re.compile(rf"settings\.({field.name}|{indirect.get(field.name, field.name)})\b")
        by = [name for name in SERVICES if used.search(texts[name])]
        if used.search(texts["runtime"]) and field.name not in ("ingest", "preprocess", "train"):
            by = [name for name in SERVICES if name != "gateway"] + (["gateway"] if "gateway" in by else [])
        found[field.name] = "services" if by == list(SERVICES[:3]) else "all" if by == list(SERVICES) else ", ".join(by)
    return found


def default_text(field: Any) -> str:
    value = field.default
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.name.endswith("bytes") and value % GIB == 0:
        return f"`{value}` ({value // GIB} GiB)"
    unit = next((text for word, text in UNITS.items() if field.name.rpartition("_")[2] == word), "")
    return f"`{value:g}` {unit}".strip() if isinstance(value, float) else f"`{value}` {unit}".strip()


def kind_text(kind: Any) -> str:
    names = {bool: "boolean", int: "whole number", float: "number", str: "text"}
    if kind in names:
        return names[kind]
    if UnitPrice in get_args(kind):
        return "amount and currency"
    return "list" if kind == tuple[str, ...] else "path" if Path in (kind, *get_args(kind)) else str(kind)


def service_rows() -> Iterator[str]:
    hints, said, by = get_type_hints(Settings), comments(), readers()
    for field in dataclasses.fields(Settings):
        meaning = " ".join(said.get(field.name, [])).replace("|", "\\|")
        secret = " *secret*" if field.name in SECRETS else ""
        name = f"`{PREFIX}{field.name.upper()}`{secret}"
        yield f"| {name} | {kind_text(hints[field.name])} | {default_text(field)} | {by[field.name]} | {meaning} |"


def client_rows() -> Iterator[str]:
    for kind in (ClientSettings, Credentials):
        documented = re.findall(r'^ {4}(\w+):[^\n]*\n {4}"""(.*?)"""', inspect.getsource(kind), re.M | re.S)
        for (name, meaning), field in zip(documented, dataclasses.fields(kind), strict=True):
            if name == "credentials":
                continue
            secret = " *secret*" if name == "token" else ""
            meaning = re.sub(r"`(tls_\w+)`", lambda found: f"`{PREFIX}{found[1].upper()}`", " ".join(meaning.split()))
            yield f"| `{PREFIX}{name.upper()}`{secret} | {default_text(field)} | {meaning} |"


def size_rows() -> Iterator[str]:
    """The largest first; actors last."""
    sizes: dict[str, dict[str, int]] = json.loads(SIZES.read_text())
    order = sorted(sizes, key=lambda name: (name.startswith("Ray: ") and name not in ROLES, -sizes[name]["job_mb"]))
    for name in order:
        own = sizes[name]
        role = f" ({ROLES[name]})" if name in ROLES else ""
        actor = name.removeprefix("Ray: ")
        shown = f"actor `{actor}`" if actor != name and name not in ROLES else f"{name}{role}"
        listens = LISTENS.get(name, "a worker port" if shown.startswith("actor") else "–")
        rest, shared, disk = (own.get(key) or "–" for key in ("rest_mb", "shm_mb", "disk_mb"))
        yield f"| {shown} | {listens} | {rest} | {own['job_mb']} | {shared} | {disk} |"


def page() -> str:
    """The page as it should be."""
    parts = [
        HEAD,
        "## Services and gateway\n",
        "| variable | kind | default | read by | meaning |\n| --- | --- | --- | --- | --- |",
        *service_rows(),
        "\n## Clients: the command line and the Python client\n",
        "| variable | default | meaning |\n| --- | --- | --- |",
        *client_rows(),
        PORTS.format(gateway=up.GATEWAY_PORT, **up.SERVICES) + SIZES_HEAD.rstrip(),
        *size_rows(),
        "",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
