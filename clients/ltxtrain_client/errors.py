"""Exceptions of this package. A service's status becomes one of these classes here and nowhere else.

LtxtrainError
├── SettingsInvalid           an address, token or certificate of this client is unusable
├── SheetInvalid              a sheet's JSON does not have the sheet's form; raised before anything is sent
├── LibraryMissing            an optional library of the client is not installed
├── TransferFailed            an upload or download failed for good
├── OutputMissing             an output that the job does not have was asked for
└── CallError                 a service returned an error, or did not answer
    ├── InvalidArgument       the request is wrong; `violations` has every wrong field
    ├── FailedPrecondition    the data or the state of a resource rules it out; `subjects` names clips and files
    ├── NotFound              no such resource, or not one of yours
    ├── AlreadyExists         the request_id was used before with a different request
    ├── OutOfRange            the cursor belongs to another resource
    ├── ResourceExhausted     too many unfinished jobs or watches, or not enough memory
    ├── Unavailable           no answer, or the server is shutting down: retry later
    ├── DeadlineExceeded      no answer before the deadline
    ├── Unauthenticated       the token is missing or unknown
    ├── PermissionDenied      the token lacks the permission
    ├── Unimplemented         the server does not support the request
    └── InternalError         a bug in the server, or any other code
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

# ErrorInfo.domain of the services' errors.
DOMAIN = "ltxtrain"
# Where the parameter sheet is in a request.
SHEET_PATH = "spec.extend_prefix."
CLIPS_PATH = "spec.continue_clips."

_M = TypeVar("_M", bound=Message)
_ADDRESS = re.compile(r"ipv[46]:(\S{1,80}?): ")


class LtxtrainError(Exception):
    """Base class of this package's exceptions."""


class SettingsInvalid(LtxtrainError):
    """An address, token or certificate cannot be used; the message names the setting and the remedy."""


class LibraryMissing(LtxtrainError):
    """An optional library is not installed; the message says how to install it."""


class TransferFailed(LtxtrainError):
    """An upload or a download failed for good; a later attempt resumes from the bytes that arrived."""


class OutputMissing(LtxtrainError):
    """The job has no such output: its field in JobOutput is empty."""


@dataclass(frozen=True)
class Violation:
    """One invalid field of a request."""

    field: str
    """Path in the request, as in "spec.extend_prefix.validation[0].prompt"."""

    reason: str
    """ErrorReason name without its prefix."""

    description: str
    """Sentence for people."""

    @property
    def sheet_path(self) -> str:
        """Path in the sheet's JSON, as in "validation[0].prompt" or "options.gpu_count"."""
        return self.field.removeprefix(SHEET_PATH).removeprefix(CLIPS_PATH)


@dataclass(frozen=True)
class Subject:
    """One clip or file that caused a failure. An error carries at most 20; the report has all of them."""

    type: str
    """ErrorReason name without its prefix."""

    subject: str
    """Path in the archive, or URL."""

    description: str
    """Sentence for people."""


@dataclass(frozen=True)
class Details:
    """Machine-readable details of a status."""

    # ErrorReason name without its prefix, e.g. "RESOURCE_NOT_FOUND"; empty: none was given.
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[Violation, ...] = ()
    subjects: tuple[Subject, ...] = ()
    retry_after_seconds: float | None = None


class CallError(LtxtrainError):
    """Error of a call, or the error with which a job, dataset or training set ended."""

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(self, status: status_pb2.Status) -> None:
        super().__init__(status.message)
        self.status = status
        """The status as received, to pass on unchanged."""
        self.code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
        details = _details(status)
        self.reason = details.reason
        """ErrorReason name without its prefix, e.g. "RESOURCE_NOT_FOUND"; empty when there was none."""
        self.metadata = details.metadata
        """Values that the message mentions, by name."""
        self.violations = details.violations
        """Every invalid field of the request."""
        self.subjects = details.subjects
        """The first 20 clips or files that caused the failure."""
        self.retry_after_seconds = details.retry_after_seconds
        """Delay that the server asks for before a retry; None: it does not."""

    @property
    def message(self) -> str:
        """The service's message alone; never empty."""
        return self.status.message or f"{self.code.name} without a message"

    def __str__(self) -> str:
        """The message, followed by a line for each field and each subject."""
        return "\n".join([self.message, *self.particulars()])

    def particulars(self) -> list[str]:
        """A line for each invalid field, clip and file."""
        fields = [f"  {item.sheet_path}: {item.description} ({item.reason})" for item in self.violations]
        return fields + [f"  {item.subject}: {item.description}" for item in self.subjects]

    def __reduce__(self) -> tuple[type["CallError"], tuple[status_pb2.Status]]:
        return type(self), (self.status,)


class InvalidArgument(CallError):
    """The request is invalid; `violations` has every wrong field."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class FailedPrecondition(CallError):
    """The data, or the state of a resource, rules the call out; `subjects` names clips and files."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class NotFound(CallError):
    """No such resource, or not one of yours."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(CallError):
    """The request_id was used before with a different request."""

    code = grpc.StatusCode.ALREADY_EXISTS


class OutOfRange(CallError):
    """The cursor belongs to another resource; metadata has oldestSequence and lastSequence."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhausted(CallError):
    """Too many unfinished jobs or open watches, or a GPU ran out of memory."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(CallError):
    """No answer at that address, or the server is shutting down: retry later."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(CallError):
    """No answer before the deadline."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unauthenticated(CallError):
    """The token is missing or unknown."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(CallError):
    """The token lacks the permission."""

    code = grpc.StatusCode.PERMISSION_DENIED


class Unimplemented(CallError):
    """The server does not support the request; metadata names the field."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(CallError):
    """A bug in the server; its log has more under metadata's traceId."""

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
    """Exception for a status, such as Job.lifecycle.error or Event.warning; its class depends on the code."""
    return _CLASSES.get(status.code, InternalError)(status)


def from_rpc_error(error: grpc.aio.AioRpcError) -> CallError:
    """Exception for a failed call, with the details from its trailing metadata."""
    text = error.details() or ""
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        text = _no_answer(text)
    bare = status_pb2.Status(code=error.code().value[0], message=text)
    try:
        # Typed for the synchronous Call, but reads only code, details and trailing metadata.
        return from_status(rpc_status.from_call(error) or bare)  # type: ignore[arg-type]
    except ValueError:  # a proxy changed the code or the text, so the two halves no longer agree
        return from_status(bare)


def _no_answer(text: str) -> str:
    """Readable form of gRPC's text, e.g. "… ipv4:127.0.0.1:7003: Failed to connect …: Connection refused (111)"."""
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
