"""What can go wrong, as exceptions. The services' statuses become classes here and nowhere else.

LtxtrainError
├── SettingsInvalid           an address, token or certificate of this client is unusable
├── SheetInvalid              a sheet's JSON does not have the sheet's form; raised before anything is sent
├── TransferFailed            an upload or download did not end with the right bytes
├── OutputMissing             an artifact was asked for by the empty name of an output that a job does not have
└── CallError                 a service answered with an error, or did not answer
    ├── InvalidArgument       the request is wrong; `violations` has every wrong field
    ├── FailedPrecondition    the data, or the state of a resource, does not allow it; `subjects` names them
    ├── NotFound              no such resource, or not one of yours
    ├── AlreadyExists         the request_id came earlier with another request
    ├── OutOfRange            the cursor belongs to another resource
    ├── ResourceExhausted     too many unfinished jobs or watches, or not enough memory
    ├── Unavailable           nobody answers, or the server shuts down; worth another try
    ├── DeadlineExceeded      no answer in time
    ├── Unauthenticated       no token, or one that nobody has
    ├── PermissionDenied      a token that may not do this
    ├── Unimplemented         asked for what the server cannot do
    └── InternalError         a bug in the server, or anything not named above
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

if TYPE_CHECKING:
    from ltxtrain_client.sheet import Sheet

DOMAIN = "ltxtrain.v1"

_M = TypeVar("_M", bound=Message)
_ADDRESS = re.compile(r"ipv[46]:(\S{1,80}?): ")


class LtxtrainError(Exception):
    """Base of everything that this package raises on purpose."""


class SettingsInvalid(LtxtrainError):
    """An address, token or certificate cannot be used; the text names the setting and what to do."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a sheet's JSON: where, and what."""

    path: str
    description: str

    def __str__(self) -> str:
        return f"{self.path}: {self.description}" if self.path else self.description


class SheetInvalid(LtxtrainError):
    """A sheet's JSON does not have the sheet's form; `problems` has every fault, not only the first.

    `sheet` is what could be read beside them; None when there was no JSON object at all.
    """

    def __init__(self, problems: Sequence[Problem], sheet: "Sheet | None" = None) -> None:
        self.problems = tuple(problems)
        self.sheet = sheet
        super().__init__("; ".join(str(problem) for problem in problems))


class TransferFailed(LtxtrainError):
    """An upload or a download failed for good; what arrived is kept where a later try can go on from it."""


class OutputMissing(LtxtrainError):
    """An artifact was asked for by an empty name, as JobOutput has it for what a job did not make."""


@dataclass(frozen=True)
class Violation:
    """One wrong field: its path in the request, an ErrorReason name, and a sentence."""

    field: str
    reason: str
    description: str


@dataclass(frozen=True)
class Subject:
    """One clip or file that the failure is about. At most 20 travel in an error; a report has all."""

    type: str
    subject: str
    description: str


@dataclass(frozen=True)
class Details:
    """What an error says beside its text."""

    # ErrorReason value name without ERROR_REASON_, e.g. "RESOURCE_NOT_FOUND"; empty: none was given.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    subjects: tuple[Subject, ...] = ()
    # How long the server asks to be left alone.
    retry_after_seconds: float | None = None


class CallError(LtxtrainError):
    """A service's error, of a call or of a piece of work that ended with it."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        # As received: pass it on unchanged.
        self.status = status
        self.code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        details = _details(status)
        self.reason = details.reason
        self.metadata = details.metadata
        self.violations = details.violations
        self.subjects = details.subjects
        self.retry_after_seconds = details.retry_after_seconds

    @property
    def message(self) -> str:
        """The service's sentence alone; never empty."""
        return self.status.message or f"{self.code.name} without a word"

    def __str__(self) -> str:
        """The sentence, then each field and each subject on a line."""
        return "\n".join([self.message, *self.particulars()])

    def particulars(self) -> list[str]:
        """A line for each wrong field, and for each clip or file."""
        fields = [f"  {item.field}: {item.description} ({item.reason})" for item in self.violations]
        return fields + [f"  {item.subject}: {item.description}" for item in self.subjects]

    def __reduce__(self) -> tuple[type["CallError"], tuple[status_pb2.Status]]:
        return type(self), (self.status,)


