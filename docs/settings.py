"""Write docs/settings.md: every setting, from the code that reads it.

python docs/settings.py            writes the page beside this file
"""

import dataclasses
import inspect
import io
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

`ltxtrain up` takes the first four where `LTXTRAIN_GATEWAY`, `LTXTRAIN_INGEST`, `LTXTRAIN_PREPROCESS` and
`LTXTRAIN_TRAIN` name no others, and free ones on loopback for the object store and for Ray.
"""


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
        PORTS.format(gateway=up.GATEWAY_PORT, **up.SERVICES),
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
