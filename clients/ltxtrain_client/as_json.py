"""Messages as JSON for scripts: the contract's field names, enum words, numbers as numbers, times in RFC 3339."""

from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.status_pb2 import Status

from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import CallError, from_status


def as_json(message: Message, *, whole: bool = True) -> dict[str, Any]:
    """A message as JSON values. `whole` includes fields at their default, except unset ones with presence."""
    document: dict[str, Any] = {}
    fields: Any = message.DESCRIPTOR.fields
    for field in fields:
        value = getattr(message, field.name)
        if field.has_presence:
            if message.HasField(field.name):
                document[field.name] = _value(field, value, whole)
        elif field.is_repeated:
            if value or whole:
                document[field.name] = [_value(field, item, whole) for item in value]
        elif value or whole:
            document[field.name] = _value(field, value, whole)
    return document


def error_as_json(error: CallError) -> dict[str, Any]:
    """An error as JSON values, with its details unpacked."""
    return {
        "code": error.code.name,
        "reason": error.reason,
        "message": error.message,
        "metadata": dict(error.metadata),
        "violations": [vars(violation) for violation in error.violations],
        "subjects": [vars(subject) for subject in error.subjects],
    }


def _value(field: Any, value: Any, whole: bool) -> Any:
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    if isinstance(value, Status):
        return error_as_json(from_status(value))
    if isinstance(value, Message):
        return as_json(value, whole=whole)
    return word(field.enum_type, value) if field.enum_type is not None else value
