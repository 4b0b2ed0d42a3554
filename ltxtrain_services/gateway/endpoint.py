"""The queue protocol of the hosted endpoint fal-ai/ltx23-trainer-v2/extend-prefix, spoken for jobs of this suite.

A request id is the id of its job; everything is read from the job, from its events and from its artifacts.
"""

import asyncio
import base64
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from ltxtrain.v1.train_pb2 import Job
from ltxtrain.v1.work_pb2 import Lifecycle, State
from ltxtrain_client.errors import CallError, from_status
from ltxtrain_client.sheet import Sheet, SheetInvalid, parse_sheet
from ltxtrain_client.train import TrainClient
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.gateway.http import (
    STORIES,
    SUITE,
    EventStream,
    body_of,
    fault_response,
    own_url,
    problem_response,
)
from ltxtrain_services.gateway.story import LogLine
from ltxtrain_services.gateway.suite import Caller, sheet_violations
from ltxtrain_services.runtime.hosted_form import (
    CANCELLED_TEXT,
    ended_problem,
    error_items,
    fault_item,
    file_document,
    http_status,
    is_about_data,
    output_document,
    output_names,
    request_id,
    violation_item,
)

APP = "/fal-ai/ltx23-trainer-v2"
ENDPOINT = f"{APP}/extend-prefix"
REQUEST = "/requests/{request:[0-9a-f]{32}}"

# Names for keys that are no UUIDs themselves.
KEYS = uuid.UUID("6d5a0b5e-6a2f-5bd1-9c52-6d7d6f0b2d61")
MAX_KEY_CHARS = 255
# As much as a service takes in one request.
MAX_REQUEST_BYTES = 2**20
# For which receivers may keep the keys of webhooks.
KEYS_SECONDS = 3600


def routes() -> list[web.RouteDef]:
    """The protocol's routes. Its own clients leave the endpoint's last part out of all but the first."""
    defined = [web.post(ENDPOINT, submit), web.get("/.well-known/jwks.json", webhook_keys)]
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
    faults = _header_faults(key)
    webhook_url = request.query.get("fal_webhook", "")
    try:
        sheet = await read_sheet(request)
    except SheetInvalid as error:
        found = await sheet_violations(caller, error, webhook_url=webhook_url)
        return _refused(faults + [violation_item(item) for item in found])
    if faults:
        return _refused(faults)
    try:
        job = await caller.train.submit(sheet.spec, sheet.options, request_id=_uuid(key), webhook_url=webhook_url)
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


async def webhook_keys(request: web.Request) -> web.Response:
    """The public keys of webhooks as a JSON Web Key Set (RFC 7517, 8037), for anybody."""
    kind = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig"}
    try:
        found = await request.app[SUITE].anybody.train.webhook_keys()
    except CallError as error:
        return fault_response(error)
    keys = [
        kind | {"kid": key.key_id, "x": base64.urlsafe_b64encode(key.public_key).decode().rstrip("=")} for key in found
    ]
    return web.json_response({"keys": keys}, headers={"Cache-Control": f"public, max-age={KEYS_SECONDS}"})


def call_fault(error: CallError) -> web.Response:
    """The answer to a call that a service refused, or did not answer."""
    code = http_status(error)
    return _refused(error_items(error), error) if code == 422 else fault_response(error)


async def read_sheet(request: web.Request) -> Sheet:
    """The sheet that is the request's body. Raises SheetInvalid."""
    body = await body_of(request, MAX_REQUEST_BYTES)
    # A megabyte of JSON takes tens of milliseconds.
    return await asyncio.to_thread(parse_sheet, body)


async def sheet_fault(caller: Caller, error: SheetInvalid, **beside: Any) -> web.Response:
    """The answer to a sheet of the wrong form: every fault at once, the service's among them."""
    return _refused([violation_item(item) for item in await sheet_violations(caller, error, **beside)])


def _without_result(job: Job) -> web.Response:
    if not _ended(job.lifecycle):
        return problem_response(400, "Request is still in progress", "bad_request", headers=_ids(job))
    code, document = ended_problem(job)
    return web.json_response(document, status=code, headers=_ids(job) | {"X-Fal-Error-Type": document["error_type"]})


def _status(lifecycle: Lifecycle, ahead: int | None) -> dict[str, Any]:
    if _ended(lifecycle):
        document: dict[str, Any] = {"status": "COMPLETED", "metrics": {"inference_time": _seconds(lifecycle)}}
        if lifecycle.state == State.STATE_CANCELLED:
            document |= {"error": CANCELLED_TEXT, "error_type": "client_cancelled"}
        elif lifecycle.HasField("error"):
            error = from_status(lifecycle.error)
            kind = "bad_request" if is_about_data(error) else "internal_error"
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


def _logs(lines: Iterable[LogLine] | None) -> list[dict[str, str]] | None:
    if lines is None:
        return None
    return [
        {"message": line.message, "level": line.level, "source": "USER", "timestamp": line.timestamp} for line in lines
    ]


async def _output(train: TrainClient, job: Job) -> dict[str, Any]:
    async def file(name: str) -> dict[str, Any]:
        answer = await train.get_artifact(name)
        return file_document(answer.artifact, answer.download_url)

    names = output_names(job)
    files = await asyncio.gather(*map(file, names.values()))
    return output_document(dict(zip(names, files, strict=True)))


def _refused(
    items: Sequence[Mapping[str, Any]], error: CallError | None = None, headers: Mapping[str, str] | None = None
) -> web.Response:
    message = error.message if error is not None else f"{len(items)} field{'s are' if len(items) > 1 else ' is'} wrong."
    reason = error.reason if error is not None else "INVALID_SPEC"
    return problem_response(422, message, "bad_request", reason, detail=list(items), headers=headers)


def _header_faults(key: str) -> list[dict[str, Any]]:
    faults = []
    if len(key) > MAX_KEY_CHARS:
        text = f"At most {MAX_KEY_CHARS} characters."
        faults.append(fault_item(["header", "Idempotency-Key"], text, "FIELD_OUT_OF_RANGE"))
    return faults


def _uuid(key: str) -> str | None:
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
    base = f"{own_url(request)}{APP}/requests/{request_id(job)}"
    return {
        "request_id": request_id(job),
        "gateway_request_id": request_id(job),
        "response_url": base,
        "status_url": f"{base}/status",
        "cancel_url": f"{base}/cancel",
    }


def _ids(job: Job) -> dict[str, str]:
    return {"x-fal-request-id": request_id(job.name)}