class InvalidArgument(CallError):
    """The request is wrong; `violations` has every wrong field."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPrecondition(CallError):
    """The data, or the state of a resource, does not allow it; `subjects` names clips and files."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class NotFound(CallError):
    """No such resource, or not one of yours."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CallError):
    """The request_id came earlier with another request."""

    code = grpc.StatusCode.ALREADY_EXISTS


class OutOfRange(CallError):
    """The cursor is not one of this resource; metadata has oldestSequence and lastSequence."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(CallError):
    """Too many unfinished jobs or open watches, or a GPU ran out of memory."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(CallError):
    """Nobody answers at that address, or the server is shutting down; worth another try later."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(CallError):
    """No answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unauthenticated(CallError):
    """No token, or one that nobody has."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(CallError):
    """The token may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(CallError):
    """Asked for what the server cannot do; metadata names the field."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(CallError):
    """A bug in the server; metadata has the traceId under which its log tells more."""

    code = grpc.StatusCode.INTERNAL


_CODES = {code.value[0]: code for code in grpc.StatusCode}
_CLASSES: dict[int, type[CallError]] = {
    error.code.value[0]: error
    for error in (
        InvalidArgument,
        FailedPrecondition,
        NotFound,
        AlreadyExists,
        OutOfRange,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        InternalError,
    )
}


def from_status(status: status_pb2.Status) -> CallError:
    """The exception for a status, such as Job.lifecycle.error or Event.warning. Its class goes by the code."""
    return _CLASSES.get(status.code, InternalError)(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> CallError:
    """The exception for a call that failed, with the details that travelled in its trailing metadata."""
    text = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        text = _no_answer(text)
    bare = status_pb2.Status(code=error.code().value[0], message=text)
    try:
        # Typed for the synchronous Call; it reads no more than code, details and trailing metadata.
        return from_status(rpc_status.from_call(error) or bare)  # type: ignore[arg-type]
    except ValueError:  # a proxy changed the code or the text, so the two halves no longer agree
        return from_status(bare)


def _no_answer(text: str) -> str:
    """A sentence for gRPC's own text, e.g. "… ipv4:127.0.0.1:7003: Failed to connect …: Connection refused (111)"."""
    found = _ADDRESS.search(text)
    at = f" at {unquote(found[1])}" if found else ""
    cause = re.sub(r" \(\d+\)$", "", text.rpartition(": ")[2]).rstrip(".")
    return f"The service{at} does not answer" + (f" ({cause})." if cause else ".")


def _details(status: status_pb2.Status) -> Details:
    info = _unpack(status, error_details_pb2.ErrorInfo)
    request = _unpack(status, error_details_pb2.BadRequest)
    failure = _unpack(status, error_details_pb2.PreconditionFailure)
    retry = _unpack(status, error_details_pb2.RetryInfo)
    return Details(
        reason=info.reason if info is not None and info.domain == DOMAIN else "",
        metadata=dict(info.metadata) if info is not None else {},
        violations=tuple(
            Violation(item.field, item.reason, item.description)
            for item in (request.field_violations if request is not None else ())
        ),
        subjects=tuple(
            Subject(item.type, item.subject, item.description)
            for item in (failure.violations if failure is not None else ())
        ),
        retry_after_seconds=retry.retry_delay.ToTimedelta().total_seconds() if retry is not None else None,
    )


def _unpack(status: status_pb2.Status, kind: type[_M]) -> _M | None:
    for detail in status.details:
        message = kind()
        if detail.Is(kind.DESCRIPTOR) and detail.Unpack(message):
            return message
    return None
