"""The pages: jobs, a new job, a job, a dataset. Each is made of what the services tell the reader's own token."""

import asyncio
import re
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from ltxtrain.v1.extend_prefix_pb2 import ExtendPrefixSpec
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client.errors import CallError
from ltxtrain_client.sheet import Sheet, SheetInvalid, format_sheet, parse_sheet
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.endpoint import call_fault, sheet_fault
from ltxtrain_services.gateway.form import form
from ltxtrain_services.gateway.http import (
    STORIES,
    EventStream,
    json_text,
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
from ltxtrain_services.gateway.story import Story
from ltxtrain_services.gateway.suite import Caller
from ltxtrain_services.pages.job_page import JobPage, render_job_part
from ltxtrain_services.pages.render import render_part, static_file

ID = "{id:[0-9a-f]{32}}"
FILE = re.compile(r"[\w.\-]{1,200}")
STATIC = {
    "icon.svg": "image/svg+xml",
    "style.css": "text/css",
    "gateway.css": "text/css",
    "players.js": "text/javascript",
    "live.js": "text/javascript",
    "form.js": "text/javascript",
}
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
        web.post("/estimate", estimate),
        web.post("/uploads", create_upload),
        web.post("/datasets", create_dataset),
        web.get(f"/jobs/{ID}", signed_in(job)),
        web.get(f"/jobs/{ID}/events", job_events),
        web.post(f"/jobs/{ID}/cancel", signed_in(cancel_job)),
        web.post(f"/jobs/{ID}/delete", signed_in(delete_job)),
        web.get(f"/jobs/{ID}/files/{{file}}", signed_in(job_file)),
        web.get(f"/datasets/{ID}", signed_in(dataset)),
        web.get(f"/datasets/{ID}/events", dataset_events),
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
    """The list, whenever it changes. The contract has no watch over all jobs, so it is read again and again."""
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
    """The form: empty, of an earlier job, or for a dataset."""
    sheet: dict[str, Any] = {}
    if earlier := request.query.get("job"):
        found = await caller_of(request).train.get_job(f"jobs/{earlier}")
        sheet = format_sheet(found.spec.extend_prefix, found.options)
    if name := request.query.get("dataset"):
        sheet = {**sheet, "dataset": name}
        sheet.pop("training_data_url", None)
    else:
        # Asks for nothing but the token.
        await check_token(caller_of(request))
    return html_page(request, "new.html", groups=form(sheet), dataset=sheet.get("dataset", ""), key=str(uuid.uuid4()))


async def create_job(request: web.Request) -> web.StreamResponse:
    """Start the job of a form's sheet; the address of its page."""

    async def call(caller: Caller, sheet: Sheet) -> dict[str, Any]:
        key = request.headers.get("Idempotency-Key", "")
        made = await caller.train.submit(sheet.spec, sheet.options, request_id=key or None)
        return {"location": f"/{made.name}"}

    return await _with_sheet(request, call)


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
    if not isinstance(size, int) or not isinstance(sha256, str) or not isinstance(name, str) or not 0 <= size < 2**63:
        return problem_response(422, "An upload has a size, a sha256 and a name.", "bad_request", "INVALID_SPEC")
    try:
        made = await caller_of(request).ingest.create_upload(size, sha256, name)
    except CallError as error:
        return call_fault(error)
    return web.json_response({"url": f"upload:{made.upload}", "put_url": made.put_url})


async def create_dataset(request: web.Request) -> web.StreamResponse:
    """Look at data before any training; the address of the dataset's page."""
    given = await _json(request)
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
            upload=upload, archive_url=None if upload else source, request_id=key
        )
    except CallError as error:
        return call_fault(error)
    return web.json_response({"location": f"/{made.name}"})


async def job(request: web.Request) -> web.StreamResponse:
    found = await caller_of(request).train.get_job(f"jobs/{request.match_info['id']}")
    story = request.app[STORIES].of(found.name)
    # What was read before is in the page at once; the stream brings the rest.
    first = story if story.cursor else Story(lifecycle=found.lifecycle)
    parts = {part: views.job_part(part, found, first) for part in views.JOB_PARTS}
    spec = render_job_part(JobPage(title="", state="", facts={}, spec=format_sheet(
        found.effective_spec.extend_prefix, found.options)), "spec")  # fmt: skip
    return html_page(request, "job_live.html", name=found.name, parts=parts, spec=spec)


