"""Errors that callers see. One class for each cause; one interceptor turns them into statuses.

ApiError
├── InvalidSpec        one or more fields of the request are wrong
├── MessageMalformed   the request is no message of its call
├── FailedPrecondition the data shows it; reason by argument
├── NotFound
├── RequestIdReused
├── NotReady           the resource is not in the state that the call needs
├── PageTokenInvalid
├── CursorOutOfRange
├── QueueFull
├── Unauthenticated
├── PermissionDenied
├── Draining           the server shuts down
├── Unavailable        another party does not answer; reason by argument
└── Upstream           the status of another service, passed on unchanged
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from ltxtrain.v1.error_pb2 import ErrorReason
from ltxtrain_client.enum_words import word
from ltxtrain_client.errors import DOMAIN

# Details travel in trailing metadata, whose hard limit is 16 KiB: lists of paths are capped, their total is told.
MAX_SUBJECTS = 20
# A request of a megabyte may have a hundred thousand wrong fields.
MAX_VIOLATIONS = 200
# Key of ErrorInfo.metadata: how many items of the lists were left out.
OMITTED = "omitted"
MAX_TEXT = 300
# Of a whole message: the names of five files may be of 64 KiB each.
MAX_MESSAGE = 2_000


@dataclass(frozen=True)
class Violation:
    """One wrong field: its path in the request, the reason, a sentence, and the numbers of the sentence."""

    field: str
    reason: "ErrorReason"
    description: str


class ApiError(Exception):
    """Base: an error with a gRPC code, a machine-readable reason and metadata for every value of its text."""

    code = grpc.StatusCode.INTERNAL
    reason: "ErrorReason" = ErrorReason.ERROR_REASON_INTERNAL

    def __init__(
        self,
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        reason: "ErrorReason | None" = None,
        details: Iterable[Message] = (),
    ) -> None:
        super().__init__(text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 1]}…")
        self.metadata = {key: str(value)[:MAX_TEXT] for key, value in (metadata or {}).items()}
        if reason is not None:
            self.reason = reason
        self.details = list(details)

    def status(self) -> status_pb2.Status:
        """google.rpc.Status whose first detail is the ErrorInfo."""
        info = error_details_pb2.ErrorInfo(reason=reason_name(self.reason), domain=DOMAIN, metadata=self.metadata)
        return status_pb2.Status(
            code=self.code.value[0],
            message=str(self),
            details=[pack(detail) for detail in (info, *self.details)],
        )


class InvalidSpec(ApiError):
    """The request itself is wrong; carries every violation."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_INVALID_SPEC

    def __init__(self, violations: Sequence[Violation], metadata: Mapping[str, object] | None = None) -> None:
        self.violations = list(violations)
        fields = ", ".join(violation.field[:MAX_TEXT] for violation in violations[:5]) + (
            " and more" if len(violations) > 5 else ""
        )
        bad_request = error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field[:MAX_TEXT],
                    description=violation.description[:MAX_TEXT],
                    reason=reason_name(violation.reason),
                )
                for violation in violations[:MAX_VIOLATIONS]
            ]
        )
        if len(violations) > MAX_VIOLATIONS:
            metadata = {**(metadata or {}), OMITTED: len(violations) - MAX_VIOLATIONS}
        text = f"{len(violations)} field{'s are' if len(violations) > 1 else ' is'} wrong: {fields}."
        super().__init__(text, metadata=metadata, details=[bad_request])


