"""Pages of one job, dataset or training set: parts, streamed as they change, and the actions that they offer."""

import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from aiohttp import web
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain_client.errors import CallError, NotFound
from ltxtrain_client.sheet import SheetInvalid, format_sheet
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.endpoint import call_fault, read_sheet, sheet_fault
from ltxtrain_services.gateway.form import sheet_query
from ltxtrain_services.gateway.http import STORIES, EventStream, json_text
from ltxtrain_services.gateway.sign_in import caller_of, html_page, signed_in
from ltxtrain_services.gateway.story import Story
from ltxtrain_services.gateway.suite import Caller

ID = "{id:[0-9a-f]{32}}"
FILE = re.compile(r"[\w.\-]{1,200}")
# Names for the checks of a dataset: the same settings are one check.
CHECKS = uuid.UUID("3f0c6f0e-55b5-5d0c-8f0f-0a6d3a2f7b11")

# Parts that change with others: an end brings them.
CAUSES = dict.fromkeys(("actions", "audit", "suggestions", "contact-sheet"), "files")

Draw = Callable[[Collection[str], Story], Awaitable[Mapping[str, str]]]


def routes() -> list[web.RouteDef]:
    return [
        web.get(f"/jobs/{ID}", signed_in(job)),
        web.get(f"/jobs/{ID}/events", job_events),
        web.post(f"/jobs/{ID}/cancel", signed_in(cancel_job)),
        web.post(f"/jobs/{ID}/delete", signed_in(delete_job)),
        web.get(f"/jobs/{ID}/files/{{file}}", signed_in(job_file)),
        web.get(f"/datasets/{ID}", signed_in(dataset)),
        web.get(f"/datasets/{ID}/events", dataset_events),
        web.post(f"/datasets/{ID}/check", check_dataset),
        web.get(f"/trainingSets/{ID}", signed_in(training_set)),
        web.get(f"/trainingSets/{ID}/events", training_set_events),
        web.get(f"/trainingSets/{ID}/contact-sheet", signed_in(contact_sheet)),
    ]


async def job(request: web.Request) -> web.StreamResponse:
    found = await caller_of(request).train.get_job(f"jobs/{request.match_info['id']}")
    story = _known(request, found)
    parts = {part: views.job_part(part, found, story) for part in views.JOB_PARTS}
    return html_page(request, "resource.html", name=found.name, parts=parts | {"spec": views.spec_part(found)})


async def job_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.train.get_job(f"jobs/{request.match_info['id']}")

    async def draw(parts: Collection[str], story: Story) -> Mapping[str, str]:
        nonlocal found
        if story.lifecycle.state in TERMINAL and found.lifecycle.state not in TERMINAL:
            found = await caller.train.get_job(found.name)  # with its output and its price
        return {part: views.job_part(part, found, story) for part in parts}

    return await _live(request, found, caller.train.watch_job, views.JOB_PARTS, draw)


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


async def dataset(request: web.Request) -> web.StreamResponse:
    found = await caller_of(request).ingest.get_dataset(f"datasets/{request.match_info['id']}")
    story = _known(request, found)
    parts = {part: views.dataset_part(part, found.name, story) for part in views.DATASET_PARTS}
    return html_page(request, "resource.html", name=found.name, parts=parts)


async def dataset_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.ingest.get_dataset(f"datasets/{request.match_info['id']}")

    async def draw(parts: Collection[str], story: Story) -> Mapping[str, str]:
        return {part: views.dataset_part(part, found.name, story) for part in parts}

    return await _live(request, found, caller.ingest.watch_dataset, views.DATASET_PARTS, draw)


async def check_dataset(request: web.Request) -> web.StreamResponse:
    """Fit a dataset to a form's sheet without a GPU; the address of the page of what comes of it."""
    caller, name = caller_of(request), f"datasets/{request.match_info['id']}"
    try:
        sheet = await read_sheet(request)
        query = sheet_query(format_sheet(sheet.spec, sheet.options))
        # Clips to preview on come with the job.
        del sheet.spec.validation[:]
        sheet.spec.dataset = name
        await caller.train.validate(sheet.spec, sheet.options)
        skipped = sheet.options.on_skipped_clip
        key = uuid.uuid5(CHECKS, f"{name} {skipped} {sheet.spec.SerializeToString(deterministic=True).hex()}")
        made = await caller.preprocess.create_training_set(
            name, sheet.spec, on_skipped_clip=skipped, fit_only=True, request_id=str(key)
        )
    except SheetInvalid as error:
        return await sheet_fault(caller, error)
    except CallError as error:
        return call_fault(error)
    return web.json_response({"location": f"/{made.name}?{query}"})


async def training_set(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.preprocess.get_training_set(f"trainingSets/{request.match_info['id']}")
    story, earlier = _known(request, found), await _of_dataset(request, caller, found)
    parts = {part: views.training_set_part(part, found, story, earlier) for part in views.TRAINING_SET_PARTS}
    return html_page(request, "resource.html", name=found.name, parts=parts)


async def training_set_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.preprocess.get_training_set(f"trainingSets/{request.match_info['id']}")
    earlier = await _of_dataset(request, caller, found)

    async def draw(parts: Collection[str], story: Story) -> Mapping[str, str]:
        nonlocal found
        if story.lifecycle.state in TERMINAL and found.lifecycle.state not in TERMINAL:
            found = await caller.preprocess.get_training_set(found.name)  # with its suggestions and its contact sheet
        return {part: views.training_set_part(part, found, story, earlier) for part in parts}

    return await _live(request, found, caller.preprocess.watch_training_set, views.TRAINING_SET_PARTS, draw)


async def contact_sheet(request: web.Request) -> web.StreamResponse:
    """The contact sheet of a training set, from the object store."""
    name = f"trainingSets/{request.match_info['id']}/contact_sheet"
    raise web.HTTPFound((await caller_of(request).preprocess.get_training_set_file(name)).download_url)


def _known(request: web.Request, found: Any) -> Story:
    """The story as far as it was read before, for a page that shows it at once; the stream brings the rest."""
    story = request.app[STORIES].of(found.name)
    return story if story.cursor else Story(lifecycle=found.lifecycle)


async def _of_dataset(request: web.Request, caller: Caller, found: TrainingSet) -> Story:
    """The story of a training set's dataset, which has ended; an empty one of a dataset that is gone."""
    try:
        dataset = await caller.ingest.get_dataset(found.dataset)
    except NotFound:
        return Story()
    return await request.app[STORIES].read(dataset.name, caller.ingest.watch_dataset, dataset.lifecycle.last_sequence)


async def _live(
    request: web.Request,
    found: Any,
    watch: Any,
    names: Collection[str],
    draw: Draw,
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


async def _drawn(story: Story, parts: Sequence[str], draw: Draw) -> str:
    """These parts as JSON, drawn once for all who look at the same story."""
    shown = (story.cursor, tuple(parts))
    if story.drawn[0] != shown:
        story.drawn = shown, json_text(await draw(parts, story))
    return story.drawn[1]


def _cause(part: str) -> str:
    """The part of a story that decides whether a part of a page has changed."""
    return CAUSES.get(part, part)
