"""The process of a service: open what it needs, serve, resume unfinished work, drain."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import grpc.aio

from services.runtime import tracing
from services.runtime.auth import SERVICE, caller
from services.runtime.blobs import Blobs
from services.runtime.cluster import Cluster, ClusterRefused
from services.runtime.events import EventLog
from services.runtime.metrics import serve_metrics
from services.runtime.objects import STALE_UPLOAD_DAYS, ObjectStore, ObjectStoreUnavailable, StoreAddress
from services.runtime.server import Server, stop_event
from services.runtime.settings import Settings, SettingsError, read_settings
from services.runtime.tables import Database, DatabaseUnavailable
from services.runtime.telemetry import log_to_stderr
from services.runtime.work import WorkRunner

log = logging.getLogger(__name__)

READY_SECONDS = 5.0
COUNT_SECONDS = 15.0
TIDY_SECONDS = 3600.0
EXIT_UNAVAILABLE = 1
EXIT_SETTINGS = 2
EXIT_CLUSTER_LOST = 3


@dataclass(frozen=True)
class Runtime:
    """What every service is built from."""

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
    return StoreAddress(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.public_endpoint,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
        region=settings.s3_region,
        bucket=settings.s3_bucket,
        secure=settings.s3_secure,
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
    cluster = Cluster.attach(settings.ray_address, settings.ray_token)
    database = await Database.open(settings.database, settings.state_dir)
    event_log = EventLog(database)
    objects = ObjectStore(store_address(settings))
    service = build(Runtime(settings, database, event_log, Blobs(database), objects, cluster))
    server = Server(settings, [service.full_name])
    service.register(server.grpc)
    stop = stop_event()
    await server.start()
    background = [
        asyncio.create_task(_keep_ready(server, database, objects, cluster)),
        asyncio.create_task(_keep_tidy(service, objects)),
        asyncio.create_task(_keep_counted(service)),
        asyncio.create_task(cluster.watch()),
    ]
    await service.work.resume()
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(cluster.lost.wait())]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)

    async def before_close() -> None:
        event_log.drain()
        await service.work.drain()

    await server.stop(before_close)
    for task in (*background, *ends):
        task.cancel()
    await asyncio.gather(*background, *ends, return_exceptions=True)
    await database.close()
    return EXIT_CLUSTER_LOST if cluster.lost.is_set() else 0


async def _keep_ready(server: Server, database: Database, objects: ObjectStore, cluster: Cluster) -> None:
    """SERVING only while the database, the object store and Ray answer."""
    bucket_exists = False
    while True:
        ready = await database.answers() and not cluster.lost.is_set()
        try:
            if not bucket_exists:
                await objects.ensure_bucket()
                await objects.expire_stale_uploads()
                bucket_exists = True
            else:
                await objects.ping()
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
            await objects.abort_stale_uploads(datetime.now(UTC) - timedelta(days=STALE_UPLOAD_DAYS))
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
