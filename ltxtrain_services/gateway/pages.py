"""The pages: all jobs and a new one; see live.py for those of one resource. Each shows what its reader may see."""

import asyncio
import json
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any

from aiohttp import web
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import ContinueFrom, ContinueMode, Job
from ltxtrain_client.enum_words import number
from ltxtrain_client.errors import CallError
from ltxtrain_client.event_text import title
from ltxtrain_client.sheet import Sheet, SheetInvalid, parse_clips, sheet_of_job

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.endpoint import call_fault, read_sheet, sheet_fault
from ltxtrain_services.gateway.form import MODE, NAME, SOURCE, beside, clip_form, form, plain_sheet, sheet_query
from ltxtrain_services.gateway.http import (
    EventStream,
    body_of,
    is_text,
    problem_response,
)
from ltxtrain_services.gateway.sign_in import (
    caller_of,
    check_token,
    html_page,
    sign_in,
    sign_in_page,
    sign_out,
    signed_in,
)
from ltxtrain_services.gateway.suite import Caller
from ltxtrain_services.pages.render import render_part, static_file
from ltxtrain_services.runtime.hosted_form import fault_item, path_steps

STATIC = {
    "icon.svg": "image/svg+xml",
    "style.css": "text/css",
    "gateway.css": "text/css",
    "players.js": "text/javascript",
    "live.js": "text/javascript",
    "form.js": "text/javascript",
}
# Of an object with a URL or a file's name in it.
MAX_JSON_BYTES = 32 * 2**10
DATASET = re.compile(r"datasets/[0-9a-f]{32}")
CONTINUE = "/jobs/{id:[0-9a-f]{32}}/continue"
LIST_SECONDS = 2.0
LISTED = 100
UNSENT = "upload:uploads/" + "0" * 32


def routes() -> list[web.RouteDef]:
    return [
        web.get("/", home),
        web.get("/jobs", signed_in(jobs)),
        web.get("/jobs/events", jobs_events),
        web.get("/new", signed_in(new)),
        web.post("/jobs", create_job),
        web.get(CONTINUE, signed_in(new_clip)),
        web.post(CONTINUE, continue_clip),
        web.post("/estimate", estimate),
        web.post("/uploads", create_upload),
        web.post("/datasets", create_dataset),
        web.get("/sign-in", sign_in_page),
        web.post("/sign-in", sign_in),
        web.post("/sign-out", sign_out),
        web.get("/static/{name}", static),
    ]


async def home(request: web.Request) -> web.StreamResponse:
    raise web.HTTPSeeOther("/jobs")


async def jobs(request: web.Request) -> web.StreamResponse:
    return html_page(request, "jobs.html", rows=await _rows(caller_of(request)))


async def jobs_events(request: web.Request) -> web.StreamResponse:
    """The list, whenever it changes. It is read again and again: one call, however much goes on in its jobs.

    A WatchJobs would be one more open watch of the caller's, and tells of every step of every job.
    """
    caller = caller_of(request)
    rows = await _rows(caller)

    async def lists() -> AsyncGenerator[list[dict[str, Any]], None]:
        yield rows
        while True:
            await asyncio.sleep(LIST_SECONDS)
            yield await _rows(caller)

    async with EventStream(request) as events:
        shown = ""
        async with aclosing(events.while_open(lists())) as changes:
            async for found in changes:
                html = render_part("jobs.html", "rows", rows=found)
                if html != shown:
                    await events.send({"rows": html})
                shown = html
    return events.response


async def new(request: web.Request) -> web.StreamResponse:
    """The form: empty, of an earlier job, going on from one, of a sheet or for a dataset."""
    sheet: dict[str, Any] = {}
    name, origin = request.query.get(NAME, ""), None
    source = request.query.get("continue_from")
    if earlier := source or request.query.get("job"):
        found = await caller_of(request).train.get_job(f"jobs/{earlier}")
        sheet, name = sheet_of_job(found), found.display_name
        origin = found if source else None
    if given := request.query.get("sheet"):
        sheet = plain_sheet(given)
    # It becomes a part of addresses.
    if (dataset := request.query.get("dataset")) and DATASET.fullmatch(dataset):
        sheet = {**sheet, "dataset": dataset}
        sheet.pop("training_data_url", None)
    # Asks for nothing but the token.
    await check_token(caller_of(request))
    values: dict[str, Any] = {
        "beside": beside(name, origin),
        "groups": form(sheet),
        "dataset": sheet.get("dataset", ""),
        "clips": False,
    }
    values["source"] = origin.name if origin is not None else ""
    values["source_title"] = title(origin.name, origin.display_name) if origin is not None else ""
    return html_page(request, "new.html", **values, key=str(uuid.uuid4()))


async def create_job(request: web.Request) -> web.StreamResponse:
    """Start the job of a form's sheet; the address of its page."""

    async def call(caller: Caller, sheet: Sheet) -> dict[str, Any]:
        key = request.headers.get("Idempotency-Key", "")
        made = await caller.train.submit(sheet.spec, sheet.options, request_id=key or None, **given)
        return {"location": f"/{made.name}"}

    try:
        given = _given(request.query)
    except ValueError as error:
        return problem_response(422, str(error), "bad_request", "INVALID_SPEC")
    return await _with_sheet(request, call, **given)


