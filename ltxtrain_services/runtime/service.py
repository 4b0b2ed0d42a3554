"""The process of a service: open what it needs, serve, resume unfinished work, drain."""

import asyncio
import contextlib
import gc
import logging
import ssl
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import grpc.aio

from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.auth import SERVICE, caller
from ltxtrain_services.runtime.blobs import Blobs
from ltxtrain_services.runtime.bucket import STALE_UPLOAD_DAYS
from ltxtrain_services.runtime.cluster import Cluster, ClusterRefused
from ltxtrain_services.runtime.database import Database, DatabaseUnavailable
from ltxtrain_services.runtime.events import EventLog
from ltxtrain_services.runtime.metrics import serve_metrics
from ltxtrain_services.runtime.objects import ObjectStore, ObjectStoreUnavailable, StoreAddress
from ltxtrain_services.runtime.server import Server, stop_event
from ltxtrain_services.runtime.settings import Settings, SettingsError, read_settings
from ltxtrain_services.runtime.telemetry import log_to_stderr
from ltxtrain_services.runtime.work import WorkRunner

log = logging.getLogger(__name__)

READY_SECONDS = 5.0
# Beyond the grace of calls and work.
STOP_SECONDS = 10.0
COUNT_SECONDS = 15.0
TIDY_SECONDS = 3600.0
EXIT_UNAVAILABLE = 1
EXIT_SETTINGS = 2
EXIT_CLUSTER_LOST = 3


@dataclass(frozen=True)
class Runtime:
    """The parts that every service is built from."""

    settings: Settings
    database: Database
    log: EventLog
    blobs: Blobs
    objects: ObjectStore
    cluster: Cluster


class Service(Protocol):
    """A servicer of the contract with its work."""

    # Full name in the contract, e.g. ltxtrain.v1.TrainService.
    full_name: str

    @property
    def work(self) -> WorkRunner[Any]: ...

    def register(self, server: grpc.aio.Server) -> None: ...

    async def tidy(self) -> None:
        """Called now and then while the service is idle or not: sweep blobs that nothing refers to."""


def store_address(settings: Settings) -> StoreAddress:
    """Raises SettingsError when LTXTRAIN_S3_TLS_ROOT is no file of certificates."""
    try:
        tls_root = settings.s3_tls_root.read_text() if settings.s3_tls_root else ""
        if tls_root:
            ssl.create_default_context(cadata=tls_root)
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"LTXTRAIN_S3_TLS_ROOT={settings.s3_tls_root} is no file of certificates: {error}"
        ) from None
    return StoreAddress(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.public_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        bucket=settings.s3_bucket,
        secure=settings.s3_secure,
        tls_root=tls_root,
        folder=settings.s3_folder,
    )


async def serve(settings: Settings, build: Callable[[Runtime], Service]) -> int:
    """Run one service until SIGTERM or until its cluster is lost; the exit status of the process."""
    tracing.start_tracing(settings.otlp_endpoint, getattr(build, "full_name", "ltxtrain"))
    try:
        with serve_metrics(settings.metrics_bind):
            return await _serve(settings, build)
    finally:
        tracing.stop_tracing()


async def _serve(settings: Settings, build: Callable[[Runtime], Service]) -> int:
    # Ray before the gRPC server: it forks, and a fork under live gRPC threads can hang.
    cluster = Cluster.attach(settings.ray_address, settings.ray_token, needs_gpus=settings.require_gpus)
    database = await Database.open(settings.database, settings.state_dir)
    objects = ObjectStore(store_address(settings))
    return await run(Runtime(settings, database, EventLog(database), Blobs(database), objects, cluster), build)


