"""Every message of the contract with every field set, error details included."""

from typing import Any

from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from ltxtrain.v1 import ingest_pb2, preprocess_pb2, train_pb2
from ltxtrain.v1.error_pb2 import ErrorDetails

PACKAGE = "ltxtrain.v1."
NUMBERS: dict[int, Any] = {
    FieldDescriptor.CPPTYPE_INT32: 7,
    FieldDescriptor.CPPTYPE_INT64: 2**53 + 1,
    FieldDescriptor.CPPTYPE_DOUBLE: 0.1,
    FieldDescriptor.CPPTYPE_FLOAT: 0.5,
    FieldDescriptor.CPPTYPE_BOOL: True,
    FieldDescriptor.CPPTYPE_STRING: "ÄÖ 車 🎬",
}


def every_message() -> list[type[Message]]:
    """Each message that a call takes or returns, and each that those hold; those of other packages left out."""
    found: dict[str, Descriptor] = {}

    def walk(described: Descriptor) -> None:
        if described.full_name in found or not described.full_name.startswith(PACKAGE):
            return
        found[described.full_name] = described
        for field in described.fields:
            if field.message_type is not None:
                walk(field.message_type)

    for file in (ingest_pb2, preprocess_pb2, train_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                walk(method.input_type)
                walk(method.output_type)
    return [GetMessageClass(item) for _, item in sorted(found.items()) if not item.GetOptions().map_entry]


def filled(kind: type[Message]) -> Message:
    """A message with every field set, of a oneof the last one; a Status holds one detail of each type."""
    message = kind()
    _fill(message)
    return message


def _fill(message: Any) -> None:
    if isinstance(message, Packed):
        # Packed by whoever fills the list of them.
        return
    if isinstance(message, Duration):
        message.FromMilliseconds(1500)
        return
    if isinstance(message, Timestamp):
        message.FromJsonString("2026-11-29T19:00:00.123456Z")
        return
    for field in message.DESCRIPTOR.fields:
        if field.message_type is Packed.DESCRIPTOR:
            details: Any = ErrorDetails.DESCRIPTOR.fields
            for detail in details:
                getattr(message, field.name).add().Pack(filled(GetMessageClass(detail.message_type)))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            values: Any = field.message_type.fields_by_name["value"]
            getattr(message, field.name)["key"] = NUMBERS[values.cpp_type]
        elif field.message_type is not None:
            part = getattr(message, field.name)
            part = part.add() if field.is_repeated else part
            part.SetInParent()
            _fill(part)
        else:
            value = field.enum_type.values[-1].number if field.enum_type is not None else NUMBERS[field.cpp_type]
            value = value.encode() if field.type == FieldDescriptor.TYPE_BYTES else value
            if field.is_repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