async def job_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.train.get_job(f"jobs/{request.match_info['id']}")

    async def draw(parts: Collection[str], story: Story) -> Mapping[str, str]:
        nonlocal found
        if story.lifecycle.state in TERMINAL and found.lifecycle.state not in TERMINAL:
            found = await caller.train.get_job(found.name)  # with its output and its price
        return {part: views.job_part(part, found, story) for part in parts}

    return await _live(request, found, caller.train.watch_job, views.JOB_PARTS, draw)


async def dataset(request: web.Request) -> web.StreamResponse:
    found = await caller_of(request).ingest.get_dataset(f"datasets/{request.match_info['id']}")
    story = request.app[STORIES].of(found.name)
    first = story if story.cursor else Story(lifecycle=found.lifecycle)
    parts = {part: views.dataset_part(part, found.name, first) for part in views.DATASET_PARTS}
    return html_page(request, "dataset_live.html", name=found.name, parts=parts)


async def dataset_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.ingest.get_dataset(f"datasets/{request.match_info['id']}")

    async def draw(parts: Collection[str], story: Story) -> Mapping[str, str]:
        return {part: views.dataset_part(part, found.name, story) for part in parts}

    return await _live(request, found, caller.ingest.watch_dataset, views.DATASET_PARTS, draw)


async def _live(
    request: web.Request,
    found: Any,
    watch: Any,
    names: Collection[str],
    draw: Callable[[Collection[str], Story], Awaitable[Mapping[str, str]]],
) -> web.StreamResponse:
    """Parts of a page as they change, until the work has ended. The id of each message is the cursor.

    A reader that comes back names its cursor: nothing is sent again when nothing has happened since.
    """
    last, drawn = found.lifecycle.last_sequence, dict[str, int]()
    async with EventStream(request) as events:
        follower = request.app[STORIES].follow(found.name, watch)
        async with aclosing(events.while_open(follower)) as stories:
            async for story in stories:
                # The past is drawn once.
                if story.cursor < last:
                    continue
                known = events.last_id == story.cursor and not drawn
                changed = [part for part in names if story.changes.get(_cause(part), 0) != drawn.get(part, -1)]
                drawn |= {part: story.changes.get(_cause(part), 0) for part in changed}
                if changed and not known:
                    await events.send_text(await _drawn(story, changed, draw), story.cursor)
        await events.send({}, event="end")
    return events.response


async def _drawn(
    story: Story, parts: Sequence[str], draw: Callable[[Collection[str], Story], Awaitable[Mapping[str, str]]]
) -> str:
    """These parts as JSON, drawn once for all who look at the same story."""
    shown = (story.cursor, tuple(parts))
    if story.drawn[0] != shown:
        story.drawn = shown, json_text(await draw(parts, story))
    return story.drawn[1]


def _cause(part: str) -> str:
    return "files" if part == "actions" else part


async def cancel_job(request: web.Request) -> web.StreamResponse:
    made = await caller_of(request).train.cancel_job(f"jobs/{request.match_info['id']}")
    raise web.HTTPSeeOther(f"/{made.name}")


async def delete_job(request: web.Request) -> web.StreamResponse:
    await caller_of(request).train.delete_job(f"jobs/{request.match_info['id']}")
    raise web.HTTPSeeOther("/jobs")


async def job_file(request: web.Request) -> web.StreamResponse:
    """A file of a job, from the object store."""
    file = request.match_info["file"]
    if not FILE.fullmatch(file):
        raise web.HTTPNotFound(text="There is no such file.")
    found = await caller_of(request).train.get_artifact(f"jobs/{request.match_info['id']}/artifacts/{file}")
    raise web.HTTPFound(found.download_url)


async def static(request: web.Request) -> web.StreamResponse:
    name = request.match_info["name"]
    if name not in STATIC:
        raise web.HTTPNotFound(text="There is no such file.")
    headers = {"Cache-Control": "no-cache"}
    return web.Response(text=static_file(name), content_type=STATIC[name], charset="utf-8", headers=headers)


async def _with_sheet(
    request: web.Request, call: Callable[[Caller, Sheet], Awaitable[dict[str, Any]]]
) -> web.StreamResponse:
    caller = caller_of(request)
    try:
        return web.json_response(await call(caller, parse_sheet(await request.read())))
    except SheetInvalid as error:
        return await sheet_fault(caller, error)
    except CallError as error:
        return call_fault(error)


async def _json(request: web.Request) -> dict[str, Any]:
    try:
        given = await request.json()
    except ValueError:
        given = None
    if not isinstance(given, dict):
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
