"""What the three clients share: one way to call, to page and to watch."""

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
    """Calls of one service. Cheap to make; the channel is what holds a connection."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def acting_for(self, owner: str) -> Self:
        """This client on behalf of `owner`, on the same connection. Only a service's token may do so."""
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
        """Every item of a List call, page after page. `request` has a page_token, its response a next_page_token."""
        while True:
            response = await self._call(method, request)
            for item in items(response):
                yield item
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token


def new_request_id() -> str:
    """An id under which a Create call can be repeated without making a second resource."""
    return str(uuid.uuid4())
