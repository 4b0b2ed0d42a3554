"""How one service calls another: as the owner of the work, with errors that workflows understand."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

from ltxtrain_client.channel import Channel, Credentials, connect
from ltxtrain_client.errors import CallError, DeadlineExceeded, ResourceExhausted, Unavailable

from ltxtrain_services.runtime import tracing
from ltxtrain_services.runtime.auth import LOCAL_OWNER
from ltxtrain_services.runtime.errors import Upstream
from ltxtrain_services.runtime.settings import Settings
from ltxtrain_services.runtime.work import Retryable

T = TypeVar("T")


def connect_service(address: str, settings: Settings, owner: str = LOCAL_OWNER) -> Channel:
    """A channel to another service on behalf of an owner; with a service token, when there is one.

    Past any proxy of the environment: offices set http_proxy for the world outside, and services are not outside.
    """
    credentials = Credentials(
        token=settings.service_token,
        tls_root=settings.tls_root,
        tls_cert=settings.tls_cert if settings.tls_root else None,
        tls_key=settings.tls_key if settings.tls_root else None,
    )
    trusted = address if "://" in address or settings.tls_root else f"http://{address}"
    interceptors = tracing.client_interceptors()
    return connect(trusted, credentials, interceptors=interceptors, use_proxy=False).acting_for(owner)


async def passing_errors_on(call: Awaitable[T]) -> T:
    """The result of a call to another service. Raises Retryable, or Upstream with its status unchanged."""
    async with errors_passed_on():
        return await call


@asynccontextmanager
async def errors_passed_on() -> AsyncIterator[None]:
    """Turns CallError of the block into Retryable or Upstream."""
    try:
        yield
    except (Unavailable, DeadlineExceeded) as error:
        raise Retryable(str(error)) from error
    except ResourceExhausted as error:
        if error.retry_after_seconds is None:
            raise Upstream(error.status) from error
        raise Retryable(str(error)) from error
    except CallError as error:
        raise Upstream(error.status) from error
