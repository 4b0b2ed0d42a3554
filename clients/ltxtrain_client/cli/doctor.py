"""`ltxtrain doctor`: check this installation, the three services and the object store, and say how to mend them."""

import asyncio
import os
import platform
import re
import shutil
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Annotated

import grpc.aio
import typer
from google.protobuf.wrappers_pb2 import Int32Value, StringValue
from rich.console import Console

from ltxtrain_client.channel import Channel, ClientSettings, connect, is_loopback
from ltxtrain_client.cli.help import DISTRIBUTION, own_version
from ltxtrain_client.cli.session import Exit, Json, run, settings_of
from ltxtrain_client.errors import CallError, LtxtrainError, TransferFailed, Unavailable, from_rpc_error
from ltxtrain_client.ingest import IngestClient
from ltxtrain_client.progress import print_json
from ltxtrain_client.quantities import size_text
from ltxtrain_client.train import TrainClient

# Entry points of checks that need more than a client's packages: functions (state folder, environment) -> Finding, or
# None where there is nothing to check.
CHECKS = "ltxtrain.checks"
_SERVING = 1  # grpc.health.v1.HealthCheckResponse.SERVING
SERVICES = {
    "train": "ltxtrain.v1.TrainService",
    "ingest": "ltxtrain.v1.IngestService",
    "preprocess": "ltxtrain.v1.PreprocessService",
}
# Clips, what they are encoded to, and checkpoints of a few jobs. The check of the model tells what its download needs.
WANTED_DISK_BYTES = 10e9
WANTED_GPU_BYTES = 40e9


class Verdict(StrEnum):
    """Result of a check."""

    OK = "ok"
    NOTE = "note"
    """Fine for a client, but something is missing for running the suite here."""
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    subject: str
    verdict: Verdict
    detail: str
    advice: str = ""
    """Remedy; empty: none needed."""


async def check_installation(
    settings: ClientSettings, state_dir: Path, environ: Mapping[str, str] = os.environ
) -> AsyncGenerator[Finding, None]:
    """Check this machine, then the three services and the object store behind them."""
    yield Finding("client", Verdict.OK, f"{DISTRIBUTION} {own_version()}, Python {platform.python_version()}")
    yield check_extra("server")
    yield check_extra("embedded")
    yield check_ray(environ)
    yield await check_gpu()
    yield check_disk(state_dir)
    services = {name: await check_service(settings, name) for name in SERVICES}
    reachable = {name for name, finding in services.items() if finding.verdict is Verdict.OK}
    # A suite that answers and has no state here runs in containers, say: nothing here tells its model.
    if is_loopback(settings.train) and (state_dir.exists() or "train" not in reachable):
        for entry in metadata.entry_points(group=CHECKS):
            if (finding := await asyncio.to_thread(_check_entry, entry, state_dir, environ)) is not None:
                yield finding
    for finding in services.values():
        yield finding
    may_call = True
    if "train" in reachable:
        access = await check_access(settings)
        may_call = access.verdict is Verdict.OK
        yield access
    # Without access, no upload would get as far as the store.
    if "ingest" in reachable and may_call:
        yield await check_store(settings)


def check_extra(extra: str) -> Finding:
    """Check that the packages of an extra are installed."""
    subject = f"packages [{extra}]"
    wanted = _packages_of(extra)
    missing = [name for name in wanted if _version(name) is None]
    if not wanted:
        return Finding(subject, Verdict.NOTE, f"unknown: {DISTRIBUTION} is not installed as a package")
    if not missing:
        return Finding(subject, Verdict.OK, ", ".join(f"{name} {_version(name)}" for name in wanted))
    return Finding(
        subject,
        Verdict.NOTE,
        f"missing: {', '.join(missing)}",
        f"Only needed to run the suite here: pip install '{DISTRIBUTION}[{extra}]'",
    )


def check_ray(environ: Mapping[str, str]) -> Finding:
    address = environ.get("LTXTRAIN_RAY_ADDRESS") or environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        advice = "Services attach to a raylet on their own machine; set the cluster's host:port instead."
        return Finding("ray", Verdict.FAILED, f"{address}: streaming does not work through Ray Client", advice)
    return Finding("ray", Verdict.OK, f"cluster at {address}" if address else "no cluster named; `up` starts its own")


