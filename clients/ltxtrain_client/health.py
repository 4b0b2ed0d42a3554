"""Whether a service is there and ready, by the standard health protocol (grpc.health.v1)."""

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import Int32Value, StringValue

from ltxtrain_client.channel import Channel
from ltxtrain_client.errors import from_rpc_error

_SERVING = 1


async def is_serving(channel: Channel, service: str, deadline_seconds: float = 3.0) -> bool:
    """Whether the service's process calls itself ready. `service`: ltxtrain.v1.TrainService, say, or "".

    Raises Unavailable when nobody answers, NotFound for a service that is not there.
    """
    # These wrappers have the wire format of HealthCheckRequest {string service = 1} and of HealthCheckResponse
    # {enum status = 1}; the package that holds the real ones is not among a client's dependencies.
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
