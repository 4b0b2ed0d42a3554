"""The queue protocol of the hosted endpoint fal-ai/ltx23-trainer-v2/extend-prefix, spoken for jobs of this suite.

A request id is the id of its job; everything is read from the job, from its events and from its artifacts.
"""

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Lifecycle, State
from ltxtrain_client.errors import CallError, Violation, from_status
from ltxtrain_client.outputs import RESULTS
from ltxtrain_client.sheet import SheetInvalid, parse_sheet
from ltxtrain_client.train import TrainClient
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.gateway.http import STORIES, SUITE, EventStream, fault_response, own_url, problem_response
from ltxtrain_services.gateway.story import LogLine
from ltxtrain_services.gateway.suite import Caller, http_status, sheet_violations

APP = "/fal-ai/ltx23-trainer-v2"
ENDPOINT = f"{APP}/extend-prefix"
REQUEST = "/requests/{request:[0-9a-f]{32}}"

# Names for keys that are no UUIDs themselves.
KEYS = uuid.UUID("6d5a0b5e-6a2f-5bd1-9c52-6d7d6f0b2d61")
MAX_KEY_CHARS = 255

DOWNLOAD_REASONS = frozenset({"DOWNLOAD_FAILED", "DOWNLOAD_REFUSED", "DOWNLOAD_TRUNCATED"})
# The words of the hosted endpoint for what its own checks find; ours is beside it as `reason`.
TYPES = {"FIELD_REQUIRED": "missing", **dict.fromkeys(DOWNLOAD_REASONS, "file_download_error")}
VALIDATION_REASONS = frozenset({"VALIDATION_CLIP_TOO_SHORT"})
CANCELLED = 499


def routes() -> list[web.RouteDef]:
    """The protocol's routes. Its own clients leave the endpoint's last part out of all but the first."""
    defined = [web.post(ENDPOINT, submit)]
    for base in (f"{APP}{REQUEST}", f"{ENDPOINT}{REQUEST}"):
        defined += [
            web.get(base, result),
            web.get(f"{base}/status", status),
            web.get(f"{base}/status/stream", stream),
            web.put(f"{base}/cancel", cancel),
        ]
    return defined


async def submit(request: web.Request) -> web.Response:
    """Start a job; a repeated Idempotency-Key returns the job of the first call."""
    caller = _caller(request)
    key = request.headers.get("Idempotency-Key", "")
    faults = _header_faults(request, key)
    try:
        sheet = parse_sheet(await request.read())
    except SheetInvalid as error:
        return _refused(faults + [_violation_item(item) for item in await sheet_violations(caller, error)])
    if faults:
        return _refused(faults)
    try:
        job = await caller.train.submit(sheet.spec, sheet.options, request_id=_request_id(key))
    except CallError as error:
        return call_fault(error)
    urls = _urls(request, job.name)
    return web.json_response({"status": "IN_QUEUE", "queue_position": job.queue_position} | urls, headers=_ids(job))


async def status(request: web.Request) -> web.Response:
    """The state of a job, with its log when asked for."""
    caller = _caller(request)
    try:
        job = await caller.train.get_job(_name(request))
        lines: Iterable[LogLine] | None = None
        if _wants_logs(request):
            story = await request.app[STORIES].read(job.name, caller.train.watch_job, job.lifecycle.last_sequence)
            lines = story.lines
    except CallError as error:
        return call_fault(error)
    ahead = job.queue_position if job.HasField("queue_position") else None
    document = _status(job.lifecycle, ahead) | _urls(request, job.name) | {"logs": _logs(lines)}
    return web.json_response(document, status=200 if _ended(job.lifecycle) else 202, headers=_ids(job))


async def stream(request: web.Request) -> web.StreamResponse:
    """`status` as server-sent events, each with the log lines that are new, until the job has ended."""
    caller = _caller(request)
    try:
        job = await caller.train.get_job(_name(request))
    except CallError as error:
        return call_fault(error)
    urls, wants_logs = _urls(request, job.name), _wants_logs(request)
    async with EventStream(request, headers=_ids(job)) as events:
        told = events.last_id
        shown: dict[str, Any] = {}
        follower = request.app[STORIES].follow(job.name, caller.train.watch_job)
        async with aclosing(events.while_open(follower)) as stories:
            async for story in stories:
                # The past is told at once.
                if story.cursor < job.lifecycle.last_sequence:
                    continue
                document = _status(story.lifecycle, story.waiting.ahead if story.waiting else None)
                lines = [line for line in story.lines if line.sequence > told] if wants_logs else None
                if document != shown or lines:
                    await events.send(document | urls | {"logs": _logs(lines)}, story.cursor)
                told, shown = story.cursor, document
    return events.response


