"""Results and faults in the form of the hosted endpoint's queue protocol: its answers and its webhooks."""

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from ltxtrain.v1.artifact_pb2 import Artifact
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import State
from ltxtrain_client.errors import CLIPS_PATH, SHEET_PATH, CallError, Violation, from_status
from ltxtrain_client.outputs import LISTED_RESULTS, RESULTS, file_name

HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 422,
    grpc.StatusCode.FAILED_PRECONDITION: 422,
    # The client libraries of the hosted endpoint repeat a call that is answered with 409.
    grpc.StatusCode.ALREADY_EXISTS: 422,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
}
CANCELLED = 499
CANCELLED_TEXT = "The request was cancelled."
# Outputs that are named whether or not they were asked for.
ALWAYS = ("lora_file", "config_file", "video", "debug_dataset")

DOWNLOAD_REASONS = frozenset({"DOWNLOAD_FAILED", "DOWNLOAD_REFUSED", "DOWNLOAD_TRUNCATED"})
VALIDATION_REASONS = frozenset({"VALIDATION_CLIP_TOO_SHORT"})
# The words of the hosted endpoint for what its own checks find; ours is beside it as `reason`.
TYPES = {"FIELD_REQUIRED": "missing", **dict.fromkeys(DOWNLOAD_REASONS, "file_download_error")}
# What is no part of the body there.
PLACES = {"webhook_url": ("query", "fal_webhook")}


def request_id(job: str) -> str:
    """The id of a request is the id of its job."""
    return job.removeprefix("jobs/")


def output_names(job: Job) -> dict[str, str]:
    """The artifact of each output that the job has made."""
    names = {field: name for field in RESULTS if (name := getattr(job.output, field))}
    # One key each: in the document they are lists.
    return names | {
        f"{field}[{index}]": name for field in LISTED_RESULTS for index, name in enumerate(getattr(job.output, field))
    }


def output_document(files: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The sheet's output; null for what the job was not asked for. Continued clips are lists of files."""
    document: dict[str, Any] = {field: files.get(field) for field in RESULTS if field in ALWAYS or field in files}
    for field in LISTED_RESULTS:
        if listed := [file for name, file in files.items() if name.startswith(f"{field}[")]:
            document[field] = listed
    return document


def file_document(artifact: Artifact, url: str) -> dict[str, Any]:
    return {
        "url": url,
        "content_type": artifact.blob.content_type or "application/octet-stream",
        "file_name": file_name(artifact),
        "file_size": artifact.blob.size_bytes,
    }


def problem_document(
    message: str, error_type: str, reason: str = "", detail: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """An error as clients of the hosted endpoint read it, with our reason beside it."""
    document = {"detail": message if detail is None else list(detail), "message": message, "error_type": error_type}
    return document | ({"reason": reason} if reason else {})


def ended_problem(job: Job) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the document that stand for the result of a job that failed or was cancelled.

    No status is one that a client would repeat its call for: the job has ended for good.
    """
    if job.lifecycle.state == State.STATE_CANCELLED:
        return CANCELLED, problem_document(CANCELLED_TEXT, "client_cancelled")
    error = from_status(job.lifecycle.error)
    if is_about_data(error):
        return 422, problem_document(error.message, "bad_request", error.reason, error_items(error))
    return 500, problem_document(error.message, "internal_error", error.reason)


def http_status(error: CallError) -> int:
    return HTTP_STATUS.get(error.code, 500)


def is_about_data(error: CallError) -> bool:
    """Whether an error is the caller's to mend."""
    return http_status(error) == 422 or error.reason in DOWNLOAD_REASONS


def error_items(error: CallError) -> list[dict[str, Any]]:
    """An error as items of `detail`: each wrong field, or the fault itself and each clip that shows it."""
    if error.violations:
        return [violation_item(violation) for violation in error.violations]
    place: list[str | int] = ["body", "validation" if error.reason in VALIDATION_REASONS else "training_data_url"]
    if field := error.metadata.get("field"):
        place = ["body", *path_steps(field.removeprefix(SHEET_PATH).removeprefix(CLIPS_PATH))]
    if error.reason == "REQUEST_ID_REUSED":
        place = ["header", "Idempotency-Key"]
    first = fault_item(place, error.message, error.reason, dict(error.metadata))
    return [first] + [
        fault_item(place, f"{item.subject}: {item.description}", item.type or error.reason, {"subject": item.subject})
        for item in error.subjects
    ]


def violation_item(violation: Violation) -> dict[str, Any]:
    """`spec.extend_prefix.validation[0].prompt` as ["body", "validation", 0, "prompt"]."""
    if (place := PLACES.get(violation.field)) is not None:
        return fault_item(place, violation.description, violation.reason)
    return fault_item(["body", *path_steps(violation.sheet_path)], violation.description, violation.reason)


def path_steps(path: str) -> list[str | int]:
    """`validation[0].prompt` as ["validation", 0, "prompt"]."""
    parts = path.replace("[", ".").replace("]", "").split(".")
    return [int(step) if step.isdecimal() and step.isascii() else step for step in parts if step]


def fault_item(
    place: Sequence[str | int], text: str, reason: str, context: Mapping[str, str] | None = None
) -> dict[str, Any]:
    item = {"loc": list(place), "msg": text, "type": TYPES.get(reason, "value_error"), "reason": reason}
    return item | ({"ctx": dict(context)} if context else {})
