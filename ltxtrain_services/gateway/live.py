"""Pages of one job, dataset or training set: parts, streamed as they change, and the actions that they offer."""

import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from aiohttp import web
from ltxtrain.v1.preprocess_pb2 import TrainingSet
from ltxtrain.v1.train_pb2 import Job
from ltxtrain_client.errors import CallError, NotFound
from ltxtrain_client.event_text import title
from ltxtrain_client.sheet import SheetInvalid, format_sheet
from ltxtrain_client.watch import TERMINAL

from ltxtrain_services.gateway import views
from ltxtrain_services.gateway.endpoint import call_fault, read_sheet, sheet_fault
from ltxtrain_services.gateway.form import NAME, sheet_query
from ltxtrain_services.gateway.http import STORIES, EventStream, json_text
from ltxtrain_services.gateway.sign_in import caller_of, html_page, signed_in
from ltxtrain_services.gateway.story import Story
from ltxtrain_services.gateway.suite import Caller

ID = "{id:[0-9a-f]{32}}"
FILE = re.compile(r"[\w.\-]{1,200}")
# Names for the checks of a dataset: the same settings are one check.
CHECKS = uuid.UUID("3f0c6f0e-55b5-5d0c-8f0f-0a6d3a2f7b11")

# Parts that change with others: an end brings them.
CAUSES = dict.fromkeys(("audit", "suggestions", "contact-sheet"), "files")

Read = Callable[[str], Awaitable[Any]]
Draw = Callable[[str, Any, Story], str]


def routes() -> list[web.RouteDef]:
    return [
        web.get(f"/jobs/{ID}", signed_in(job)),
        web.get(f"/jobs/{ID}/events", job_events),
        web.post(f"/jobs/{ID}/{{call:cancel|retry|checkpoint|preview}}", signed_in(call_job)),
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
    parts |= {"spec": views.spec_part(found)}
    page_title = title(found.name, found.display_name)
    return html_page(request, "resource.html", title=page_title, name=found.name, parts=parts)


async def job_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.train.get_job(f"jobs/{request.match_info['id']}")
    train = caller.train
    return await _live(request, found, train.get_job, train.watch_job, views.JOB_PARTS, views.job_part)


async def call_job(request: web.Request) -> web.StreamResponse:
    """Cancel, retry, checkpoint or preview a job; leads to the page of the job, for a retry the new one's."""
    train = caller_of(request).train
    calls = {
        "cancel": train.cancel_job,
        "retry": train.retry_job,
        "checkpoint": train.checkpoint_job,
        "preview": train.preview_job,
    }
    made = await calls[request.match_info["call"]](f"jobs/{request.match_info['id']}")
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
    parts = {part: views.dataset_part(part, found, story) for part in views.DATASET_PARTS}
    page_title = title(found.name, found.display_name)
    return html_page(request, "resource.html", title=page_title, name=found.name, parts=parts)


async def dataset_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.ingest.get_dataset(f"datasets/{request.match_info['id']}")
    ingest = caller.ingest
    return await _live(
        request, found, ingest.get_dataset, ingest.watch_dataset, views.DATASET_PARTS, views.dataset_part
    )


async def check_dataset(request: web.Request) -> web.StreamResponse:
    """Fit a dataset to a form's sheet without a GPU; the address of the page of what comes of it."""
    caller, name = caller_of(request), f"datasets/{request.match_info['id']}"
    display_name = request.query.get(NAME, "")
    try:
        sheet = await read_sheet(request)
        query = sheet_query(format_sheet(sheet.spec, sheet.options), display_name)
        # Clips to preview on come with the job.
        del sheet.spec.validation[:]
        sheet.spec.dataset = name
        await caller.train.validate(sheet.spec, sheet.options)
        skipped = sheet.options.on_skipped_clip
        spec = sheet.spec.SerializeToString(deterministic=True).hex()
        key = uuid.uuid5(CHECKS, f"{name} {skipped} {spec} {display_name}")
        made = await caller.preprocess.create_training_set(
            name, sheet.spec, on_skipped_clip=skipped, fit_only=True, request_id=str(key), display_name=display_name
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
    page_title = title(found.name, found.display_name)
    return html_page(request, "resource.html", title=page_title, name=found.name, parts=parts)


async def training_set_events(request: web.Request) -> web.StreamResponse:
    caller = caller_of(request)
    found = await caller.preprocess.get_training_set(f"trainingSets/{request.match_info['id']}")
    earlier = await _of_dataset(request, caller, found)

    def draw(part: str, found: TrainingSet, story: Story) -> str:
        return views.training_set_part(part, found, story, earlier)

    preprocess = caller.preprocess
    return await _live(
        request, found, preprocess.get_training_set, preprocess.watch_training_set, views.TRAINING_SET_PARTS, draw
    )


async def contact_sheet(request: web.Request) -> web.StreamResponse:
    """The contact sheet of a training set, from the object store."""
    name = f"trainingSets/{request.match_info['id']}/contact_sheet"
    raise web.HTTPFound((await caller_of(request).preprocess.get_training_set_file(name)).download_url)


def _known(request: web.Request, found: Any) -> Story:
    """The story as far as it was read before, for a page that shows it at once; the stream brings the rest.

    Whether the work has ended is known as of now: it decides what may be done with it.
    """
    story = request.app[STORIES].of(found.name)
    if story.cursor >= found.lifecycle.last_sequence:
        return story
    return replace(story, lifecycle=found.lifecycle, ended=found.lifecycle.state in TERMINAL)


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
    read: Read,
    watch: Any,
    names: Collection[str],
    draw: Draw,
) -> web.StreamResponse:
    """Parts of a page as they change, until the work has ended. The id of each message is the cursor.

    A reader that comes back names its cursor: nothing is sent again when nothing has happened since.
    """
    last, drawn = found.lifecycle.last_sequence, dict[str, object]()
    async with EventStream(request) as events:
        follower = request.app[STORIES].follow(found.name, watch)
        async with aclosing(events.while_open(follower)) as stories:
            async for story in stories:
                # The past is drawn once.
                if story.cursor < last:
                    continue
                # Once with what only its end gives it, as its output; and no event tells that a request is met.
                if _requested(found) or (story.lifecycle.state in TERMINAL and found.lifecycle.state not in TERMINAL):
                    found = await read(found.name)
                known = events.last_id == story.cursor and not drawn
                versions = {part: _version(part, found, story) for part in names}
                changed = [part for part in names if versions[part] != drawn.get(part)]
                drawn = versions
                if changed and not known:
                    await events.send_text(_drawn(found, story, changed, draw), story.cursor)
        await events.send({}, event="end")
    return events.response


def _drawn(found: Any, story: Story, parts: Sequence[str], draw: Draw) -> str:
    """These parts as JSON, drawn once for all who look at the same story."""
    shown = (story.cursor, tuple(parts), _requested(found))
    if story.drawn[0] != shown:
        story.drawn = shown, json_text({part: draw(part, found, story) for part in parts})
    return story.drawn[1]


def _version(part: str, found: Any, story: Story) -> object:
    """Changes whenever a part of a page does."""
    count = story.changes.get(CAUSES.get(part, part), 0)
    return (count, _requested(found)) if part == "actions" else count


def _requested(found: Any) -> frozenset[str]:
    """Requests to a job that are not done yet."""
    return views.requested(found) if isinstance(found, Job) else frozenset()
