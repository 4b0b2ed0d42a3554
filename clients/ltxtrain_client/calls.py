"""Base class of the three clients: unary calls, paging and request ids."""

import uuid
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from ltxtrain_client.channel import Channel
from ltxtrain_client.errors import from_rpc_error

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)
Item = TypeVar("Item")


class Client:
    """Client of one service. Cheap to create: the connection belongs to the channel."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def acting_for(self, owner: str) -> Self:
        """A client on the same connection that acts for `owner`. Only a service's token may do so."""
        return type(self)(self.channel.acting_for(owner))

    async def _call(self, method: "grpc.aio.UnaryUnaryMultiCallable[Request, Response]", request: Request) -> Response:
        try:
            return await method(request, metadata=self.channel.metadata)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def _pages(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, Any]",
        request: Any,
        items: Callable[[Any], Iterable[Item]],
    ) -> AsyncGenerator[Item, None]:
        """Every item of a List call, fetching pages as needed."""
        while True:
            response = await self._call(method, request)
            for item in items(response):
                yield item
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def new_request_id() -> str:
    """Idempotency key: a Create call repeated with it returns the same resource."""
    return str(uuid.uuid4())