async def run(runtime: Runtime, build: Callable[[Runtime], Service]) -> int:
    """Serve with what has been opened until something ends it; the exit status of the process."""
    service = build(runtime)
    server = Server(runtime.settings, [service.full_name])
    service.register(server.grpc)
    stop = stop_event()
    keep_collections_short()
    await server.start()
    background = [
        asyncio.create_task(_keep_ready(server, runtime), name="the readiness check"),
        asyncio.create_task(_keep_tidy(service, runtime.objects), name="tidying"),
        asyncio.create_task(_keep_counted(service), name="counting resources"),
        asyncio.create_task(runtime.cluster.watch(), name="the watch over the cluster"),
    ]
    await service.work.resume()
    ends = [asyncio.create_task(event.wait()) for event in (stop, runtime.cluster.lost, server.ended)]
    await asyncio.wait([*ends, *background], return_when=asyncio.FIRST_COMPLETED)
    status = _exit_status(stop, runtime.cluster, server, background)

    async def before_close() -> None:
        runtime.log.drain()
        await service.work.drain()

    try:
        # A server that has broken may not be able to stop.
        await asyncio.wait_for(server.stop(before_close), runtime.settings.grace_seconds + STOP_SECONDS)
    except Exception:
        log.exception("the server did not stop in good order")
    for task in (*background, *ends):
        task.cancel()
    await asyncio.gather(*background, *ends, return_exceptions=True)
    await runtime.database.close()
    return status


def keep_collections_short() -> None:
    """Exempt what is in memory now from garbage collection: a pass over all that is imported takes 60 ms."""
    gc.freeze()


def _exit_status(
    stop: asyncio.Event, cluster: Cluster, server: Server, background: Sequence[asyncio.Task[None]]
) -> int:
    """Non-zero, so that the process is started again, unless it was told to stop."""
    if stop.is_set():
        return 0
    if cluster.lost.is_set():
        return EXIT_CLUSTER_LOST
    if server.ended.is_set():
        log.critical("the server accepts no more calls: this process ends, to be started again")
    for task in background:
        if task.done():
            error = None if task.cancelled() else task.exception()
            log.critical("%s has ended: this process ends, to be started again", task.get_name(), exc_info=error)
    return EXIT_UNAVAILABLE


async def _keep_ready(server: Server, runtime: Runtime) -> None:
    """SERVING only while the database, the object store and Ray answer, and Ray has a node that can work."""
    bucket_exists = False
    while True:
        ready = await runtime.database.answers() and runtime.cluster.can_work
        try:
            if not bucket_exists:
                await runtime.objects.ensure_bucket()
                await runtime.objects.expire_stale_uploads()
                bucket_exists = True
            else:
                await runtime.objects.ping()
        except ObjectStoreUnavailable as error:
            log.warning("not ready: %s", error)
            ready = False
        await server.set_ready(ready)
        await asyncio.sleep(READY_SECONDS if ready else 0.5)


async def _keep_tidy(service: Service, objects: ObjectStore) -> None:
    caller.set(SERVICE)
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        try:
            await service.tidy()
            await objects.abort_stale_uploads(await objects.now() - timedelta(days=STALE_UPLOAD_DAYS))
        except (ObjectStoreUnavailable, DatabaseUnavailable) as error:
            log.warning("nothing was tidied: %s", error)
        except Exception:
            log.exception("tidying failed")


async def _keep_counted(service: Service) -> None:
    """Resources by state, for the metrics."""
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            await service.work.count()
        await asyncio.sleep(COUNT_SECONDS)


def main(build: Callable[[Runtime], Service]) -> None:
    """Entry of `python -m services.NAME`: settings from the environment, exit status from `serve`."""
    try:
        settings = read_settings()
        log_to_stderr(settings.log_level)
        status = asyncio.run(serve(settings, build))
    except (SettingsError, ClusterRefused) as error:
        print(error, file=sys.stderr)
        status = EXIT_SETTINGS
    except DatabaseUnavailable as error:
        # Worth another start, by whoever supervises this process.
        print(error, file=sys.stderr)
        status = EXIT_UNAVAILABLE
    sys.exit(status)