class MessageMalformed(ApiError):
    """The bytes of the request are not the message of its call."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_INVALID_SPEC

    def __init__(self) -> None:
        super().__init__("The request is not a message of this call. Generate the client from the suite's protos.")


class FailedPrecondition(ApiError):
    """A fault of the data; `subjects` are its clips or files, capped in the status, all in the report."""

    code = grpc.StatusCode.FAILED_PRECONDITION

    def __init__(
        self,
        reason: "ErrorReason",
        text: str,
        *,
        metadata: Mapping[str, object] | None = None,
        subjects: Sequence[tuple[str, str]] = (),
        kind: str = "",
    ) -> None:
        values = dict(metadata or {})
        details: list[Message] = []
        if subjects:
            values.setdefault("count", len(subjects))
            violations = [
                error_details_pb2.PreconditionFailure.Violation(
                    type=kind, subject=subject[:MAX_TEXT], description=description[:MAX_TEXT]
                )
                for subject, description in subjects[:MAX_SUBJECTS]
            ]
            details.append(error_details_pb2.PreconditionFailure(violations=violations))
        super().__init__(text, metadata=values, reason=reason, details=details)


class NotFound(ApiError):
    """No resource of that name that this caller may see."""

    code = grpc.StatusCode.NOT_FOUND
    reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND

    def __init__(self, name: str) -> None:
        kind = name.split("/", 1)[0]
        info = error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name[:MAX_TEXT])
        if name.strip():
            text = f"{name[:MAX_TEXT]} does not exist."
        else:
            text = "The name is empty. Give the whole name of what is meant, as in jobs/{job}."
        super().__init__(text, metadata={"name": name}, details=[info])


class RequestIdReused(ApiError):
    """The request_id came earlier with another request."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = ErrorReason.ERROR_REASON_REQUEST_ID_REUSED

    def __init__(self, resource: str) -> None:
        text = f"This request_id came earlier with another request, which made {resource}. Use a new one."
        super().__init__(text, metadata={resource.split("/", 1)[0].removesuffix("s"): resource})


class NotReady(ApiError):
    """The resource is not in the state that the call needs."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = ErrorReason.ERROR_REASON_RESOURCE_NOT_READY


class PageTokenInvalid(ApiError):
    """The page token is not one of ours, or belongs to a call with other arguments."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = ErrorReason.ERROR_REASON_PAGE_TOKEN_INVALID


class CursorOutOfRange(ApiError):
    """The cursor is newer than the newest event, or older than the oldest."""

    code = grpc.StatusCode.OUT_OF_RANGE
    reason = ErrorReason.ERROR_REASON_CURSOR_OUT_OF_RANGE

    def __init__(self, after: int, oldest: int, last: int) -> None:
        text = f"The cursor {after} is outside of the events {oldest} to {last} of this resource."
        super().__init__(text, metadata={"oldestSequence": oldest, "lastSequence": last})


class QueueFull(ApiError):
    """Too many unfinished jobs, watches or bytes for one server or caller."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_QUEUE_FULL


class Unauthenticated(ApiError):
    """No token, or one that nobody has."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = ErrorReason.ERROR_REASON_UNAUTHENTICATED


class PermissionDenied(ApiError):
    """A caller that may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = ErrorReason.ERROR_REASON_PERMISSION_DENIED


class Draining(ApiError):
    """The server shuts down; reconnect with the same cursor."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DRAINING

    def __init__(self) -> None:
        super().__init__("The server is shutting down. Reconnect with the same cursor.", details=[retry_info()])


class Unavailable(ApiError):
    """Another party does not answer; the server has already retried."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, reason: "ErrorReason", text: str, *, metadata: Mapping[str, object] | None = None) -> None:
        super().__init__(text, metadata=metadata, reason=reason)


class Upstream(ApiError):
    """Another service's error, passed on unchanged."""

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self._status = status
        self.code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
        self.reason = _reason_of(status)

    def status(self) -> status_pb2.Status:
        return self._status


def _reason_of(status: status_pb2.Status) -> "ErrorReason":
    """The reason that a status carries, or UNSPECIFIED."""
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            found = ErrorReason.DESCRIPTOR.values_by_name.get(f"ERROR_REASON_{info.reason}")
            return cast("ErrorReason", found.number) if found else ErrorReason.ERROR_REASON_UNSPECIFIED
    return ErrorReason.ERROR_REASON_UNSPECIFIED


def reason_name(reason: "ErrorReason") -> str:
    """The value's name without the enum's prefix, as ErrorInfo.reason and FieldViolation.reason hold it."""
    return word(ErrorReason.DESCRIPTOR, reason)


def retry_info(seconds: int = 1) -> error_details_pb2.RetryInfo:
    """A detail that says when to try again."""
    return error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds))


def pack(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


def internal(trace_id: str | None = None) -> ApiError:
    """The answer to a bug: no text of it, only the trace id under which the log has it all."""
    trace_id = trace_id or secrets.token_hex(16)
    return ApiError(
        f"Something went wrong inside the server. Its log has the details under trace {trace_id}.",
        metadata={"traceId": trace_id},
    )