async def new_clip(request: web.Request) -> web.StreamResponse:
    """The form of a clip that a job's LoRA continues."""
    found = await caller_of(request).train.get_job(f"jobs/{request.match_info['id']}")
    values: dict[str, Any] = {"beside": beside(""), "groups": clip_form(found), "clips": True}
    values |= {"source": found.name, "source_title": title(found.name, found.display_name)}
    return html_page(request, "new.html", **values, dataset="", key=str(uuid.uuid4()))


async def continue_clip(request: web.Request) -> web.StreamResponse:
    """Start the job of that form; the address of its page."""
    key = request.headers.get("Idempotency-Key", "")
    try:
        spec, options = parse_clips(await _json(request))
        source = ContinueFrom(source=f"jobs/{request.match_info['id']}")
        made = await caller_of(request).train.submit(
            spec, options, continue_from=source, display_name=request.query.get(NAME, ""), request_id=key or None
        )
    except SheetInvalid as error:
        faults = [(path_steps(item.path), item.description) for item in error.problems]
        detail = [fault_item(["body", *place], text, "INVALID_SPEC") for place, text in faults]
        return problem_response(422, str(error), "bad_request", "INVALID_SPEC", detail=detail)
    except CallError as error:
        return call_fault(error)
    return web.json_response({"location": f"/{made.name}"})


def _given(query: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a form beside the sheet: the name, and the job to go on from. Raises ValueError for no mode."""
    found: dict[str, Any] = {NAME: query.get(NAME, "")}
    if source := query.get(SOURCE):
        mode: Any = number(ContinueMode.DESCRIPTOR, query.get(MODE) or 0)
        found["continue_from"] = ContinueFrom(source=source, mode=mode)
    return found


async def estimate(request: web.Request) -> web.StreamResponse:
    """The estimate for a form's sheet, whose files may still be missing."""

    async def call(caller: Caller, sheet: Sheet) -> dict[str, Any]:
        return {"estimate": views.estimate_text(await caller.train.estimate(_whole(sheet.spec), sheet.options))}

    return await _with_sheet(request, call)


def _whole(spec: ExtendPrefixSpec) -> ExtendPrefixSpec:
    """The spec with stand-ins for what is not uploaded yet."""
    whole = ExtendPrefixSpec()
    whole.CopyFrom(spec)
    if not whole.WhichOneof("training_data"):
        whole.training_data_url = UNSENT
    for entry in whole.validation:
        entry.video_url = entry.video_url or UNSENT
    return whole


async def create_upload(request: web.Request) -> web.StreamResponse:
    """Announce a file; the browser sends it to the object store itself."""
    given = await _json(request)
    size, sha256, name = given.get("size"), given.get("sha256"), given.get("name", "")
    if type(size) is not int or not isinstance(sha256, str) or not isinstance(name, str) or not 0 <= size < 2**63:
        return problem_response(422, "An upload has a size, a sha256 and a name.", "bad_request", "INVALID_SPEC")
    try:
        made = await caller_of(request).ingest.create_upload(size, sha256, name)
    except CallError as error:
        return call_fault(error)
    return web.json_response({"url": f"upload:{made.upload}", "put_url": made.put_url})


async def create_dataset(request: web.Request) -> web.StreamResponse:
    """Look at data before any training; the address of the dataset's page."""
    given, name = await _json(request), request.query.get(NAME, "")
    source, key = given.get("training_data_url"), request.headers.get("Idempotency-Key") or None
    if not isinstance(source, str) or not source:
        text = "Drop a .zip of videos, or name the URL of one."
        return problem_response(
            422, text, "bad_request", "FIELD_REQUIRED",
            detail=[{"loc": ["body", "training_data_url"], "msg": text, "type": "missing", "reason": "FIELD_REQUIRED"}],
        )  # fmt: skip
    upload = source.removeprefix("upload:") if source.startswith("upload:") else None
    try:
        made = await caller_of(request).ingest.create_dataset(
            upload=upload, archive_url=None if upload else source, request_id=key, display_name=name
        )
    except CallError as error:
        return call_fault(error)
    return web.json_response({"location": f"/{made.name}?{sheet_query(given, name)}"})


async def static(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    if name not in STATIC:
        raise web.HTTPNotFound(text="There is no such file.")
    headers = {"Cache-Control": "no-cache"}
    return web.Response(text=static_file(name), content_type=STATIC[name], charset="utf-8", headers=headers)


async def _with_sheet(
    request: web.Request, call: Callable[[Caller, Sheet], Awaitable[dict[str, Any]]], **beside: Any
) -> web.StreamResponse:
    caller = caller_of(request)
    try:
        return web.json_response(await call(caller, await read_sheet(request)))
    except SheetInvalid as error:
        return await sheet_fault(caller, error, **beside)
    except CallError as error:
        return call_fault(error)


async def _json(request: web.Request) -> dict[str, Any]:
    # Its bytes, and not its text by whatever encoding a header names.
    body = await body_of(request, MAX_JSON_BYTES)
    try:
        given = json.loads(body)
        is_sendable = is_text(json.dumps(given, ensure_ascii=False))
    except (ValueError, RecursionError):
        given, is_sendable = None, False
    if not isinstance(given, dict) or not is_sendable:
        raise web.HTTPUnprocessableEntity(text="A JSON object is expected.")
    return given


async def _rows(caller: Caller) -> list[dict[str, Any]]:
    found: list[Job] = []
    async with aclosing(caller.train.list_jobs(page_size=LISTED)) as listed:
        async for item in listed:
            found.append(item)
            if len(found) == LISTED:
                break
    return [views.job_row(item) for item in found]