async def result(request: web.Request) -> web.Response:
    """The sheet's output; a job that ended otherwise answers with why."""
    caller = _caller(request)
    try:
        job = await caller.train.get_job(_name(request))
        if job.lifecycle.state == State.STATE_SUCCEEDED:
            return web.json_response(await _output(caller.train, job), headers=_ids(job))
    except CallError as error:
        return call_fault(error)
    return _without_result(job)


async def cancel(request: web.Request) -> web.Response:
    """Ask for the end of a job; one that has ended says so."""
    train = _caller(request).train
    try:
        before = await train.get_job(_name(request))
        if _ended(before.lifecycle):
            return web.json_response({"status": "ALREADY_COMPLETED"}, status=400, headers=_ids(before))
        job = await train.cancel_job(before.name)
    except CallError as error:
        return call_fault(error)
    return web.json_response({"status": "CANCELLATION_REQUESTED"}, status=202, headers=_ids(job))


def call_fault(error: CallError) -> web.Response:
    """The answer to a call that a service refused, or did not answer."""
    code = http_status(error)
    return _refused(_items(error), error) if code == 422 else fault_response(error)


async def sheet_fault(caller: Caller, error: SheetInvalid) -> web.Response:
    """The answer to a sheet of the wrong form: every fault at once, the service's among them."""
    return _refused([_violation_item(item) for item in await sheet_violations(caller, error)])


def _without_result(job: Job) -> web.Response:
    lifecycle, headers = job.lifecycle, _ids(job)
    if lifecycle.state == State.STATE_CANCELLED:
        return problem_response(CANCELLED, "The request was cancelled.", "client_cancelled", headers=headers)
    if not lifecycle.HasField("error"):
        return problem_response(400, "Request is still in progress", "bad_request", headers=headers)
    error = from_status(lifecycle.error)
    if _is_about_data(error):
        return _refused(_items(error), error, headers)
    # The job has ended for good: no code that a client would repeat its call for.
    return problem_response(500, error.message, "internal_error", error.reason, headers=headers)


def _status(lifecycle: Lifecycle, ahead: int | None) -> dict[str, Any]:
    if _ended(lifecycle):
        document: dict[str, Any] = {"status": "COMPLETED", "metrics": {"inference_time": _seconds(lifecycle)}}
        if lifecycle.state == State.STATE_CANCELLED:
            document |= {"error": "The request was cancelled.", "error_type": "client_cancelled"}
        elif lifecycle.HasField("error"):
            error = from_status(lifecycle.error)
            kind = "bad_request" if _is_about_data(error) else "internal_error"
            document |= {"error": error.message, "error_type": kind, "reason": error.reason}
        return document
    if ahead is not None or lifecycle.state in (State.STATE_UNSPECIFIED, State.STATE_PENDING):
        return {"status": "IN_QUEUE", "queue_position": ahead or 0}
    return {"status": "IN_PROGRESS"}


def _seconds(lifecycle: Lifecycle) -> float | None:
    """From the start of the work to its end; None for work that never began."""
    if not lifecycle.HasField("start_time"):
        return None
    return (lifecycle.end_time.ToDatetime() - lifecycle.start_time.ToDatetime()).total_seconds()


def _ended(lifecycle: Lifecycle) -> bool:
    return lifecycle.state in TERMINAL


def _is_about_data(error: CallError) -> bool:
    return http_status(error) == 422 or error.reason in DOWNLOAD_REASONS


def _logs(lines: Iterable[LogLine] | None) -> list[dict[str, str]] | None:
    if lines is None:
        return None
    return [
        {"message": line.message, "level": line.level, "source": "USER", "timestamp": line.timestamp} for line in lines
    ]


async def _output(train: TrainClient, job: Job) -> dict[str, Any]:
    """Every field of the sheet's output; null for what the job was not asked for."""
    names = {field: getattr(job.output, field) for field in RESULTS}
    made = {field: name for field, name in names.items() if name}
    files = await asyncio.gather(*(_file(train, name) for name in made.values()))
    found = dict(zip(made, files, strict=True))
    always = ("lora_file", "config_file", "video", "debug_dataset")
    return {field: found.get(field) for field in names if field in always or field in found}


