"""The process of the gateway: an HTTP server that is a client of the services, and keeps nothing."""

import asyncio
import logging
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web
from ltxtrain_client.channel import is_loopback
from ltxtrain_client.errors import SettingsInvalid

from ltxtrain_services.gateway import endpoint, live, pages
from ltxtrain_services.gateway.http import (
    CONNECTIONS,
    PLACES,
    SETTINGS,
    STORIES,
    STREAMS,
    SUITE,
    Connections,
    end_streams,
    guarded,
    without_traces,
)
from ltxtrain_services.gateway.sign_in import faults_as_pages
from ltxtrain_services.gateway.story import Stories
from ltxtrain_services.gateway.suite import Suite
from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.auth import server_credentials
from ltxtrain_services.runtime.settings import Settings, SettingsError, read_settings
from ltxtrain_services.runtime.telemetry import log_to_stderr

log = logging.getLogger(__name__)

EXIT_SETTINGS = 2
# Requests under way, streams among them.
MAX_REQUESTS = 4_000


def make_app(settings: Settings, suite: Suite) -> web.Application:
    """The gateway's routes on connections to the services."""
    app = web.Application(middlewares=[faults_as_pages, guarded], client_max_size=endpoint.MAX_REQUEST_BYTES)
    app[SETTINGS], app[SUITE], app[STORIES], app[STREAMS] = settings, suite, Stories(), set()
    app[CONNECTIONS], app[PLACES] = Connections(), asyncio.Semaphore(MAX_REQUESTS)
    app.add_routes([*endpoint.routes(), *pages.routes(), *live.routes()])
    app.router.add_get("/healthz", healthy)
    app.on_shutdown.append(end_streams)
    return app


async def healthy(request: web.Request) -> web.Response:
    """Whether the process answers; the services have health checks of their own."""
    return web.Response(text="ok")


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """TLS by the settings of the services, or None. Raises SettingsError when listening so would be open to all."""
    server_credentials(settings)
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(settings.tls_cert, settings.tls_key)
    if settings.tls_client_root is not None:
        context.load_verify_locations(settings.tls_client_root)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[str]:
    """A running gateway; its URL. Raises SettingsError."""
    context = tls_context(settings)
    host, _, port = settings.bind.rpartition(":")
    try:
        suite = Suite(settings)
    except SettingsInvalid as error:
        raise SettingsError(str(error)) from None
    # A reader who leaves ends its handler, and with it the watch that it has open.
    app = make_app(settings, suite)
    logging.getLogger("aiohttp.server").addFilter(without_traces)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=settings.grace_seconds, access_log=None)
    await runner.setup()
    assert runner.server is not None
    watching = asyncio.create_task(app[CONNECTIONS].watch(runner.server), name="idle connections")
    try:
        try:
            await web.TCPSite(runner, host.strip("[]"), int(port), ssl_context=context).start()
        except (OSError, ValueError, OverflowError) as error:
            raise SettingsError(f"LTXTRAIN_BIND={settings.bind}: {error}. Name a host and a free port.") from error
        address = f"{host}:{runner.addresses[0][1]}"
        if not is_loopback(settings.bind) and context is None:
            log.warning("listening without TLS on %s: put a proxy with TLS in front of it", address)
        yield f"{'https' if context else 'http'}://{address}"
    finally:
        watching.cancel()
        await runner.cleanup()
        await suite.close()


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit status of the process."""
    tracing.start_tracing(settings.otlp_endpoint, "ltxtrain.gateway")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with serving(settings) as url:
            log.info("listening on %s", url)
            await stop.wait()
    finally:
        tracing.stop_tracing()
    return 0


def main() -> None:
    """Entry of `python -m ltxtrain_services.gateway`: settings from the environment."""
    try:
        settings = read_settings()
        log_to_stderr(settings.log_level)
        status = asyncio.run(serve(settings))
    except SettingsError as error:
        print(error, file=sys.stderr)
        status = EXIT_SETTINGS
    sys.exit(status)