async def check_gpu() -> Finding:
    """Check the GPUs that nvidia-smi lists."""
    if shutil.which("nvidia-smi") is None:
        advice = "Fine for a client, and for trying things out with the pocket model. Training LTX 2.3 needs one."
        return Finding("gpu", Verdict.NOTE, "no NVIDIA driver on this machine", advice)
    query = ("--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
    process = await asyncio.create_subprocess_exec(
        "nvidia-smi", *query, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output = (await process.communicate())[0].decode(errors="replace").strip()
    if process.returncode:
        return Finding("gpu", Verdict.FAILED, output.partition("\n")[0] or "nvidia-smi failed", "Check the driver.")
    cards = [line.rpartition(",") for line in output.splitlines()]
    # A GPU that shares the machine's memory has no size of its own.
    sizes = [int(size) * 2**20 for _, _, size in cards if size.strip().isdecimal()]
    detail = ", ".join(f"{name.strip()} ({size.strip()} MiB)" for name, _, size in cards)
    if sizes and max(sizes) < WANTED_GPU_BYTES:
        advice = "Small for LTX 2.3: set options.base_precision to int8 or nf4, or choose a lower resolution."
        return Finding("gpu", Verdict.NOTE, detail, advice)
    return Finding("gpu", Verdict.OK, detail)


def check_disk(state_dir: Path) -> Finding:
    place = next(path for path in (state_dir.absolute(), *state_dir.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    detail = f"{size_text(free)} free at {place}"
    if free >= WANTED_DISK_BYTES:
        return Finding("disk", Verdict.OK, detail)
    advice = f"Clips and checkpoints of jobs need about {size_text(WANTED_DISK_BYTES)}; "
    advice += "choose another folder with --state-dir."
    return Finding("disk", Verdict.NOTE, detail, advice)


def _check_entry(entry: metadata.EntryPoint, state_dir: Path, environ: Mapping[str, str]) -> Finding | None:
    """Run a check of another part of the distribution; None without its packages, or anything to check."""
    try:
        check = entry.load()
    except ModuleNotFoundError:
        return None
    finding = check(state_dir, environ)
    assert finding is None or isinstance(finding, Finding)
    return finding


async def check_service(settings: ClientSettings, name: str) -> Finding:
    """Check that a service answers and reports itself ready."""
    variable, subject = f"LTXTRAIN_{name.upper()}", f"service {name}"
    address: str = getattr(settings, name)
    try:
        async with connect(address, settings.credentials) as channel:
            serving = await is_serving(channel, SERVICES[name])
    except Unavailable:
        advice = f"Start the suite with `ltxtrain up`, or set {variable} to where it runs (TLS: LTXTRAIN_TLS_ROOT)."
        return Finding(subject, Verdict.FAILED, f"no answer at {address}", advice)
    except LtxtrainError as error:
        return Finding(subject, Verdict.FAILED, f"{address}: {error}", f"Does {variable} name this service?")
    if not serving:
        advice = "Its database, object store or Ray does not answer; its log says which."
        return Finding(subject, Verdict.FAILED, f"{address} runs but is not ready", advice)
    return Finding(subject, Verdict.OK, f"ready at {address}")


async def check_access(settings: ClientSettings) -> Finding:
    """Check that the token, or none, is accepted."""
    async with connect(settings.train, settings.credentials) as channel:
        try:
            async with aclosing(TrainClient(channel).list_jobs(page_size=1)) as jobs:
                async for _ in jobs:
                    break
        except CallError as error:
            return Finding(
                "access", Verdict.FAILED, str(error), "Set LTXTRAIN_TOKEN to a token that the operator gave."
            )
    return Finding("access", Verdict.OK, "with a token" if settings.credentials.token else "no token needed")


async def check_store(settings: ClientSettings) -> Finding:
    """Check that the object store accepts an upload at the URL that Ingest signs."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one-byte"
        path.write_bytes(b"\n")
        async with connect(settings.ingest, settings.credentials) as channel:
            try:
                await IngestClient(channel).upload(path)
            except TransferFailed as error:
                advice = "Set LTXTRAIN_S3_PUBLIC_ENDPOINT of the services to an address that this machine reaches."
                return Finding("object store", Verdict.FAILED, str(error), advice)
            except CallError as error:
                return Finding("object store", Verdict.FAILED, str(error), "See the log of Ingest.")
    return Finding("object store", Verdict.OK, "takes uploads from here")


async def is_serving(channel: Channel, service: str, deadline_seconds: float = 3.0) -> bool:
    """Whether a service reports itself ready, by grpc.health.v1; e.g. `service` = "ltxtrain.v1.TrainService".

    Raises Unavailable when there is no answer, NotFound when the server does not have the service.
    """
    # The wrappers have the wire format of HealthCheckRequest {string service = 1} and HealthCheckResponse
    # {enum status = 1}; grpcio-health-checking is not among a client's dependencies.
    check = channel.aio.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=StringValue.SerializeToString,
        response_deserializer=Int32Value.FromString,
    )
    try:
        response = await check(StringValue(value=service), timeout=deadline_seconds, metadata=channel.metadata)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from None
    return bool(response.value == _SERVING)


def _packages_of(extra: str) -> list[str]:
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    marked = [line for line in requirements if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    names = [re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0] for line in marked]
    return [name for name in names if name != DISTRIBUTION]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


_STYLES = {Verdict.OK: "green", Verdict.NOTE: "yellow", Verdict.FAILED: "red"}


def doctor(
    context: typer.Context,
    state_dir: Annotated[Path, typer.Option(help="State folder of `up`.", envvar="LTXTRAIN_STATE_DIR")] = Path(
        ".ltxtrain"
    ),
    json_lines: Json = False,
) -> None:
    """Check this installation and its services, with advice. Exit code 1 when a check fails."""

    async def work() -> bool:
        failed = False
        async for finding in check_installation(settings_of(context), state_dir):
            _show(finding, json_lines)
            failed |= finding.verdict is Verdict.FAILED
        return failed

    raise typer.Exit(Exit.FAILED if run(work()) else Exit.SUCCEEDED)


def _show(finding: Finding, json_lines: bool) -> None:
    if json_lines:
        print_json(vars(finding))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"{finding.verdict:<7}", style=_STYLES[finding.verdict], end="")
    console.print(f"{finding.subject}: {finding.detail}")
    if finding.advice:
        console.print(f"       → {finding.advice}")