async def _file(train: TrainClient, name: str) -> dict[str, Any]:
    answer = await train.get_artifact(name)
    blob = answer.artifact.blob
    return {
        "url": answer.download_url,
        "content_type": blob.content_type or "application/octet-stream",
        "file_name": name.rpartition("/")[2],
        "file_size": blob.size_bytes,
    }


def _items(error: CallError) -> list[dict[str, Any]]:
    """An error as items of `detail`: each wrong field, or the fault itself and each clip that shows it."""
    if error.violations:
        return [_violation_item(violation) for violation in error.violations]
    place = ["body", "validation" if error.reason in VALIDATION_REASONS else "training_data_url"]
    if error.reason == "REQUEST_ID_REUSED":
        place = ["header", "Idempotency-Key"]
    first = _item(place, error.message, error.reason, ctx=dict(error.metadata))
    return [first] + [
        _item(place, f"{item.subject}: {item.description}", item.type or error.reason, ctx={"subject": item.subject})
        for item in error.subjects
    ]


def _violation_item(violation: Violation) -> dict[str, Any]:
    """`spec.validation[0].prompt` as ["body", "validation", 0, "prompt"]."""
    path = violation.field.removeprefix("spec.").replace("[", ".").replace("]", "")
    steps = [int(step) if step.isdecimal() and step.isascii() else step for step in path.split(".") if step]
    return _item(["body", *steps], violation.description, violation.reason)


def _item(loc: Sequence[str | int], text: str, reason: str, ctx: Mapping[str, str] | None = None) -> dict[str, Any]:
    item = {"loc": list(loc), "msg": text, "type": TYPES.get(reason, "value_error"), "reason": reason}
    return item | ({"ctx": dict(ctx)} if ctx else {})


def _refused(
    items: Sequence[Mapping[str, Any]], error: CallError | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    message = error.message if error is not None else f"{len(items)} field{'s are' if len(items) > 1 else ' is'} wrong."
    reason = error.reason if error is not None else "INVALID_SPEC"
    return problem_response(422, message, "bad_request", reason, detail=list(items), headers=headers)


def _header_faults(request: web.Request, key: str) -> list[dict[str, Any]]:
    faults = []
    if len(key) > MAX_KEY_CHARS:
        text = f"At most {MAX_KEY_CHARS} characters."
        faults.append(_item(["header", "Idempotency-Key"], text, "FIELD_OUT_OF_RANGE"))
    if "fal_webhook" in request.query:
        text = "No webhook is called. Read the status, or its stream, instead."
        faults.append(_item(["query", "fal_webhook"], text, "FIELD_UNIMPLEMENTED"))
    return faults


def _request_id(key: str) -> str | None:
    """A UUID for an idempotency key: the key itself where it is one."""
    if not key:
        return None
    try:
        return str(uuid.UUID(key)) if len(key) == 36 else str(uuid.uuid5(KEYS, key))
    except ValueError:
        return str(uuid.uuid5(KEYS, key))


def _caller(request: web.Request) -> Caller:
    """The caller by its header `Authorization: Key TOKEN` (or Bearer). Raises HTTPUnauthorized."""
    header = request.headers.get("Authorization", "")
    scheme, _, token = header.partition(" ")
    if header and (scheme.lower() not in ("key", "bearer") or not token):
        raise web.HTTPUnauthorized(text="Send the header 'Authorization: Key TOKEN'.")
    try:
        return request.app[SUITE].of(token)
    except ValueError as error:
        raise web.HTTPUnauthorized(text=str(error)) from None


def _name(request: web.Request) -> str:
    return f"jobs/{request.match_info['request']}"


def _wants_logs(request: web.Request) -> bool:
    return request.query.get("logs", "").lower() in ("1", "true")


def _urls(request: web.Request, job: str) -> dict[str, str]:
    base = f"{own_url(request)}{APP}/requests/{job.removeprefix('jobs/')}"
    return {
        "request_id": job.removeprefix("jobs/"),
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }


def _ids(job: Job) -> dict[str, str]:
    return {"x-fal-request-id": job.name.removeprefix("jobs/")}
